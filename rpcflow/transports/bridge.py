# SPDX-License-Identifier: Apache-2.0
"""Carries bytes between two channels of any transport; with :func:`bridge` for a process that knows only sockets.

A channel may have one method more than the contract asks for: ``end_sending()``, which says the end of our stream
without closing, never blocks and raises nothing. Where it is missing, the other end learns of it by the close.
"""

import socket
from typing import Final

import anyio
import anyio.lowlevel

from rpcflow.errors import ConnectionLostError

from .accepting import LINGER_SECONDS
from .async_sockets import AsyncSocketChannel
from .base import AsyncChannel
from .sockets import end_sending

_BUFFER_NBYTES: Final = 1 << 18
"""Taken from one side before it goes to the other: each direction holds no more than this."""


async def bridge(channel: AsyncChannel, sock: socket.socket) -> None:
    """Carry bytes both ways until either side ends, and all it has said is with the other.

    Both are closed when this returns, raises or is cancelled. A line that breaks is an end like any other.

    Args:
        channel: connected.
        sock: connected, one end of a socket pair, say; it is put into non-blocking mode.
    """
    sock.setblocking(False)
    await carry(channel, AsyncSocketChannel(sock, poll=False))


async def carry(near: AsyncChannel, far: AsyncChannel) -> None:
    """As :func:`bridge`, between two channels."""
    try:
        async with anyio.create_task_group() as tasks:

            async def one_way(source: AsyncChannel, target: AsyncChannel) -> None:
                await _copy(source, target)
                end_sending(target)
                tasks.cancel_scope.deadline = anyio.current_time() + LINGER_SECONDS

            tasks.start_soon(one_way, near, far)
            tasks.start_soon(one_way, far, near)
    finally:
        near.close()
        far.close()


async def _copy(source: AsyncChannel, target: AsyncChannel) -> None:
    buffer = memoryview(bytearray(_BUFFER_NBYTES))
    try:
        while count := await source.receive_into(buffer):
            await target.send([buffer[:count]])
            await anyio.lowlevel.checkpoint()  # two quick ends must not keep all others waiting
    except ConnectionLostError:
        pass  # the end of either is the end of both
