# SPDX-License-Identifier: Apache-2.0
"""The contract of rpcflow.transports.base, for channels of threads."""

import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.link import DeviceLink
from rpcflow.protocol.values import FilePayload
from rpcflow.transports import BlockingChannel, Url, find_transport
from rpcflow.transports.link_channel import BlockingLinkChannel, LinkEnd
from rpcflow.transports.memory import blocking_channel_pair
from rpcflow.transports.sockets import BlockingSocketChannel, tune
from rpcflow.transports.testing import Faults, FaultyChannel
from rpcflow.transports.tls import BlockingTlsChannel
from rpcflow.transports.ws import BlockingWebSocketChannel
from tests.line import Terminal

from .conftest import accept
from .device import ROOMY

Pair = tuple[BlockingChannel, BlockingChannel]
SOCKETS = ["ipv4", "ipv6", "name", "unix"]
TINY = Faults(receive_step=1000, send_step=777)


STREAMS = ["ws", "tls", "wss"]
KINDS = [*SOCKETS, *STREAMS, "memory", "faulty ipv4", "tiny ipv4", "tiny memory", "unpolled unix", "serial"]
KINDS += [f"tiny {kind}" for kind in STREAMS]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def pair(kind: str, listening: Callable[[str], Any], accepting: Callable[[Any], Any]) -> Iterator[Pair]:
    """Two connected channels; the second is the one that was accepted."""
    wrapper, _, inner = kind.rpartition(" ")
    near: BlockingChannel
    far: BlockingChannel
    terminal = None
    if inner == "memory":
        near, far = blocking_channel_pair()
    elif inner == "serial":
        terminal = Terminal()
        far = BlockingLinkChannel(LinkEnd(terminal.fd, DeviceLink(ROOMY), "the host"), lambda: None)
        with ThreadPoolExecutor(1) as pool:
            begun = pool.submit(far.begin, time.monotonic() + 10)
            near = find_transport("serial").connect_blocking(Url("serial", path=terminal.path))
            begun.result()
    elif inner in STREAMS:
        listener, text = listening(inner)
        accepted = accepting(listener, inner)
        near = find_transport(inner).connect_blocking(Url.parse(text), deadline=time.monotonic() + 10)
        sock, tls, websocket = accepted.result()
        tune(sock)
        sock.setblocking(True)
        far = BlockingSocketChannel(sock)
        if tls is not None:
            far = BlockingTlsChannel(far, tls)
        if websocket is not None:
            far = BlockingWebSocketChannel(far, websocket)
    else:
        listener, text = listening(inner)
        url = Url.parse(text)
        poll = False if wrapper == "unpolled" else None
        near = find_transport(url.scheme).connect_blocking(url, deadline=time.monotonic() + 10, poll=poll)
        sock = accept(listener)
        sock.setblocking(True)
        tune(sock)
        far = BlockingSocketChannel(sock, poll)
    if wrapper in ("faulty", "tiny"):
        faults = TINY if wrapper == "tiny" else Faults()
        near, far = FaultyChannel(near, faults), FaultyChannel(far, faults)
    yield near, far
    near.close()
    far.close()
    if terminal is not None:
        terminal.close()


@pytest.fixture
def spawn() -> Iterator[Callable[..., "Future[Any]"]]:
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def take(channel: BlockingChannel, count: int) -> bytes:
    """Exactly so many bytes, or fewer at the end."""
    data = bytearray(count)
    position = 0
    while position < count:
        step = channel.receive_into(memoryview(data)[position:], time.monotonic() + 60)
        if not step:
            break
        position += step
    return bytes(data[:position])


def test_order_both_ways(pair: Pair) -> None:
    near, far = pair
    for i in range(50):
        near.send([b"ping %d;" % i])
        far.send([b"pong %d;" % i])
    expected = b"".join(b"ping %d;" % i for i in range(50))
    assert take(far, len(expected)) == expected
    expected = b"".join(b"pong %d;" % i for i in range(50))
    assert take(near, len(expected)) == expected


@pytest.mark.parametrize("deadline", [None, 60.0])
def test_gathered_sends_of_many_and_empty_parts(pair: Pair, spawn: Callable[..., Any], deadline: float | None) -> None:
    near, far = pair
    ends = None if deadline is None else time.monotonic() + deadline
    parts: list[Any] = [b"", b"a", bytearray(b"bc"), memoryview(b""), memoryview(b"xdefx")[1:-1], b""]
    near.send(parts, ends)
    near.send([], ends)
    near.send([b""], ends)
    near.send([b"", bytearray()], ends)
    many = [b"%05d" % i for i in range(3000)]
    many[70] = b""
    sending = spawn(near.send, many, ends)
    assert take(far, 6 + 5 * 2999) == b"abcdef" + b"".join(many)
    sending.result()


