# SPDX-License-Identifier: Apache-2.0
"""A session's folder: where it is, what goes in, and that there is no way out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import rpcflow
from rpcflow import sync

from .conftest import Host
from .support import Raw, Traces, call, connect, find, invoke, text, until, works

OPERATIONS: dict[str, Callable[[sync.RPCSession, str], object]] = {
    "upload": lambda session, path: session.upload(b"overwritten", path),
    "long upload": lambda session, path: session.upload(bytes(3 << 20), path),
    "download": lambda session, path: session.download(path),
    "remove": lambda session, path: session.remove(path),
    "listdir": lambda session, path: session.listdir(path),
    "load_module": lambda session, path: session.load_module(path),
    "download_linked_module": lambda session, path: session.download_linked_module(path),
}


def test_folder_is_the_current_one_and_goes(host: Host, traces: Traces, no_fork: bool) -> None:
    with host(no_fork=no_fork, max_sessions=2) as server:
        with connect(server) as session, connect(server) as other:
            folder = call(session, "t.cwd")
            assert Path(folder).is_relative_to(traces.folder)
            assert call(other, "t.cwd") != folder
            assert os.stat(folder).st_mode & 0o077 == 0
            session.upload(b"hello", "a/b/c.txt")
            assert call(session, "t.read", "a/b/c.txt") == "hello"
            assert bytes(session.download("a/b/c.txt")) == b"hello"
            assert session.listdir("") == "a"
            assert session.listdir("a/b") == "c.txt"
            assert call(other, "t.tree") == ""
            session.remove("a/b/c.txt")
            assert session.listdir("a/b") == ""
            session.upload(b"again", "a/b/c.txt")
        until(lambda: not os.path.exists(folder))
        with connect(server) as session:
            assert call(session, "t.tree") == ""


def test_folder_of_the_worst_kind_goes(host: Host, traces: Traces) -> None:
    """Far deeper than Python recurses, the last one with no rights: it is removed, and the launcher goes on."""
    with host() as server:
        launcher = server._launcher.pid
        with connect(server) as session:
            folder = call(session, "t.cwd")
            call(session, "t.nest", 1500)
        works(server)
        assert not os.path.exists(folder)
        assert server._launcher.pid == launcher


@pytest.mark.parametrize(
    "way",
    ["absolute", "..", "deep ..", "symlink", "symlinked folder", "chain", "NUL", "sibling", "new in symlinked folder"],
)
def test_no_way_out(host: Host, tmp_path: Path, way: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    secret = outside / "secret.so"
    secret.write_text("secret")
    with host() as server, connect(server) as session:
        folder = call(session, "t.cwd")
        up = "../" * folder.count("/")
        if way == "symlink":
            call(session, "t.symlink", str(secret), "link.so")
        elif way in ("symlinked folder", "new in symlinked folder"):
            call(session, "t.symlink", str(outside), "folder")
        elif way == "chain":
            call(session, "t.mkdir", "sub")
            call(session, "t.symlink", up + str(outside)[1:], "sub/one")
            call(session, "t.symlink", "sub/one/secret.so", "two.so")
        path = {
            "absolute": str(secret),
            "..": up + str(secret)[1:],
            "deep ..": f"a/../b/../../{up}{str(secret)[1:]}",
            "symlink": "link.so",
            "symlinked folder": "folder/secret.so",
            "chain": "two.so",
            "NUL": "file\0.so",
            "sibling": f"../{os.path.basename(folder)}x/file.so",
            "new in symlinked folder": "folder/new.so",
        }[way]
        for name, operation in OPERATIONS.items():
            if name == "remove" and way in ("symlink", "chain"):
                continue  # that is about the link, which is inside
            with pytest.raises(rpcflow.PermissionDeniedError) as caught:
                operation(session, path)
            assert caught.value.path == path
            if way != "NUL":
                assert "allow-path" in str(caught.value)
            assert secret.read_text() == "secret"
            assert os.listdir(outside) == ["secret.so"]
            assert call(session, "t.echo", 1) == 1


def test_remove_takes_the_link(host: Host, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    with host() as server, connect(server) as session:
        for target in (str(outside), "real", "nowhere"):
            session.upload(b"data", "real")
            call(session, "t.symlink", target, "link")
            session.remove("link")
            assert call(session, "t.tree") == "real"
    assert outside.read_text() == "kept"


def test_temporary_files_of_user_code_go_too(host: Host, no_fork: bool) -> None:
    with host(no_fork=no_fork) as server:
        with connect(server) as session:
            path = call(session, "t.temporary")
            assert Path(path).is_relative_to(call(session, "t.cwd"))
            assert session.listdir("") == ""
        until(lambda: not os.path.exists(path))


def test_links_that_stay_inside_are_followed(host: Host) -> None:
    with host() as server, connect(server) as session:
        session.upload(b"data", "real")
        call(session, "t.symlink", "real", "link")
        assert bytes(session.download("link")) == b"data"
        folder = call(session, "t.cwd")
        assert bytes(session.download(f"{folder}/real")) == b"data"  # absolute, and still its own


def test_allow_path(host: Host, tmp_path: Path, no_fork: bool) -> None:
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (tmp_path / "database").mkdir()
    (data / "in.txt").write_text("in")
    (data / "way out").symlink_to(tmp_path / "database")
    with host(allow_path=[str(data)], no_fork=no_fork) as server, connect(server) as session:
        assert bytes(session.download(f"{data}/in.txt")) == b"in"
        session.upload(b"new", f"{data}/sub/deeper/new.txt")
        assert (data / "sub/deeper/new.txt").read_text() == "new"
        assert session.listdir(str(data / "sub")) == "deeper"
        session.remove(f"{data}/in.txt")
        for path in (f"{tmp_path}/database/x", f"{data}/../database/x", f"{data}/way out/x"):
            with pytest.raises(rpcflow.PermissionDeniedError):
                session.upload(b"no", path)
        with pytest.raises(rpcflow.RemoteError, match="is a folder"):
            session.upload(b"no", str(data))
    assert (data / "sub/deeper/new.txt").exists()
    assert not list((tmp_path / "database").iterdir())


def test_upload_cut_short_leaves_nothing_in_an_allowed_folder(host: Host, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with host(allow_path=[str(data)]) as server:
        with Raw(server).open() as raw:
            raw.send(find("tvm.rpc.server.upload"))
            handle = raw.handle()
            whole = invoke(handle, text(f"{data}/big"), text("x" * (4 << 20)))
            raw.send(whole[: 2 << 20])
            until(lambda: os.listdir(data), "beginning the upload")
        until(lambda: not os.listdir(data), "removing it")
        works(server)


@pytest.mark.parametrize("size", [10, 3 << 20])
def test_refused_uploads(host: Host, size: int) -> None:
    data = bytes(size)
    with host() as server, connect(server) as session:
        session.upload(b"kept", "file")
        call(session, "t.mkdir", "folder")
        for name in ("folder", ".", "file/below", "x" * 300):
            with pytest.raises(rpcflow.RemoteError):
                session.upload(data, name)
        for name in ("", "a\0b"):
            with pytest.raises(rpcflow.PermissionDeniedError):
                session.upload(data, name)
        assert call(session, "t.tree") == "file,folder"
        assert bytes(session.download("file")) == b"kept"
        for missing in ("nothing", "folder/nothing", "folder"):
            with pytest.raises(rpcflow.RemoteError, match="no file"):
                session.download(missing)
        with pytest.raises(rpcflow.RemoteError, match="no file"):
            session.remove("folder")
        with pytest.raises(rpcflow.RemoteError, match="no folder"):
            session.listdir("file")
