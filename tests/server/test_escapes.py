# SPDX-License-Identifier: Apache-2.0
"""Hostile paths, and links that come while a path is looked at: nothing outside is read, written or removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import rpcflow
from rpcflow import sync
from rpcflow.server.folder import SessionFolder

from .conftest import Host
from .support import PATIENCE, call, connect

OPERATIONS: dict[str, Callable[[sync.RPCSession, str], object]] = {
    "upload": lambda session, path: session.upload(b"overwritten", path),
    "long upload": lambda session, path: session.upload(bytes(2 << 20), path),
    "download": lambda session, path: session.download(path),
    "remove": lambda session, path: session.remove(path),
    "listdir": lambda session, path: session.listdir(path),
    "load_module": lambda session, path: session.load_module(path),
    "download_linked_module": lambda session, path: session.download_linked_module(path),
}


def hostile(outside: str, folder: str) -> list[str]:
    """``outside``: a folder with ``secret.so``; ``folder``: the session's, in which :func:`plant` has been."""
    up = "../" * folder.count("/")
    far = outside.lstrip("/")
    name = os.path.basename(folder)
    return [
        f"{outside}/secret.so",
        f"/{outside}/secret.so",
        f"//{outside}//secret.so",
        f"/./{far}/./secret.so",
        f"/../{far}/secret.so",
        f"/../../..//{far}/secret.so",
        f"{up}{far}/secret.so",
        f"./{up}{far}/secret.so",
        f"{up}../../..//{far}/secret.so",
        f"a/../{up}{far}/secret.so",
        f"a/b/../../{up}{far}/secret.so",
        f"missing/../{up}{far}/secret.so",
        f"real/../{up}{far}/secret.so",
        f"sub/../{up}{far}/secret.so",
        f"sub/.././/{up}{far}/secret.so",
        f"{folder}/../../{up}{far}/secret.so",
        f"{folder}/../{name}x/secret.so",
        f"{folder}x/secret.so",
        f"{folder}/../secret.so",
        "../secret.so",
        "..//secret.so",
        "../../secret.so",
        ".//..//secret.so",
        f"../{name}/../secret.so",
        f"../{name}x/secret.so",
        "sub/../../secret.so",
        "sub/deeper/../../../secret.so",
        "..",
        "../",
        "../.",
        "../..",
        "sub/../..",
        "/",
        "//",
        "/.",
        "/tmp",
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/self/cwd/../secret.so",
        "/proc/self/root/etc/passwd",
        "/proc/self/fd/0",
        "/proc/thread-self/cwd/../secret.so",
        "/dev/null",
        "/dev/stdin",
        "/dev/fd/0",
        "to folder/secret.so",
        "to folder/new.so",
        "to folder/new/deeper.so",
        "to folder/../secret.so",
        "to folder/.",
        "sub/to folder/secret.so",
        "sub/to folder/new.so",
        "to root/etc/passwd",
        f"to root/{far}/secret.so",
        f"to root/proc/self/root/{far}/secret.so",
        "up/secret.so",
        "up/../secret.so",
        "chain/secret.so",
        "chain/new.so",
        "to nowhere/new.so",
        f"{outside}/secret.so\n",
        f"{outside}/\r\nsecret.so",
        f"{outside}/\x1b[2Jsecret.so",
        f"{outside}/{'x' * 200}.so",
        f"{outside}/{'y/' * 1500}secret.so",
        f"{up}{far}/\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/secret.so",
        "file\0.so",
        "\0",
        f"{outside}/secret.so\0.txt",
    ]


LINKS = ("to secret.so", "to chain.so", "to nowhere", "sub/to secret.so")
"""Links themselves: removing one takes the link, which is inside."""


def plant(session: sync.RPCSession, outside: str) -> None:
    session.upload(b"real", "real")
    call(session, "t.mkdir", "sub")
    for target, name in (
        (outside, "to folder"),
        (outside, "sub/to folder"),
        ("/", "to root"),
        ("..", "up"),
        ("to folder", "chain"),
        (f"{outside}/secret.so", "to secret.so"),
        ("to secret.so", "to chain.so"),
        (f"{outside}/nothing", "to nowhere"),
        ("../to secret.so", "sub/to secret.so"),
    ):
        call(session, "t.symlink", target, name)


