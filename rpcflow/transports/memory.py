# SPDX-License-Identifier: Apache-2.0
"""Channels inside one process, for tests: of tasks or of threads."""

import threading
import time
from collections.abc import Sequence
from typing import Final

import anyio

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.values import FilePayload, Part

CAPACITY: Final = 1 << 16
"""Bytes under way in one direction before a sender has to wait."""


class _Pipe:
    """One direction."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False
        self.broken = False

    def put(self, data: memoryview) -> int:
        step = min(len(data), CAPACITY - len(self.data))
        self.data += data[:step]
        return step

    def take(self, buffer: memoryview) -> int:
        step = min(len(buffer), len(self.data))
        buffer[:step] = self.data[:step]
        del self.data[:step]
        return step


def _bytes(part: Part) -> memoryview:
    if isinstance(part, FilePayload):
        raise TypeError("files do not travel over memory channels")
    return memoryview(part).cast("B")


class MemoryChannel:
    """One end of a pair of tasks."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, changed: list[anyio.Event]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._changed = changed
        self._open = True

    async def send(self, parts: Sequence[Part]) -> None:
        for part in parts:
            data = _bytes(part)
            while len(data) or not self._open:
                if not self._open or self._outgoing.broken:
                    raise ConnectionLostError("the connection is closed")
                if step := self._outgoing.put(data):
                    data = data[step:]
                    self._notify()
                else:
                    await self._changed[0].wait()
        await anyio.lowlevel.checkpoint()

    async def receive_into(self, buffer: memoryview) -> int:
        await anyio.lowlevel.checkpoint()
        while True:
            if not self._open:
                raise ConnectionLostError("the connection is closed")
            if step := self._incoming.take(buffer):
                self._notify()
                return step
            if self._incoming.ended:
                return 0
            await self._changed[0].wait()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._outgoing.ended = self._incoming.broken = True
            self._notify()

    def _notify(self) -> None:
        self._changed[0].set()
        self._changed[0] = anyio.Event()


def channel_pair() -> tuple[MemoryChannel, MemoryChannel]:
    """Two connected ends for tasks of one event loop."""
    one, other, changed = _Pipe(), _Pipe(), [anyio.Event()]
    return MemoryChannel(one, other, changed), MemoryChannel(other, one, changed)


class BlockingMemoryChannel:
    """One end of a pair of threads."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, changed: threading.Condition) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._changed = changed
        self._open = True

    def send(self, parts: Sequence[Part], deadline: float | None = None) -> None:
        with self._changed:
            for part in parts:
                data = _bytes(part)
                while len(data) or not self._open:
                    if not self._open or self._outgoing.broken:
                        raise ConnectionLostError("the connection is closed")
                    if step := self._outgoing.put(data):
                        data = data[step:]
                        self._changed.notify_all()
                    else:
                        self._wait(deadline)

    def receive_into(self, buffer: memoryview, deadline: float | None = None) -> int:
        with self._changed:
            while True:
                if not self._open:
                    raise ConnectionLostError("the connection is closed")
                if step := self._incoming.take(buffer):
                    self._changed.notify_all()
                    return step
                if self._incoming.ended:
                    return 0
                self._wait(deadline)

    def close(self) -> None:
        with self._changed:
            if self._open:
                self._open = False
                self._outgoing.ended = self._incoming.broken = True
                self._changed.notify_all()

    def _wait(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and (left <= 0 or not self._changed.wait(left)):
            raise TimeoutError
        if left is None:
            self._changed.wait()


def blocking_channel_pair() -> tuple[BlockingMemoryChannel, BlockingMemoryChannel]:
    """Two connected ends for two threads."""
    one, other, changed = _Pipe(), _Pipe(), threading.Condition()
    return BlockingMemoryChannel(one, other, changed), BlockingMemoryChannel(other, one, changed)
