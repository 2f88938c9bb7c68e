# SPDX-License-Identifier: Apache-2.0
"""What a worker has given up when its client comes: rights, descriptors, and more than its policy's limits."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rpcflow
from rpcflow import sync
from rpcflow.security.grant import Grant

from .conftest import Host
from .support import call, connect, until, works

MIB = 1 << 20


def look() -> None:
    """More functions for sessions: they look at their process, and take what they can get."""
    import os
    import resource
    import subprocess
    import sys

    import numpy as np

    import rpcflow

    def descriptors() -> str:
        found = []
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                found.append(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
            except FileNotFoundError:
                continue  # the listing's own
        return "\n".join(found)

    def status(name: str) -> str:
        with open("/proc/self/status") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith(name + ":"))

    def raised(name: str) -> str:
        """What comes of raising a limit again."""
        what = getattr(resource, name)
        _, hard = resource.getrlimit(what)
        try:
            resource.setrlimit(what, (hard, hard + 1))
        except (OSError, ValueError) as error:
            return type(error).__name__
        return "raised"

    def fork(count: int) -> int:
        """How many children can be had, of so many. All of them are gone afterwards."""
        pids = []
        try:
            for _ in range(count):
                pid = os.fork()
                if not pid:
                    os.read(reading, 1)
                    os._exit(0)
                pids.append(pid)
        except OSError:
            pass
        return len(pids)

    reading, _writing = os.pipe()

    def spin_quietly() -> None:
        while True:
            pass

    def write(name: str, nbytes: int) -> int:
        with open(name, "wb", buffering=0) as file:
            return file.write(bytes(nbytes)) + file.write(bytes(nbytes))

    functions = {
        "c.descriptors": descriptors,
        "c.status": status,
        "c.raised": raised,
        "c.core": lambda: str(resource.getrlimit(resource.RLIMIT_CORE)),
        "c.fork": fork,
        "c.spin": spin_quietly,
        "c.write": write,
        "c.take": lambda nbytes: int(np.ones(nbytes, np.uint8)[-1]),
        "c.child_status": lambda: (
            subprocess.run(
                [sys.executable, "-c", "print(open('/proc/self/status').read())"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        ),
    }
    for name, function in functions.items():
        rpcflow.register(name, function, override=True)


@pytest.fixture
def limited(host: Host, tmp_path: Path) -> Callable[..., Any]:
    """Gives servers whose policy limits whoever comes."""

    def make(limits: str, **options: Any) -> Any:
        policy = tmp_path / "policy.toml"
        policy.write_text(f"[policy.all]\n{limits}\n[anonymous]\npolicy = 'all'\n")
        policy.chmod(0o600)
        return host(look, policy=policy, **options)

    return make


def kinds(session: sync.RPCSession) -> list[str]:
    """What a session's descriptors are, those behind its three standard ones."""
    lines = dict(line.split(" ", 1) for line in call(session, "c.descriptors").splitlines())
    assert lines.pop("0") == "/dev/null"
    assert lines.pop("1") == lines.pop("2")
    return sorted(target.split(":")[0] for target in lines.values())


def test_descriptors_are_its_own(host: Host, no_fork: bool) -> None:
    """Sessions that run at the same time, of which later ones could have what earlier ones have. The pipe of ``look``
    is there because the callback has opened it."""
    with host(look, max_sessions=4, no_fork=no_fork) as server:
        with connect(server) as one, connect(server) as two, connect(server) as three:
            found = [kinds(session) for session in (one, two, three)]
            with connect(server) as four:
                found.append(kinds(four))
            lines = [set(call(session, "c.descriptors").splitlines()) for session in (one, two, three)]
        assert all(kind == ["/memfd", "pipe", "pipe", "socket"] for kind in found), found
        sockets = [next(line.split()[1] for line in some if "socket:" in line) for some in lines]
        assert len(set(sockets)) == 3


def test_no_new_rights(host: Host, no_fork: bool) -> None:
    with host(look, no_fork=no_fork) as server, connect(server) as session:
        assert call(session, "c.status", "NoNewPrivs") == "1"
        assert "NoNewPrivs:\t1" in call(session, "c.child_status")
        assert call(session, "c.core") == "(0, 0)"


def test_memory(limited: Callable[..., Any], no_fork: bool) -> None:
    with limited("memory = '64MiB'", no_fork=no_fork) as server, connect(server) as session:
        assert call(session, "c.take", 32 * MIB) == 1
        with pytest.raises(rpcflow.RemoteError) as caught:
            call(session, "c.take", 128 * MIB)
        assert "allocate" in str(caught.value)
        assert call(session, "c.take", 32 * MIB) == 1
        assert call(session, "c.raised", "RLIMIT_DATA") != "raised"