def test_there_are_enough() -> None:
    assert len(set(hostile("/out", "/tmp/rpcflow-x/session-y"))) >= 50


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_way_out(host: Host, tmp_path: Path, operation: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.so").write_text("secret")
    run = OPERATIONS[operation]
    with host() as server, connect(server) as session:
        plant(session, str(outside))
        folder = call(session, "t.cwd")
        before = call(session, "t.tree")
        beside = sorted(os.listdir(os.path.dirname(folder)))
        paths = hostile(str(outside), folder)
        if operation != "remove":
            paths += LINKS
        for path in paths:
            with pytest.raises(rpcflow.PermissionDeniedError) as caught:
                run(session, path)
            assert caught.value.path == path
            assert os.listdir(outside) == ["secret.so"], path
        assert (outside / "secret.so").read_text() == "secret"
        assert sorted(os.listdir(os.path.dirname(folder))) == beside
        assert call(session, "t.tree") == before
        if operation == "remove":
            for path in LINKS:
                session.remove(path)
            assert os.listdir(outside) == ["secret.so"]


@pytest.mark.parametrize("path", ["", ".", "./", "sub", "sub/", "x" * 300, "real/below", "a\udc80b"])
def test_what_is_no_file_is_not_written(tmp_path: Path, path: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "real").write_text("real")
    folder = SessionFolder(str(tmp_path))
    try:
        folder.write(path, b"data")
    except (OSError, rpcflow.PermissionDeniedError):
        assert sorted(os.listdir(tmp_path)) == ["real", "sub"]
        assert not os.listdir(tmp_path / "sub")
    else:
        assert path == "a\udc80b", "bytes that are no UTF-8 may be in names"
        assert (tmp_path / path).read_bytes() == b"data"


def test_half_a_character_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(rpcflow.PermissionDeniedError, match="not a path"):
        SessionFolder(str(tmp_path)).write("a\ud800b", b"data")
    assert not os.listdir(tmp_path)


FLIP = """
import ctypes, os, sys
inside, outside = sys.argv[1:]
os.mkdir(inside + "/x")
os.symlink(outside, inside + "/link")
libc = ctypes.CDLL(None, use_errno=True)
here, exchange = -100, 2
one, other = os.fsencode(inside + "/x"), os.fsencode(inside + "/link")
print("ready", flush=True)
while not libc.renameat2(here, one, here, other, exchange):
    pass
sys.exit(os.strerror(ctypes.get_errno()))
"""


def test_a_link_that_comes_and_goes(tmp_path: Path) -> None:
    """A folder in the way of a path is a link to outside at one moment and none at the next."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "file").write_text("secret")
    folder = SessionFolder(str(inside))
    refused = done = 0
    flipping = subprocess.Popen([sys.executable, "-c", FLIP, str(inside), str(outside)], stdout=subprocess.PIPE)
    try:
        assert flipping.stdout is not None
        flipping.stdout.readline()
        rounds, deadline = 0, time.monotonic() + PATIENCE
        while (rounds < 2000 or not refused or not done) and time.monotonic() < deadline:
            rounds += 1
            for operation in (
                lambda: folder.write("x/file", b"inside"),
                lambda: folder.write("x/new/deeper", b"inside"),
                lambda: folder.read("x/file"),
                lambda: folder.listdir("x"),
                lambda: folder.remove("x/file"),
            ):
                try:
                    got = operation()
                except rpcflow.PermissionDeniedError:
                    refused += 1
                except OSError:
                    continue  # there is no such file at that moment
                else:
                    done += 1
                    assert got != b"secret"
        assert flipping.poll() is None
    finally:
        flipping.kill()
        flipping.wait()
        flipping.stdout.close()  # type: ignore[union-attr]
    assert refused
    assert done
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_text() == "secret"


@pytest.mark.parametrize("operation", ["write", "make", "read", "listdir", "remove"])
def test_a_link_that_comes_at_the_worst_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    """Just after the path has been looked at."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "x").mkdir(parents=True)
    outside.mkdir()
    for place in (inside / "x", outside):
        (place / "file").write_text(place.name)
    folder = SessionFolder(str(inside))
    walk = SessionFolder._open_folder

    def flipped(self: SessionFolder, *args: object, **options: object) -> int:
        os.rename(inside / "x", inside / "gone")
        os.symlink(outside, inside / "x")
        return walk(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SessionFolder, "_open_folder", flipped)
    with pytest.raises(rpcflow.PermissionDeniedError, match="leaves the session's folder"):
        {
            "write": lambda: folder.write("x/file", b"data"),
            "make": lambda: folder.write("x/new/file", b"data"),
            "read": lambda: folder.read("x/file"),
            "listdir": lambda: folder.listdir("x"),
            "remove": lambda: folder.remove("x/file"),
        }[operation]()
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_text() == "outside"
