# SPDX-License-Identifier: Apache-2.0
"""A worker that dies takes its session with it, and nothing else."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import rpcflow

from .conftest import Host, Run
from .support import HOST, Raw, call, call_async, connect, exists, hello, init, sleeps, until, works

DEATHS: list[tuple[str, tuple[Any, ...], int | None, int | None]] = [
    ("t.exit", (7,), None, 7),
    ("t.exit", (0,), None, 0),
    ("t.segfault", (), signal.SIGSEGV, None),
    ("t.abort", (), signal.SIGABRT, None),
    ("t.signal", (int(signal.SIGKILL),), signal.SIGKILL, None),
]


@pytest.mark.parametrize(("name", "args", "number", "status"), DEATHS, ids=[f"{d[0]}{d[1]}" for d in DEATHS])
def test_death_during_a_call(
    host: Host, no_fork: bool, name: str, args: tuple[Any, ...], number: int | None, status: int | None
) -> None:
    with host(no_fork=no_fork) as server:
        with connect(server) as session:
            call(session, "t.say", "first words")
            call(session, "t.say", "naïve words")
            with pytest.raises(rpcflow.SessionCrashedError) as caught:
                call(session, name, *args)
            error = caught.value
            assert (error.signal, error.status, error.call) == (number, status, name)
            assert "naïve words" in error.last_words
            assert error.last_words in str(error)
            assert name in str(error)
            assert (signal.Signals(number).name if number else f"status {status}") in str(error)
            with pytest.raises(rpcflow.RPCError):
                call(session, "t.echo", 1)
        works(server)


def test_death_in_the_async_api(run: Run, host: Host) -> None:
    async def main(port: int) -> None:
        async with rpcflow.connect(HOST, port) as session:
            with pytest.raises(rpcflow.SessionCrashedError) as caught:
                await call_async(session, "t.exit", 7)
            assert caught.value.status == 7

    with host() as server:
        run(main, server.port)
        works(server)


def test_death_between_calls(host: Host) -> None:
    with host() as server:
        with connect(server) as session:
            pid = call(session, "t.pid")
            until(lambda: sleeps(pid))  # else it may be killed with an answer half-way on the line, for all we know
            os.kill(pid, signal.SIGKILL)
            until(lambda: not exists(pid))
            with pytest.raises(rpcflow.SessionCrashedError) as caught:
                call(session, "t.echo", 1)
            assert caught.value.signal == signal.SIGKILL
            assert caught.value.call is None
        works(server)


def test_others_go_on(host: Host) -> None:
    with host(max_sessions=2) as server:
        with connect(server) as other:
            with connect(server) as session, pytest.raises(rpcflow.SessionCrashedError):
                call(session, "t.segfault")
            assert call(other, "t.echo", 5) == 5


@pytest.mark.parametrize("kind", ["MemoryError", "SystemExit", "RecursionError", "KeyboardInterrupt"])
def test_errors_that_are_no_death(host: Host, no_fork: bool, kind: str) -> None:
    with host(no_fork=no_fork) as server, connect(server) as session:
        with pytest.raises(rpcflow.RemoteError, match="on purpose"):
            call(session, "t.fail", kind)
        assert call(session, "t.echo", 1) == 1


def test_stock_client_reads_it_too(host: Host) -> None:
    """A client that has not asked for structured errors gets words."""
    with host() as server, Raw(server).open() as raw:
        worker = _workers(server)[0]
        until(lambda: sleeps(worker))
        os.kill(worker, signal.SIGKILL)
        assert raw.error().startswith("SessionCrashedError: ")
        assert raw.ended()


def _workers(server: rpcflow.Server) -> list[int]:
    """Those that serve somebody: the one forked ahead came later."""
    from .support import children

    return sorted(children(server._launcher.pid))


def test_output_is_passed_on_and_the_last_of_it_kept(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    with host() as server, connect(server) as session:
        call(session, "t.say_out", "out, not flushed; ")
        for i in range(300):
            call(session, "t.say", f"line {i}")
        with pytest.raises(rpcflow.SessionCrashedError) as caught:
            call(session, "t.signal", int(signal.SIGTERM))
        lines = caught.value.last_words.splitlines()
        assert lines[-1] == "line 299"
        assert 20 <= len(lines) <= 100
    assert "line 0\n" in capfd.readouterr().err


def test_long_line_is_cut(host: Host) -> None:
    with host() as server, connect(server) as session:
        call(session, "t.say", "x" * 100_000)
        with pytest.raises(rpcflow.SessionCrashedError) as caught:
            call(session, "t.exit", 3)
        assert 0 < len(caught.value.last_words) < 2000


def test_one_that_prints_for_ever_does_not_hold_others_up(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", None)  # a server without one, and no flood for the reader of this test's output
    mark = tmp_path / "mark"
    with host(max_sessions=2) as server, connect(server) as session:

        def flood() -> None:
            with pytest.raises(rpcflow.RPCError):
                call(session, "t.flood", str(mark))

        thread = threading.Thread(target=flood)
        thread.start()
        until(mark.exists)
        for _ in range(3):
            works(server)
        os.kill(_workers(server)[0], signal.SIGKILL)
        thread.join(30)
        assert not thread.is_alive()


def test_standard_error_that_fails(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose own standard error nobody reads goes on."""

    class Broken:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Broken())
    with host() as server, connect(server) as session:
        call(session, "t.say", "unheard")
        with pytest.raises(rpcflow.SessionCrashedError, match="unheard"):
            call(session, "t.exit", 3)


def test_death_before_the_first_answer(host: Host) -> None:
    """What a spawned worker has to import fails: the client is told, in a form that it understands then."""

    def bad() -> None:
        raise LookupError("no such board")

    with host(bad, no_fork=True) as server:
        with pytest.raises(rpcflow.RPCError, match=r"status 1(.|\n)*LookupError: no such board"):
            connect(server)
        with Raw(server, hello() + init()) as raw:
            assert raw.answer() is not None
            assert "no such board" in raw.error()
            assert raw.ended()


def test_spare_worker_that_has_died(host: Host) -> None:
    """The worker that was forked ahead is killed while it waits: another takes its place."""
    with host() as server:
        for _ in range(3):
            for pid in _workers(server):
                os.kill(pid, signal.SIGKILL)
                until(lambda pid=pid: not exists(pid))  # type: ignore[misc]
            works(server)


def test_threads_left_behind(host: Host, no_fork: bool) -> None:
    """A session ends at once, whatever user code has left running in it."""
    with host(no_fork=no_fork) as server:
        with connect(server) as session:
            call(session, "t.linger")
            pid = call(session, "t.pid")
        until(lambda: not exists(pid))
        works(server)
