# SPDX-License-Identifier: Apache-2.0
"""Async channels over connected stream sockets, on trio and (by anyio) asyncio."""

import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import anyio
import trio

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.values import Part

from .polling import BUDGET, AdaptivePolling
from .sockets import NOSIGNAL, Outgoing, lost

_perf_counter = time.perf_counter
_ERRORS: Final = (OSError, ValueError, anyio.ClosedResourceError, trio.ClosedResourceError)


def _always() -> bool:
    return True


def on_trio() -> bool:
    """Whether the caller's event loop is trio's."""
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True


class AsyncSocketChannel:
    """A connected socket for tasks, on trio and (by anyio) asyncio.

    Args:
        sock: it is this channel's from now on, and must not be in blocking mode.
        poll: False turns polling off. On asyncio it is off: there is no telling whether other tasks want to run.
    """

    def __init__(self, sock: socket.socket, poll: bool | None = None) -> None:
        self.socket = sock
        self._open = True
        self._wait_readable: Callable[[Any], Awaitable[None]] = anyio.wait_readable
        self._wait_writable: Callable[[Any], Awaitable[None]] = anyio.wait_writable
        self._alone: Callable[[], bool] = _always
        if on_trio():
            self._wait_readable = trio.lowlevel.wait_readable
            self._wait_writable = trio.lowlevel.wait_writable
            statistics = trio.lowlevel.current_statistics
            self._alone = lambda: statistics().tasks_runnable == 0
        else:
            poll = False
        self._polls = poll is not False
        self._polling = AdaptivePolling(poll)
        self._asked = False

    async def send(self, parts: Sequence[Part]) -> None:
        try:
            if len(parts) == 1 and type(parts[0]) is bytes:
                data = parts[0]
                try:
                    sent = self.socket.send(data, NOSIGNAL)
                except BlockingIOError:
                    sent = 0
                if sent == len(data):
                    self._asked = True
                    return
                parts = [data[sent:]]
            outgoing = Outgoing(parts)
            while outgoing:
                try:
                    outgoing.send(self.socket, NOSIGNAL)
                except BlockingIOError:
                    await self._wait_writable(self.socket)
        except _ERRORS as error:
            raise self._lost(error) from error

    async def receive_into(self, buffer: memoryview) -> int:
        receive = self.socket.recv_into
        try:
            if self._asked and not self._polls:
                self._asked = False  # what has just been asked for is not there yet
            else:
                try:
                    return receive(buffer)
                except BlockingIOError:
                    pass
            if self._polls and self._polling.worthwhile() and self._alone():
                ends = _perf_counter() + BUDGET
                while _perf_counter() < ends:
                    try:
                        count = receive(buffer)
                    except BlockingIOError:
                        continue
                    if _perf_counter() > ends:
                        self._polling.miss()
                    else:
                        self._polling.hit()
                    return count
                self._polling.miss()
            while True:
                await self._wait_readable(self.socket)
                try:
                    return receive(buffer)
                except BlockingIOError:
                    continue
        except _ERRORS as error:
            raise self._lost(error) from error

    def close(self) -> None:
        if self._open:
            self._open = self._asked = False
            anyio.notify_closing(self.socket)
            self.socket.close()

    def _lost(self, error: Exception) -> ConnectionLostError:
        if self._open and isinstance(error, OSError):
            return lost(error)
        return ConnectionLostError("the connection is closed")
