# SPDX-License-Identifier: Apache-2.0
"""Who is let in, who waits, who is turned away."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

import rpcflow
from rpcflow.protocol.handshake import MAGIC, Answer
from rpcflow.server.queue import TurnQueue

from .conftest import Host, Run
from .support import (
    PATIENCE,
    SHUTDOWN,
    Raw,
    call,
    connect,
    find,
    hello,
    init,
    integer,
    invoke,
    packet,
    until,
    works,
)


def waiting(server: rpcflow.Server, count: int) -> None:
    until(lambda: server._queue.waiting == count, f"{count} waiting")


def test_wrong_key_is_told_at_once(host: Host) -> None:
    """Also while the server is busy, and others wait."""
    with host(key="right") as server, connect(server, "right"), Raw(server, hello("right")):
        waiting(server, 1)
        for key in ("wrong", "", "right2", "righ"):
            with pytest.raises(rpcflow.KeyMismatchError) as caught:
                connect(server, key)
            assert caught.value.key == key
        with Raw(server, hello("wrong") + init() + find("t.echo")) as raw:  # pipelined bytes do not swallow the answer
            assert raw.answer() == Answer.MISMATCH
            assert raw.ended()
        assert server._queue.waiting == 1


def test_waiters_are_served_in_order(host: Host) -> None:
    with host() as server, contextlib.ExitStack() as stack:
        first = connect(server)
        waiters = []
        for i in range(5):
            waiters.append(stack.enter_context(Raw(server, hello() + init())))
            waiting(server, i + 1)
        first.close()
        for i, waiter in enumerate(waiters):
            assert waiter.answer() == MAGIC
            assert waiter.packet() is not None
            assert server._queue.waiting == 4 - i
            for later in waiters[i + 1 :]:
                later.socket.setblocking(False)
                with pytest.raises(BlockingIOError):
                    later.socket.recv(1)
                later.socket.settimeout(PATIENCE)
            waiter.send(packet(SHUTDOWN))
            waiter.socket.close()


@pytest.mark.parametrize("pipelined", [b"", init() + find("t.echo"), bytes(30_000)], ids=["", "some", "more"])
def test_waiter_that_goes_is_dropped(host: Host, pipelined: bytes) -> None:
    with host() as server, connect(server) as session:
        with Raw(server, hello()) as raw:
            waiting(server, 1)
            raw.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                raw.socket.send(pipelined)
        waiting(server, 0)
        assert call(session, "t.echo", 1) == 1


def test_wait_can_be_given_up(host: Host) -> None:
    with host() as server:
        with connect(server):
            with pytest.raises(rpcflow.WaitTimeoutError):
                connect(server, wait_timeout=0.2)
            waiting(server, 0)
        works(server)


def test_what_is_pipelined_meanwhile_is_kept(host: Host) -> None:
    with host() as server:
        with connect(server):
            raw = Raw(server, hello() + init())
            waiting(server, 1)
            names = ["t.echo", "t.pid", "no such function"] * 500
            raw.send(b"".join(find(name) for name in names))
        with raw:
            assert raw.answer() == MAGIC
            assert raw.packet() is not None
            handles = [raw.handle() for _ in names]
            assert all(handles[0::3] + handles[1::3])
            assert not any(handles[2::3])
            raw.send(invoke(handles[0], integer(5)))
            assert raw.packet() is not None


def test_so_many_wait_and_no_more(host: Host) -> None:
    with host() as server, contextlib.ExitStack() as stack:
        stack.enter_context(connect(server))
        waiters = [stack.enter_context(Raw(server, hello())) for _ in range(128)]
        waiting(server, 128)
        with pytest.raises(rpcflow.ConnectionLostError):
            connect(server)
        with Raw(server, hello() + init()) as raw:
            assert raw.answer() is None
        with pytest.raises(rpcflow.KeyMismatchError):
            connect(server, "wrong")
        waiters[-1].socket.close()  # a place is free again
        waiting(server, 127)
        stack.enter_context(Raw(server, hello()))
        waiting(server, 128)


def test_max_sessions(host: Host, no_fork: bool) -> None:
    with host(max_sessions=3, no_fork=no_fork) as server, contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(connect(server)) for _ in range(3)]
        assert len({call(session, "t.pid") for session in sessions}) == 3
        with Raw(server, hello() + init()) as raw:
            waiting(server, 1)
            sessions[1].close()
            assert raw.answer() == MAGIC
        for session in (sessions[0], sessions[2]):
            assert call(session, "t.echo", 1) == 1


def test_many_at_once(host: Host, no_fork: bool) -> None:
    """Spawned workers share what they read their options from; forked ones their template."""
    with host(max_sessions=4, no_fork=no_fork) as server:
        pids: list[int] = []

        def client() -> None:
            with connect(server) as session:
                pids.append(call(session, "t.pid"))

        threads = [threading.Thread(target=client) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(set(pids)) == 12


def test_strangers_hold_nobody_up(host: Host) -> None:
    """Silent ones, slow ones, and those who leave at once."""
    with host() as server, contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(Raw(server))
        for length in range(1, 8):
            stack.enter_context(Raw(server, hello()[:length]))
        for _ in range(50):
            Raw(server).socket.close()
        works(server)
        slow = stack.enter_context(Raw(server))
        for byte in hello()[:-1]:
            slow.send(bytes([byte]))
            works(server)
        slow.send(hello()[-1:])
        assert slow.answer() == MAGIC


def test_handshake_timeout(host: Host) -> None:
    with host(timeout=0.2) as server:
        for said in (b"", hello()[:3], hello()[:-1]):
            with Raw(server, said) as raw:
                assert raw.ended()
        works(server)


def test_timeout_does_not_limit_waiting_or_idling(host: Host, tmp_path: Path) -> None:
    with host(timeout=0.2) as server:
        with connect(server) as session, Raw(server, hello() + init()) as raw:
            waiting(server, 1)
            # A stranger that came later has been dropped by now: the clock ran for longer than that.
            for _ in range(2):
                with Raw(server) as stranger:
                    assert stranger.ended()
            assert server._queue.waiting == 1
            assert call(session, "t.echo", 1) == 1
            session.close()
            assert raw.answer() == MAGIC


def test_words_after_the_key(host: Host) -> None:
    """Words that nobody knows are passed over; a budget that is no number is refused."""
    with host() as server:
        with Raw(server, hello(words=" -timeout=30 -color=red") + init()) as raw:
            assert raw.answer() == MAGIC
        for wrong in ("ten", "-1", "inf", "nan"):
            with Raw(server, hello(words=f" -timeout={wrong}")) as raw:
                assert raw.answer() == Answer.MISMATCH
        works(server)


def test_a_server_is_not_served(host: Host) -> None:
    from rpcflow.protocol.handshake import encode_hello

    with host() as server:
        with Raw(server, encode_hello("server:")) as raw:
            assert raw.answer() == Answer.MISMATCH
        works(server)


# ---------------------------------------------------------------------------------------------- the queue by itself


def test_turn_queue(run: Run) -> None:
    async def main() -> None:
        queue = TurnQueue(1, limit=2)
        first = queue.join()
        assert first.served
        assert not queue.full()
        second, third = queue.join(), queue.join()
        assert queue.full()
        assert queue.waiting == 2
        second.leave()
        second.leave()
        assert not await second.wait()
        assert queue.waiting == 1
        first.done()
        assert await third.wait()
        third.leave()  # too late: it has its turn
        assert third.served
        third.done()
        fourth = queue.join()
        assert fourth.served
        fifth = queue.join()
        fifth.done()  # given up
        assert queue.waiting == 0
        fourth.done()
        assert queue.join().served

    run(main)
