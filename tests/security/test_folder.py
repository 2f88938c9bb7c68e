# SPDX-License-Identifier: Apache-2.0
"""The configuration folder: where it is, who may enter, files whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.security import folder as under_test
from rpcflow.security.folder import check_name, config_folder, locked, make_folder, read_secret, write_file

posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RPCFLOW_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if os.name == "posix":
        assert config_folder() == tmp_path / ".config" / "rpcflow"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert config_folder() == tmp_path / "xdg" / "rpcflow"
    monkeypatch.setenv("RPCFLOW_HOME", str(tmp_path / "own"))
    assert config_folder() == tmp_path / "own"
    monkeypatch.setenv("RPCFLOW_HOME", "")
    assert config_folder() == tmp_path / "xdg" / "rpcflow"


def test_it_does_not_move_with_the_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RPCFLOW_HOME", "here")
    assert config_folder() == tmp_path / "here"


def test_nobody_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RPCFLOW_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(under_test.Path, "home", homeless)
    with pytest.raises(FileNotFoundError, match="RPCFLOW_HOME"):
        config_folder()


@posix
@pytest.mark.usefixtures("open_umask")
def test_whatever_the_umask_only_its_owner_may_enter(config: Path) -> None:
    write_file(config / "identities" / "a.pem", b"key", secret=True)
    assert mode(config) == mode(config / "identities") == 0o700
    assert mode(config / "identities" / "a.pem") == 0o600
    write_file(config / "a.crt", b"certificate")
    assert mode(config / "a.crt") == 0o644


@posix
@pytest.mark.usefixtures("open_umask")
def test_never_there_with_wider_rights(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real_open, real_mkdir = os.open, os.mkdir

    def spy_open(path: Any, flags: int, *args: Any, **options: Any) -> int:
        fd = real_open(path, flags, *args, **options)
        if flags & os.O_CREAT:
            made.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return fd

    def spy_mkdir(path: Any, *args: Any, **options: Any) -> None:
        real_mkdir(path, *args, **options)
        made.append(stat.S_IMODE(os.stat(path).st_mode))

    monkeypatch.setattr(os, "open", spy_open)
    monkeypatch.setattr(os, "mkdir", spy_mkdir)
    with locked(config / "identities" / "a.pem"):
        write_file(config / "identities" / "a.pem", b"key", secret=True)
    assert made == [0o700, 0o700, 0o600, 0o600]  # two folders, the lock, the file


@posix
def test_what_others_may_enter_is_closed_to_them(config: Path) -> None:
    (config / "identities").mkdir(parents=True)
    for path in (config, config / "identities"):
        path.chmod(0o777)
    make_folder(config / "identities")
    assert mode(config) == mode(config / "identities") == 0o700


@posix
def test_a_folder_that_is_everybodys_is_refused(config: Path) -> None:
    config.mkdir()
    config.chmod(0o1777)
    with pytest.raises(PermissionError, match="others may write"):
        write_file(config / "identities" / "a.pem", b"key", secret=True)
    assert mode(config) == 0o1777
    assert list(config.glob("identities/*")) == []


@posix
@pytest.mark.usefixtures("config")
def test_folders_elsewhere_keep_their_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    write_file(shared / "a.pem", b"key", secret=True)
    monkeypatch.chdir(shared)
    write_file(Path("b.pem"), b"key", secret=True)
    assert mode(shared) == 0o777
    assert mode(shared / "a.pem") == mode(shared / "b.pem") == 0o600
    write_file(shared / "new" / "c.pem", b"key", secret=True)
    assert mode(shared / "new") == 0o700


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_whole_or_not_at_all(config: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = config / "file"
    write_file(path, b"before")

    def full(*_: Any) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="no space"):
        write_file(path, b"after")
    assert path.read_bytes() == b"before"
    assert os.listdir(config) == ["file"]


def test_the_place_of_another_only_where_that_is_meant(config: Path) -> None:
    path = config / "file"
    write_file(path, b"one", replace=False)
    with pytest.raises(FileExistsError):
        write_file(path, b"two", replace=False)
    assert path.read_bytes() == b"one"
    assert os.listdir(config) == ["file"]
    write_file(path, b"three")
    assert path.read_bytes() == b"three"


def test_of_many_that_make_the_same_file_one_does(config: Path) -> None:
    made: list[bytes] = []

    def make(number: int) -> None:
        data = b"%d" % number
        try:
            write_file(config / "file", data, replace=False)
        except FileExistsError:
            return
        made.append(data)

    threads = [threading.Thread(target=make, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert made == [(config / "file").read_bytes()]


@posix
@pytest.mark.parametrize("wide", [0o640, 0o604, 0o620, 0o660, 0o644])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, wide: int) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"key")
    path.chmod(wide)
    with pytest.raises(PermissionError, match="chmod 600"):
        read_secret(path)
    path.chmod(0o600)
    assert read_secret(path) == b"key"


@pytest.mark.skipif(under_test.fcntl is None, reason="no locks here")
def test_a_lock_is_one_ones_alone(config: Path) -> None:
    count = 0
    path = config / "counter"
    write_file(path, b"0")

    def add() -> None:
        for _ in range(20):
            with locked(path):
                write_file(path, b"%d" % (int(path.read_bytes()) + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    count = int(path.read_bytes())
    assert count == 80


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "a\\b", ".hidden", "-f", "a b", "a\n", "ä", "a" * 65, "a\0", "x.pem", None]
)
def test_no_names(name: Any) -> None:
    with pytest.raises(ValueError, match="cannot be a name"):
        check_name(name)


@given(st.text(max_size=70))
def test_a_name_stays_in_its_folder(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        return
    path = Path("/folder") / f"{name}.pem"
    assert path.parent == Path("/folder")
    assert os.path.normpath(path) == str(path)
    assert path.stem == name
