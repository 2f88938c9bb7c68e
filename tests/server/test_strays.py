# SPDX-License-Identifier: Apache-2.0
"""What a session has started ends with it, however it hides."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

import rpcflow

from .conftest import Host
from .support import HOST, call, connect, exists, until, works


def listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), 5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("end", ["close", "death", "timeout"])
def test_children_are_gone(host: Host, no_fork: bool, tmp_path: Path, end: str) -> None:
    with host(no_fork=no_fork, max_sessions=2) as server, connect(server) as other:
        bystander = call(other, "t.child")
        with connect(server, session_timeout=60 if end != "timeout" else 2) as session:
            child = call(session, "t.child")
            call(session, "t.daemon", str(tmp_path / "daemon"))
            until((tmp_path / "daemon").exists)
            daemon, port = map(int, (tmp_path / "daemon").read_text().split())
            assert exists(child)
            assert exists(daemon)
            assert listens(port)
            if end == "death":
                with pytest.raises(rpcflow.SessionCrashedError):
                    call(session, "t.exit", 1)
            elif end == "timeout":
                with pytest.raises(rpcflow.RPCSessionTimeoutError):
                    call(session, "t.spin", str(tmp_path / "mark"))
            if end != "close":
                # Whoever is told of the end is told after it.
                assert not exists(child)
                assert not exists(daemon)
        until(lambda: not exists(child) and not exists(daemon))
        until(lambda: not listens(port))
        assert exists(bystander)
        assert call(other, "t.echo", 1) == 1
    assert not exists(bystander)


def test_next_session_finds_the_device_free(host: Host, tmp_path: Path) -> None:
    """With one session at a time, the next begins after all that the last has started is gone."""
    with host() as server:
        for i in range(3):
            mark = tmp_path / str(i)
            with connect(server) as session:
                if i:
                    daemon, port = map(int, (tmp_path / str(i - 1)).read_text().split())
                    assert not exists(daemon)
                    assert not listens(port)
                call(session, "t.daemon", str(mark))
                until(mark.exists)


def test_child_of_the_callback_stays(host: Host, tmp_path: Path) -> None:
    """What the callback has started is the server's, not the first session's."""
    mark = str(tmp_path / "pid")

    def start() -> None:
        import subprocess
        from pathlib import Path

        Path(mark).write_text(str(subprocess.Popen(["sleep", "600"]).pid))

    with host(start) as server:
        pid = int(Path(mark).read_text())
        for _ in range(2):
            works(server)
            assert exists(pid)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not exists(pid))
        works(server)


def test_child_of_the_callback_ends_with_the_server(host: Host, tmp_path: Path) -> None:
    mark = str(tmp_path / "pid")

    def start() -> None:
        import subprocess
        from pathlib import Path

        Path(mark).write_text(str(subprocess.Popen(["sleep", "600"]).pid))

    with host(start) as server:
        works(server)
    assert not exists(int(Path(mark).read_text()))
