# SPDX-License-Identifier: Apache-2.0
"""``session_timeout``, and clients that vanish: the device is free again, whatever ran."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import rpcflow

from .conftest import Host, Run
from .support import (
    HOST,
    Raw,
    call,
    call_async,
    connect,
    exists,
    find,
    hello,
    init,
    invoke,
    line,
    script,
    text,
    until,
    until_async,
    works,
)


def says_all(error: rpcflow.RPCSessionTimeoutError, budget: float, during: str | None) -> None:
    assert error.budget == budget
    assert error.used is not None
    assert error.used >= budget * 0.99
    assert error.call == during
    words = str(error)
    assert f"{budget:g} s" in words
    assert f"{error.used:.1f} s" in words
    assert "session_timeout" in words
    if during:
        assert repr(during) in words


@pytest.mark.parametrize("kernel", ["t.spin", "t.block"])
def test_busy_worker_is_ended_sync(host: Host, no_fork: bool, tmp_path: Path, kernel: str) -> None:
    with host(no_fork=no_fork) as server:
        with connect(server, session_timeout=0.5) as session:
            pid = call(session, "t.pid")
            with pytest.raises(rpcflow.RPCSessionTimeoutError) as caught:
                call(session, kernel, str(tmp_path / "mark"))
            says_all(caught.value, 0.5, kernel)
            assert not exists(pid)
            with pytest.raises(rpcflow.RPCSessionTimeoutError):
                call(session, "t.echo", 1)
        works(server)


@pytest.mark.parametrize("kernel", ["t.spin", "t.block"])
def test_busy_worker_is_ended_async(host: Host, run: Run, tmp_path: Path, kernel: str) -> None:
    async def main(port: int) -> None:
        async with rpcflow.connect(HOST, port, session_timeout=0.5) as session:
            with pytest.raises(rpcflow.RPCSessionTimeoutError) as caught:
                await call_async(session, kernel, str(tmp_path / "mark"))
            says_all(caught.value, 0.5, kernel)
            with pytest.raises(rpcflow.RPCSessionTimeoutError):
                await call_async(session, "t.echo", 1)

    with host() as server:
        run(main, server.port)
        works(server)


def test_idle_worker_is_ended(host: Host, run: Run) -> None:
    async def main(port: int, pid: list[int]) -> None:
        async with rpcflow.connect(HOST, port, session_timeout=0.5) as session:
            pid.append(await call_async(session, "t.pid"))
            await until_async(lambda: not exists(pid[0]))
            with pytest.raises(rpcflow.RPCSessionTimeoutError) as caught:
                await call_async(session, "t.echo", 1)
            says_all(caught.value, 0.5, None)

    with host() as server:
        run(main, server.port, [])
        with connect(server, session_timeout=0.5) as session:
            pid = call(session, "t.pid")
            until(lambda: not exists(pid))
            with pytest.raises(rpcflow.RPCSessionTimeoutError) as caught:
                call(session, "t.echo", 1)
            says_all(caught.value, 0.5, None)
        works(server)


def test_stock_client_is_told_too(host: Host) -> None:
    with host() as server:
        with Raw(server, hello(words=" -timeout=0.5") + init()) as raw:
            assert raw.answer() is not None
            assert raw.packet() is not None
            words = raw.error()
            assert words.startswith("RPCSessionTimeoutError: ")
            assert "0.5 s" in words
            assert raw.ended()
        works(server)


def test_client_that_does_not_read(host: Host) -> None:
    """Its budget ends it too, though nothing can be said to it: half an answer is on the line."""
    with host() as server:
        with Raw(server, hello(words=" -timeout=0.7") + init() + find("t.echo")) as raw:
            assert raw.answer() is not None
            assert raw.packet() is not None
            handle = raw.handle()
            raw.send(invoke(handle, text("x" * (8 << 20))))
            works(server)
            got = b""
            while more := raw.take(1 << 16):
                got += more
            assert b"session_timeout" not in got


def test_waiting_does_not_count(host: Host) -> None:
    with host() as server:
        with connect(server, session_timeout=1), Raw(server, hello(words=" -timeout=60") + init()) as raw:
            assert raw.answer() is not None  # after the first one's budget has ended it
            assert raw.packet() is not None
            raw.send(find("t.echo"))
            assert raw.handle()


def test_budget_ends_while_others_go_on(host: Host, tmp_path: Path) -> None:
    with host(max_sessions=2) as server, connect(server) as other:
        with connect(server, session_timeout=0.3) as session, pytest.raises(rpcflow.RPCSessionTimeoutError):
            call(session, "t.spin", str(tmp_path / "mark"))
        assert call(other, "t.echo", 1) == 1


# ---------------------------------------------------------------------------------------------- clients that vanish

CLIENT = """
import sys
from rpcflow import sync
with sync.connect("127.0.0.1", int(sys.argv[1])) as session:
    f = session.get_function(sys.argv[2])
    print("ready", flush=True)
    f(sys.argv[3])
    sys.stdin.read()
"""


@pytest.mark.parametrize("kernel", ["t.spin", "t.block", "t.echo"])
def test_client_is_killed(host: Host, no_fork: bool, tmp_path: Path, kernel: str) -> None:
    """The device is free again within a second; the figure here is for machines that have much else to do."""
    mark = tmp_path / "mark"
    with host(no_fork=no_fork) as server:
        with script(CLIENT, server.port, kernel, mark) as process:
            assert line(process) == "ready"
            if kernel != "t.echo":
                until(mark.exists)
            process.kill()
            began = time.monotonic()
            with connect(server, wait_timeout=5) as session:
                assert call(session, "t.echo", 1) == 1
            assert time.monotonic() - began < 5


def test_client_closes_during_a_call(host: Host, tmp_path: Path) -> None:
    with host() as server:
        session = connect(server, call_timeout=1)
        pid = call(session, "t.pid")
        with pytest.raises(rpcflow.CallTimeoutError):
            call(session, "t.spin", str(tmp_path / "mark"))
        session.close()
        with connect(server, wait_timeout=10) as other:
            assert call(other, "t.echo", 1) == 1
        assert not exists(pid)


def test_client_says_good_bye_during_its_handshake(host: Host) -> None:
    with host() as server:
        for said in (hello(), hello() + init(), hello() + init() + find("t.echo")):
            for _ in range(5):
                Raw(server, said).socket.close()
        works(server)
        until(lambda: server._connections == 0)
