# SPDX-License-Identifier: Apache-2.0
"""What goes through between two sockets: all of it, in order, at the slower side's pace, to the last byte."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import anyio
import anyio.from_thread
import pytest

from rpcflow.proxy import relay as relay_module
from rpcflow.proxy.relay import SpliceRelay
from rpcflow.transports import bridge as bridge_module
from rpcflow.transports.async_sockets import AsyncSocketChannel
from rpcflow.transports.bridge import bridge, carry
from tests.server.support import descriptors, until


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(30)
    return near, far


class Line:
    """Two ends, and whatever carries between them in another thread."""

    def __init__(self, kind: str, portal: anyio.from_thread.BlockingPortal, relay: SpliceRelay | None) -> None:
        pair = socket.socketpair if kind == "unix" else tcp_pair
        self.near, self.inner_near = pair()
        self.far, self.inner_far = pair()
        for sock in (self.near, self.far):
            sock.settimeout(30)
        for sock in (self.inner_near, self.inner_far):
            sock.setblocking(False)
        self.relay = relay
        self.carried: Future[None] = portal.start_task_soon(self._carry)

    async def _carry(self) -> None:
        with self.inner_near, self.inner_far:
            if self.relay is not None:
                await self.relay.carry(self.inner_near, self.inner_far)
            else:
                await bridge(AsyncSocketChannel(self.inner_near, poll=False), self.inner_far)

    def close(self) -> None:
        self.near.close()
        self.far.close()
        self.carried.result(30)


def take(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (more := sock.recv(min(1 << 20, size - len(data)))):
        data += more
    return bytes(data)


@pytest.fixture(params=["trio", "asyncio"])
def portal(request: pytest.FixtureRequest) -> Iterator[anyio.from_thread.BlockingPortal]:
    before, threads = descriptors(), threading.active_count()
    with anyio.from_thread.start_blocking_portal(request.param) as made:
        yield made
    until(lambda: descriptors() <= before, "closing all descriptors")
    until(lambda: threading.active_count() <= threads, "ending all threads")


@pytest.fixture
def splicing(portal: anyio.from_thread.BlockingPortal) -> Iterator[SpliceRelay]:
    relay = SpliceRelay(stall=2.0)
    relay.start()
    task, _ = portal.start_task(run_relay, relay)
    yield relay
    task.cancel()
    relay.stop()


async def run_relay(relay: SpliceRelay, *, task_status: Any) -> None:
    task_status.started()
    await relay.run()


@pytest.fixture(params=["splice tcp", "splice unix", "tasks tcp"])
def line(
    request: pytest.FixtureRequest, portal: anyio.from_thread.BlockingPortal, splicing: SpliceRelay
) -> Iterator[Line]:
    how, kind = request.param.split()
    made = Line(kind, portal, splicing if how == "splice" else None)
    yield made
    made.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


def test_small_messages_to_and_fro(line: Line) -> None:
    for i in range(200):
        line.near.send(b"%4d" % i)
        assert take(line.far, 4) == b"%4d" % i
        line.far.send(b"%5d" % i)
        assert take(line.near, 5) == b"%5d" % i


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 1 << 20, (8 << 20) + 3])
def test_sizes(line: Line, pool: ThreadPoolExecutor, size: int) -> None:
    data = os.urandom(size)
    taking = pool.submit(take, line.far, size)
    line.near.sendall(data)
    assert taking.result() == data
    line.far.sendall(b"got it")
    assert take(line.near, 6) == b"got it"


def test_bulk_both_ways_at_once(line: Line, pool: ThreadPoolExecutor) -> None:
    up, down = os.urandom(24 << 20), os.urandom(24 << 20)
    taking = [pool.submit(take, line.far, len(up)), pool.submit(take, line.near, len(down))]
    sending = [pool.submit(line.near.sendall, up), pool.submit(line.far.sendall, down)]
    assert taking[0].result() == up
    assert taking[1].result() == down
    for future in sending:
        future.result()


def test_backpressure(line: Line) -> None:
    """Where nobody reads, only so much goes in; and then all of it comes out."""
    line.near.setblocking(False)
    sent = 0
    idle = 0
    chunk = os.urandom(1 << 20)
    while idle < 20:
        try:
            sent += line.near.send(chunk[sent % (1 << 20) :])
            idle = 0
        except BlockingIOError:
            idle += 1
            threading.Event().wait(0.01)
        assert sent < 64 << 20
    line.near.settimeout(30)
    line.near.shutdown(socket.SHUT_WR)
    data = take(line.far, 1 << 30)
    assert len(data) == sent
    assert data == (chunk * (sent // len(chunk) + 1))[:sent]


def test_pending_bytes_are_written_before_the_end(line: Line) -> None:
    data = os.urandom(3 << 20)
    sending = threading.Thread(target=lambda: (line.near.sendall(data), line.near.close()))
    sending.start()
    assert take(line.far, 1 << 30) == data
    sending.join()
    line.far.close()
    line.carried.result(30)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end that is to close is not waited for long."""
    for module in (relay_module, bridge_module):
        monkeypatch.setattr(module, "LINGER_SECONDS", 0.1)