def test_processor_time(limited: Callable[..., Any], no_fork: bool) -> None:
    with limited("cpu_seconds = 1", no_fork=no_fork) as server:
        with connect(server) as session, pytest.raises(rpcflow.SessionCrashedError) as caught:
            call(session, "c.spin")
        assert caught.value.signal == signal.SIGXCPU
        assert "processor time" in str(caught.value)
        assert caught.value.call == "c.spin"
        works(server)


def test_file_size(limited: Callable[..., Any], no_fork: bool) -> None:
    with limited("file = '1MiB'", no_fork=no_fork) as server, connect(server) as session:
        assert call(session, "c.write", "small", 1000) == 2000
        with pytest.raises(rpcflow.RemoteError, match=os.strerror(errno.EFBIG)):
            call(session, "c.write", "large", MIB)
        for nbytes in (MIB + 1, 4 * MIB):
            with pytest.raises(rpcflow.RemoteError, match=os.strerror(errno.EFBIG)):
                session.upload(bytes(nbytes), "upload")
        assert call(session, "t.tree") == "large,small"
        assert call(session, "c.raised", "RLIMIT_FSIZE") != "raised"


def test_processes(limited: Callable[..., Any], no_fork: bool) -> None:
    with limited("processes = 8", no_fork=no_fork, max_sessions=2) as server:
        with connect(server) as session:
            try:
                call(session, "t.echo", 1)
            except rpcflow.PermissionDeniedError as error:
                pytest.skip(f"processes cannot be counted here: {error}")
            assert call(session, "c.fork", 50) == 7
            with connect(server) as other:
                assert call(other, "c.fork", 3) == 3, "they are counted for each session"
        until(lambda: not [name for name in _cgroups() if name.startswith("rpcflow-")], "removing control groups")


def _cgroups() -> list[str]:
    try:
        return os.listdir("/sys/fs/cgroup/pids")
    except FileNotFoundError:
        return []


def test_limit_that_cannot_be_had_is_told(limited: Callable[..., Any]) -> None:
    """Forked from a process in which there is no control group to be had, as root would find it elsewhere."""

    def nowhere() -> None:
        import os

        from rpcflow.server import confine

        confine._CGROUPS = "/nowhere"  # type: ignore[misc]
        os.getuid = lambda: 0

    from .functions import offer

    with limited("processes = 8", server_init_callback=offer(nowhere)) as server:
        with pytest.raises(rpcflow.PermissionDeniedError, match="limits processes"):
            connect(server).close()


@pytest.mark.parametrize("nbytes", [6 * MIB, 1 * MIB])
def test_folder_size(limited: Callable[..., Any], nbytes: int, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with limited("folder = '8MiB'", allow_path=[str(data)]) as server, connect(server) as session:
        session.upload(bytes(nbytes), "one")
        session.upload(bytes(nbytes), "one")  # takes the place of the first
        call(session, "c.write", "more", (7 * MIB - nbytes) // 2)  # so that one is left
        with pytest.raises(rpcflow.RemoteError, match="room for") as caught:
            session.upload(bytes(2 * MIB), "new folder/two")
        assert caught.value.remote_type == "OSError"
        assert call(session, "t.tree") == "more,one"
        with pytest.raises(rpcflow.RemoteError, match="room for"):
            session.upload(bytes(2 * MIB), f"{data}/two")
        assert not list(data.iterdir())
        session.remove("more")
        session.upload(bytes(MIB), f"{data}/two")
        assert (data / "two").stat().st_size == MIB


def test_no_limits_without_a_policy(host: Host) -> None:
    with host(look) as server, connect(server) as session:
        assert call(session, "c.take", 128 * MIB) == 1
        assert call(session, "c.fork", 20) == 20


def test_a_grant_too_long_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    from rpcflow.security.rights import Right, Rights

    long = Right(Grant(functions=("*", *(f"!{'x' * 100}{i}" for i in range(2000)))))
    monkeypatch.setattr(Rights, "allow", lambda *_: long)
    with host() as server:
        launcher = server._launcher.pid
        for _ in range(2):
            with pytest.raises(rpcflow.PermissionDeniedError, match="patterns"):
                connect(server).close()
        monkeypatch.undo()
        works(server)
        assert server._launcher.pid == launcher
