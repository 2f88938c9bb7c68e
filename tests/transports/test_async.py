# SPDX-License-Identifier: Apache-2.0
"""The contract of rpcflow.transports.base, for channels of tasks, on both event loops."""

import os
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.link import DeviceLink
from rpcflow.protocol.values import FilePayload
from rpcflow.transports import AsyncChannel, Url, find_transport
from rpcflow.transports.async_link_channel import AsyncLinkChannel
from rpcflow.transports.async_sockets import AsyncSocketChannel
from rpcflow.transports.async_tls import AsyncTlsChannel
from rpcflow.transports.async_ws import AsyncWebSocketChannel
from rpcflow.transports.link_channel import LinkEnd
from rpcflow.transports.memory import channel_pair
from rpcflow.transports.sockets import tune
from rpcflow.transports.testing import AsyncFaultyChannel, Faults
from tests.line import Terminal

from .conftest import accept
from .device import ROOMY

pytestmark = pytest.mark.anyio
SOCKETS = ["ipv4", "ipv6", "name", "unix"]
STREAMS = ["ws", "tls", "wss"]
KINDS = [*SOCKETS, *STREAMS, "memory", "faulty ipv4", "tiny ipv4", "tiny memory", "unpolled unix", "serial"]
KINDS += [f"tiny {kind}" for kind in STREAMS]
TINY = Faults(receive_step=1000, send_step=777)
Opened = Callable[[], Any]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def opened(kind: str, listening: Callable[[str], Any], accepting: Callable[[Any], Any]) -> Opened:
    """An ``async with`` block around two connected channels; the second is the one that was accepted."""

    @asynccontextmanager
    async def open_pair() -> AsyncIterator[tuple[AsyncChannel, AsyncChannel]]:
        wrapper, _, inner = kind.rpartition(" ")
        near: AsyncChannel
        far: AsyncChannel
        terminal = None
        if inner == "memory":
            near, far = channel_pair()
        elif inner == "serial":
            terminal = Terminal()
            far = AsyncLinkChannel(LinkEnd(terminal.fd, DeviceLink(ROOMY), "the host"), lambda: None)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(far.begin)
                near = await find_transport("serial").connect(Url("serial", path=terminal.path))
        elif inner in STREAMS:
            listener, text = listening(inner)
            accepted = accepting(listener, inner)
            near = await find_transport(inner).connect(Url.parse(text))
            sock, tls, websocket = accepted.result()
            sock.setblocking(False)
            tune(sock)
            far = AsyncSocketChannel(sock)
            if tls is not None:
                far = AsyncTlsChannel(far, tls)
            if websocket is not None:
                far = AsyncWebSocketChannel(far, websocket)
        else:
            listener, text = listening(inner)
            url = Url.parse(text)
            poll = False if wrapper == "unpolled" else None
            near = await find_transport(url.scheme).connect(url, poll=poll)
            sock = accept(listener)
            sock.setblocking(False)
            tune(sock)
            far = AsyncSocketChannel(sock, poll)
        if wrapper in ("faulty", "tiny"):
            faults = TINY if wrapper == "tiny" else Faults()
            near, far = AsyncFaultyChannel(near, faults), AsyncFaultyChannel(far, faults)
        try:
            yield near, far
        finally:
            near.close()
            far.close()
            if terminal is not None:
                terminal.close()

    return open_pair


async def take(channel: AsyncChannel, count: int) -> bytes:
    """Exactly so many bytes, or fewer at the end."""
    data = bytearray(count)
    position = 0
    while position < count:
        step = await channel.receive_into(memoryview(data)[position:])
        if not step:
            break
        position += step
    return bytes(data[:position])


async def test_order_both_ways(opened: Opened) -> None:
    async with opened() as (near, far):
        for i in range(50):
            await near.send([b"ping %d;" % i])
            await far.send([b"pong %d;" % i])
        expected = b"".join(b"ping %d;" % i for i in range(50))
        assert await take(far, len(expected)) == expected
        expected = b"".join(b"pong %d;" % i for i in range(50))
        assert await take(near, len(expected)) == expected