def test_parts_of_other_item_sizes(pair: Pair) -> None:
    near, far = pair
    near.send([memoryview(bytearray(range(16))).cast("I"), memoryview(bytearray(8)).cast("d", [1])])
    assert take(far, 24) == bytes(range(16)) + bytes(8)


def test_receives_at_least_one_byte_and_no_more_than_fit(pair: Pair) -> None:
    near, far = pair
    near.send([b"abc"])
    buffer = bytearray(2)
    first = far.receive_into(memoryview(buffer))
    assert 1 <= first <= 2
    assert take(far, 3 - first) == b"abc"[first:]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "serial"])  # that one is for one thread at a time
def test_large_transfer_both_ways_at_once(pair: Pair, kind: str, spawn: Callable[..., Any]) -> None:
    near, far = pair
    size = (2 if "tiny" in kind or kind == "memory" else 24) << 20
    up, down = os.urandom(size), os.urandom(size)
    sending = [spawn(near.send, [up[: size // 2], memoryview(up)[size // 2 :]]), spawn(far.send, [down])]
    receiving = [spawn(take, far, size), spawn(take, near, size)]
    assert [f.result() for f in receiving] == [up, down]
    for future in sending:
        future.result()


@pytest.mark.parametrize("kind", ["ipv4", "unix", "faulty ipv4"])
def test_large_parts_are_not_joined_or_copied(pair: Pair, spawn: Callable[..., Any]) -> None:
    near, far = pair
    size = 32 << 20
    data, target = bytearray(size), bytearray(size)
    view = memoryview(data)

    def receive() -> None:
        position = 0
        while position < 2 * size:
            position += far.receive_into(memoryview(target)[position % size :])

    tracemalloc.start()
    try:
        receiving = spawn(receive)
        near.send([b"", *(view[i : i + (1 << 20)] for i in range(0, size, 1 << 20)), data])
        receiving.result()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("kind", [*SOCKETS, *STREAMS, "faulty ipv4", "tiny ipv4", "serial"])
@pytest.mark.parametrize("timed", [False, True])
def test_files(pair: Pair, tmp_path: Path, spawn: Callable[..., Any], timed: bool) -> None:
    near, far = pair
    data = os.urandom((4 << 20) + 17)
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file:
        fd = file.fileno()
        parts: list[Any] = [b"head", FilePayload(fd, len(data)), b"", FilePayload(fd, 0), b"mid", FilePayload(fd, 5, 3)]
        parts += [b"tail"]
        sending = spawn(near.send, parts, time.monotonic() + 60 if timed else None)
        expected = b"head" + data + b"mid" + data[3:8] + b"tail"
        assert take(far, len(expected)) == expected
        sending.result()
        assert file.tell() == 0


@pytest.mark.parametrize("kind", [*SOCKETS, *STREAMS, "tiny ipv4", "serial"])
def test_file_that_became_shorter(pair: Pair, tmp_path: Path) -> None:
    near, _ = pair
    (tmp_path / "file").write_bytes(b"short")
    with open(tmp_path / "file", "rb") as file:
        with pytest.raises(ConnectionLostError, match="shorter"):
            near.send([FilePayload(file.fileno(), 100)])


@pytest.mark.parametrize("kind", ["memory"])
def test_memory_takes_no_files(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="files"):
        pair[0].send([FilePayload(0, 1)])


def test_end_of_stream_comes_after_all_data_and_again_and_again(pair: Pair) -> None:
    near, far = pair
    near.send([b"last words"])
    near.close()
    assert take(far, 10) == b"last words"
    buffer = memoryview(bytearray(10))
    assert [far.receive_into(buffer) for _ in range(3)] == [0, 0, 0]
    assert far.receive_into(buffer, time.monotonic() + 5) == 0


def test_a_peer_that_is_gone_ends_sending(pair: Pair) -> None:
    near, far = pair
    far.close()
    with pytest.raises(ConnectionLostError):
        for _ in range(1000):
            near.send([bytes(1 << 16)])
    with pytest.raises(ConnectionLostError):
        near.send([bytes(1 << 16)], time.monotonic() + 5)


def test_after_close_every_call_raises(pair: Pair) -> None:
    near, _ = pair
    near.close()
    near.close()
    for deadline in (None, time.monotonic() + 5, time.monotonic() - 1):
        for _ in range(2):
            with pytest.raises(ConnectionLostError, match="closed"):
                near.send([b"x"], deadline)
            with pytest.raises(ConnectionLostError, match="closed"):
                near.send([b"x", b"y"], deadline)
            with pytest.raises(ConnectionLostError, match="closed"):
                near.receive_into(memoryview(bytearray(1)), deadline)
    near.close()


@pytest.mark.parametrize("deadline", [None, 60.0])
def test_close_while_another_thread_receives(pair: Pair, spawn: Callable[..., Any], deadline: float | None) -> None:
    near, _ = pair
    started = threading.Event()

    def receive() -> None:
        started.set()
        near.receive_into(memoryview(bytearray(1)), None if deadline is None else time.monotonic() + deadline)

    receiving = spawn(receive)
    started.wait()
    time.sleep(0.05)  # whether it is inside by now makes no difference to what is asserted
    near.close()
    with pytest.raises(ConnectionLostError, match="closed"):
        receiving.result(10)


@pytest.mark.parametrize("deadline", [None, 60.0])
def test_close_while_another_thread_sends(pair: Pair, spawn: Callable[..., Any], deadline: float | None) -> None:
    near, _ = pair
    sending = spawn(near.send, [bytes(64 << 20)], None if deadline is None else time.monotonic() + deadline)
    time.sleep(0.05)
    near.close()
    with pytest.raises(ConnectionLostError):
        sending.result(10)


def test_a_deadline_takes_nothing(pair: Pair) -> None:
    near, far = pair
    buffer = memoryview(bytearray(10))
    for seconds in (-1.0, 0.0, 0.02):
        with pytest.raises(TimeoutError) as caught:
            near.receive_into(buffer, time.monotonic() + seconds)
        assert not isinstance(caught.value, ConnectionLostError)
    far.send([b"whole"])
    assert take(near, 5) == b"whole"


def test_a_deadline_in_sending(pair: Pair) -> None:
    near, _ = pair
    with pytest.raises(TimeoutError) as caught:
        near.send([bytes(64 << 20)], time.monotonic() + 0.05)
    assert not isinstance(caught.value, ConnectionLostError)


def test_a_deadline_that_is_far_away(pair: Pair) -> None:
    near, far = pair
    near.send([b"x"], float("inf"))
    assert far.receive_into(memoryview(bytearray(1)), float("inf")) == 1
    near.send([b"x"], time.monotonic() + 1e9)
    assert far.receive_into(memoryview(bytearray(1)), time.monotonic() + 1e9) == 1


@pytest.mark.parametrize("kind", ["ipv4", "ipv6"])
def test_a_reset_line_is_a_lost_connection(pair: Pair) -> None:
    import socket
    import struct

    near, far = pair
    assert isinstance(far, BlockingSocketChannel)
    far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.socket.close()  # with these settings the kernel resets the line
    with pytest.raises(ConnectionLostError, match="reset") as caught:
        near.receive_into(memoryview(bytearray(1)))
    assert isinstance(caught.value.__cause__, OSError)


def test_many_small_messages_to_and_fro(pair: Pair, spawn: Callable[..., Any]) -> None:
    near, far = pair

    def echo() -> None:
        buffer = memoryview(bytearray(100))
        while count := far.receive_into(buffer):
            far.send([buffer[:count]])

    echoing = spawn(echo)
    for i in range(300):
        near.send([i.to_bytes(4, "little")])
        assert int.from_bytes(take(near, 4), "little") == i
    near.close()
    echoing.result()


@pytest.mark.parametrize("kind", ["ipv4"])
def test_a_peer_that_tcp_gave_up_is_lost_not_late(pair: Pair) -> None:
    """ETIMEDOUT is Python's TimeoutError too; here that word is for deadlines."""
    import errno

    class GivenUp:
        def fileno(self) -> int:
            return 1

        def recv_into(self, *args: Any) -> int:
            raise OSError(errno.ETIMEDOUT, "Connection timed out")

        def sendmsg(self, *args: Any) -> int:
            raise OSError(errno.ETIMEDOUT, "Connection timed out")

    near, _ = pair
    assert isinstance(near, BlockingSocketChannel)
    sock, near.socket = near.socket, GivenUp()  # type: ignore[assignment]
    try:
        with pytest.raises(ConnectionLostError, match="timed out"):
            near.receive_into(memoryview(bytearray(1)))
        with pytest.raises(ConnectionLostError, match="timed out"):
            near.send([b"a", b"b"])
    finally:
        near.socket = sock