def test_one_end_going_closes_the_other(line: Line, hurried: None) -> None:
    line.near.close()
    assert line.far.recv(1) == b""
    line.carried.result(30)  # though the far end has not closed


def test_last_words_arrive_while_the_other_is_sending(line: Line, pool: ThreadPoolExecutor) -> None:
    """A server says why it ends, and closes, while a client sends much: the client can read it."""

    def send() -> None:
        try:
            line.near.sendall(bytes(256 << 20))
        except OSError:
            pass  # ended in the middle: that is the point

    sending = pool.submit(send)
    line.far.recv(1 << 16)
    line.far.sendall(b"time is up")
    line.far.shutdown(socket.SHUT_WR)
    assert take(line.near, 10) == b"time is up"
    line.carried.result(30)
    sending.result(30)


def test_a_reset(line: Line, hurried: None) -> None:
    line.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.near.close()
    assert line.far.recv(1) == b""
    line.carried.result(30)


def test_an_end_that_takes_no_more_is_given_up(portal: anyio.from_thread.BlockingPortal, splicing: SpliceRelay) -> None:
    """What an end that has gone has said waits for the other only as long as that takes some of it."""
    line = Line("unix", portal, splicing)
    line.near.setblocking(False)
    idle = 0
    while idle < 20:
        try:
            line.near.send(bytes(1 << 16))
            idle = 0
        except BlockingIOError:
            idle += 1
            threading.Event().wait(0.01)
    line.near.close()
    line.carried.result(30)
    line.close()


def test_idle_pairs_hold_no_pipes(portal: anyio.from_thread.BlockingPortal, splicing: SpliceRelay) -> None:
    lines = [Line("tcp", portal, splicing) for _ in range(8)]
    with ThreadPoolExecutor(1) as pool:
        for each in lines:
            before = descriptors()
            taking = pool.submit(take, each.far, 2 << 20)
            each.near.sendall(bytes(2 << 20))
            assert len(taking.result()) == 2 << 20
            each.far.send(b"x")
            assert each.near.recv(1) == b"x"
            until(lambda before=before: descriptors() <= before + 2 * relay_module._SPARE_PIPES, "giving pipes back")
    until(lambda: not any(way.pipe for pair in splicing._pairs.values() for way in pair.ways), "giving pipes back")
    assert len(splicing._spare) <= relay_module._SPARE_PIPES
    for each in lines:
        each.close()


def test_without_pipes_it_still_goes(line: Line, monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor) -> None:
    def none() -> None:
        raise OSError("no more descriptors")

    monkeypatch.setattr(relay_module, "_Pipe", none)
    data = os.urandom(4 << 20)
    taking = pool.submit(take, line.far, len(data))
    line.near.sendall(data)
    assert taking.result() == data


def test_a_fault_ends_one_pair_only(
    portal: anyio.from_thread.BlockingPortal,
    splicing: SpliceRelay,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad, good = Line("tcp", portal, splicing), Line("tcp", portal, splicing)
    pass_on = SpliceRelay._pass_on

    def faulty(self: SpliceRelay, pair: Any, fd: int) -> bool:
        if fd == bad.inner_near.fileno():
            raise ZeroDivisionError
        return pass_on(self, pair, fd)

    monkeypatch.setattr(SpliceRelay, "_pass_on", faulty)
    bad.near.send(b"x")
    bad.carried.result(30)
    assert "ZeroDivisionError" in caplog.text
    good.near.send(b"fine")
    assert take(good.far, 4) == b"fine"
    for each in (bad, good):
        each.close()


@pytest.mark.anyio
async def test_cancelled(anyio_backend: str) -> None:
    relay = SpliceRelay()
    relay.start()
    near, inner_near = tcp_pair()
    far, inner_far = tcp_pair()
    try:
        for sock in (inner_near, inner_far):
            sock.setblocking(False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay.run)
            with anyio.move_on_after(0.05):
                await relay.carry(inner_near, inner_far)
            assert not relay._pairs
            near.send(b"x")
            with anyio.move_on_after(0.05):
                await relay.carry(inner_near, inner_far)
            assert far.recv(1) == b"x"
            tasks.cancel_scope.cancel()
    finally:
        relay.stop()
        for sock in (near, far, inner_near, inner_far):
            sock.close()


@pytest.mark.anyio
async def test_carrying_between_channels_is_cancelled(anyio_backend: str) -> None:
    near, inner_near = tcp_pair()
    far, inner_far = tcp_pair()
    for sock in (inner_near, inner_far):
        sock.setblocking(False)
    with anyio.move_on_after(0.05):
        await carry(AsyncSocketChannel(inner_near), AsyncSocketChannel(inner_far))
    assert inner_near.fileno() == inner_far.fileno() == -1
    for sock in (near, far):
        assert sock.recv(1) == b""
        sock.close()


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param