async def test_gathered_sends_of_many_and_empty_parts(opened: Opened) -> None:
    async with opened() as (near, far), anyio.create_task_group() as tasks:
        parts: list[Any] = [b"", b"a", bytearray(b"bc"), memoryview(b""), memoryview(b"xdefx")[1:-1], b""]
        await near.send(parts)
        for nothing in ([], [b""], [b"", bytearray()]):
            await near.send(nothing)
        many = [b"%05d" % i for i in range(3000)]
        many[70] = b""
        tasks.start_soon(near.send, many)
        assert await take(far, 6 + 5 * 2999) == b"abcdef" + b"".join(many)


async def test_parts_of_other_item_sizes(opened: Opened) -> None:
    async with opened() as (near, far):
        await near.send([memoryview(bytearray(range(16))).cast("I"), memoryview(bytearray(8)).cast("d", [1])])
        assert await take(far, 24) == bytes(range(16)) + bytes(8)


async def test_large_transfer_both_ways_at_once(opened: Opened, kind: str) -> None:
    size = (1 if "tiny" in kind or kind in ("memory", "serial") else 16) << 20
    up, down = os.urandom(size), os.urandom(size)
    got: dict[str, bytes] = {}

    async def receive(channel: AsyncChannel, name: str) -> None:
        got[name] = await take(channel, size)

    async with opened() as (near, far):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(near.send, [up[: size // 2], memoryview(up)[size // 2 :]])
            tasks.start_soon(far.send, [down])
            tasks.start_soon(receive, far, "up")
            tasks.start_soon(receive, near, "down")
    assert got == {"up": up, "down": down}


@pytest.mark.parametrize("kind", ["ipv4", "unix", "faulty ipv4"])
async def test_large_parts_are_not_joined_or_copied(opened: Opened) -> None:
    size = 32 << 20
    data, target = bytearray(size), bytearray(size)
    view = memoryview(data)
    async with opened() as (near, far):
        tracemalloc.start()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(near.send, [b"", *(view[i : i + (1 << 20)] for i in range(0, size, 1 << 20)), data])
                position = 0
                while position < 2 * size:
                    position += await far.receive_into(memoryview(target)[position % size :])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("kind", [*SOCKETS, *STREAMS, "faulty ipv4", "tiny ipv4", "serial"])
async def test_files(opened: Opened, tmp_path: Path) -> None:
    data = os.urandom((4 << 20) + 17)
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file:
        fd = file.fileno()
        parts: list[Any] = [b"head", FilePayload(fd, len(data)), b"", FilePayload(fd, 0), b"mid", FilePayload(fd, 5, 3)]
        parts += [b"tail"]
        expected = b"head" + data + b"mid" + data[3:8] + b"tail"
        async with opened() as (near, far), anyio.create_task_group() as tasks:
            tasks.start_soon(near.send, parts)
            assert await take(far, len(expected)) == expected
        assert file.tell() == 0


@pytest.mark.parametrize("kind", [*SOCKETS, *STREAMS, "tiny ipv4", "serial"])
async def test_file_that_became_shorter(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"short")
    async with opened() as (near, _):
        with open(tmp_path / "file", "rb") as file:
            with pytest.raises(ConnectionLostError, match="shorter"):
                await near.send([FilePayload(file.fileno(), 100)])


async def test_end_of_stream_comes_after_all_data_and_again_and_again(opened: Opened) -> None:
    async with opened() as (near, far):
        await near.send([b"last words"])
        near.close()
        assert await take(far, 10) == b"last words"
        buffer = memoryview(bytearray(10))
        assert [await far.receive_into(buffer) for _ in range(3)] == [0, 0, 0]


async def test_a_peer_that_is_gone_ends_sending(opened: Opened) -> None:
    async with opened() as (near, far):
        far.close()
        with pytest.raises(ConnectionLostError):
            for _ in range(1000):
                await near.send([bytes(1 << 16)])
        with pytest.raises(ConnectionLostError):
            await near.send([bytes(1 << 16)])


async def test_after_close_every_call_raises(opened: Opened) -> None:
    async with opened() as (near, _):
        near.close()
        near.close()
        for _ in range(2):
            with pytest.raises(ConnectionLostError, match="closed"):
                await near.send([b"x"])
            with pytest.raises(ConnectionLostError, match="closed"):
                await near.send([b"x", b"y"])
            with pytest.raises(ConnectionLostError, match="closed"):
                await near.receive_into(memoryview(bytearray(1)))


async def test_close_while_another_task_receives(opened: Opened) -> None:
    caught: list[ConnectionLostError] = []

    async def receive(channel: AsyncChannel) -> None:
        try:
            await channel.receive_into(memoryview(bytearray(1)))
        except ConnectionLostError as error:
            caught.append(error)

    async with opened() as (near, _):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive, near)
            await anyio.wait_all_tasks_blocked()
            near.close()
    assert "closed" in str(caught[0])


async def test_close_while_another_task_sends(opened: Opened) -> None:
    caught: list[ConnectionLostError] = []

    async def send(channel: AsyncChannel) -> None:
        try:
            await channel.send([bytes(64 << 20)])
        except ConnectionLostError as error:
            caught.append(error)

    async with opened() as (near, _):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, near)
            await anyio.wait_all_tasks_blocked()
            near.close()
    assert "closed" in str(caught[0])


async def test_a_cancelled_receive_takes_nothing(opened: Opened) -> None:
    async with opened() as (near, far):
        buffer = memoryview(bytearray(10))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(near.receive_into, buffer)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        with anyio.move_on_after(0.01) as scope:
            await near.receive_into(buffer)
        assert scope.cancelled_caught
        await far.send([b"whole"])
        assert await take(near, 5) == b"whole"


async def test_cancelled_and_arrived_at_once_loses_nothing(opened: Opened) -> None:
    """Whichever comes first: the bytes are either given or still there."""
    async with opened() as (near, far):
        for _ in range(10):
            got: list[int] = []
            buffer = memoryview(bytearray(4))

            async def receive(into: memoryview = buffer, counts: list[int] = got) -> None:
                counts.append(await near.receive_into(into))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await anyio.wait_all_tasks_blocked()
                await far.send([b"abcd"])
                tasks.cancel_scope.cancel()
            count = got[0] if got else 0
            assert bytes(buffer[:count]) + await take(near, 4 - count) == b"abcd"


async def test_a_cancelled_send_ends(opened: Opened, kind: str) -> None:
    async with opened() as (near, far):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(near.send, [bytes(64 << 20)])
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        near.close()
        if kind.endswith(("tls", "wss")):  # there a stream that was cut is not taken for one that has ended
            with pytest.raises(ConnectionLostError, match=r"without a goodbye|reset"):
                await take(far, 64 << 20)
        else:
            assert len(await take(far, 64 << 20)) < 64 << 20


@pytest.mark.parametrize("kind", ["ipv4", "ipv6"])
async def test_a_reset_line_is_a_lost_connection(opened: Opened) -> None:
    async with opened() as (near, far):
        far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()  # with these settings the kernel resets the line
        with pytest.raises(ConnectionLostError, match="reset") as caught:
            await near.receive_into(memoryview(bytearray(1)))
        assert isinstance(caught.value.__cause__, OSError)


async def test_many_small_messages_to_and_fro(opened: Opened) -> None:
    async def echo(channel: AsyncChannel) -> None:
        buffer = memoryview(bytearray(100))
        while count := await channel.receive_into(buffer):
            await channel.send([buffer[:count]])

    async with opened() as (near, far), anyio.create_task_group() as tasks:
        tasks.start_soon(echo, far)
        for i in range(300):
            await near.send([i.to_bytes(4, "little")])
            assert int.from_bytes(await take(near, 4), "little") == i
        near.close()
