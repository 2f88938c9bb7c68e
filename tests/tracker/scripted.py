# SPDX-License-Identifier: Apache-2.0
"""A tracker that says what a test wants it to say."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.abc

MAGIC = bytes.fromhex("71f20200")


def frame(message: Any) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack("<i", len(data)) + data


class Line:
    """One connection, seen from the tracker."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self.stream = stream
        self._unread = b""
        self.chunks: list[bytes] = []

    async def take(self, size: int) -> bytes:
        """Exactly so many bytes.

        Raises:
            anyio.EndOfStream: the other side has closed.
        """
        while len(self._unread) < size:
            chunk = await self.stream.receive()
            self.chunks.append(chunk)
            self._unread += chunk
        data, self._unread = self._unread[:size], self._unread[size:]
        return data

    async def greet(self) -> None:
        assert await self.take(4) == MAGIC
        assert not self._unread, "the stock tracker refuses a message in the segment of the magic"
        await self.stream.send(MAGIC)

    async def ask(self) -> Any:
        """The next message."""
        (size,) = struct.unpack("<i", await self.take(4))
        return json.loads(await self.take(size))

    async def say(self, message: Any) -> None:
        await self.stream.send(frame(message))

    async def gone(self) -> None:
        """Until the other side closes; whatever it still says is passed over."""
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await self.stream.receive()


@contextlib.asynccontextmanager
async def tracker(serve: Callable[[Line], Awaitable[None]], port: int = 0) -> AsyncIterator[int]:
    """Runs ``serve`` for each connection; gives the port."""

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                await serve(Line(stream))

    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port) as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, handle)
            failure: Exception | None = None
            try:
                yield listener.extra(anyio.abc.SocketAttribute.local_port)
            except Exception as error:
                failure = error  # to be seen as it is, not in a group
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure


class Desk:
    """A tracker that answers as trackers do, tells all it hears, and hands nothing out unless told to.

    ``heard``: every message, also of lines that are gone; ``pending``: match keys that nobody has taken.
    """

    def __init__(self) -> None:
        self.heard: list[list[Any]] = []
        self.pending: dict[str, list[Any]] = {}
        self.lines: list[Line] = []
        self.left = 0
        self.answers: dict[int, Any] = {}
        self._changed = anyio.Event()

    async def serve(self, line: Line) -> None:
        """For :func:`tracker`."""
        await line.greet()
        await self.talk(line)

    async def talk(self, line: Line) -> None:
        """The same behind the magic."""
        self.lines.append(line)
        mine: list[str] = []
        try:
            while True:
                message = await line.ask()
                code = message[0]
                if code == 3:
                    self.pending[message[2][1]] = message
                    mine.append(message[2][1])
                answer: Any = self.answers.get(code, 0)
                if code == 7 and code not in self.answers:
                    answer = [key for key in mine if key in self.pending]
                if code == 6 and code not in self.answers:
                    answer = [0, {"queue_info": {}, "server_info": []}]
                self.heard.append(message)
                if not isinstance(answer, bytes):
                    answer = frame(answer)
                await line.stream.send(answer)
                self._change()
        finally:
            self.lines.remove(line)
            for key in mine:
                self.pending.pop(key, None)
            self.left += 1
            self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until something that the desk knows is so."""
        with anyio.fail_after(20):
            while not (value := condition()):
                await self._changed.wait()
            return value

    async def offers(self, count: int = 1) -> list[str]:
        """Wait until so many match keys lie here."""
        await self.until(lambda: len(self.pending) >= count)
        assert len(self.pending) == count
        return list(self.pending)

    async def hand_out(self) -> str:
        """Wait for a match key and take it away."""
        key = (await self.until(lambda: list(self.pending)))[0]
        del self.pending[key]
        return str(key)

    def put(self) -> list[list[Any]]:
        """All offers that were ever made."""
        return [message for message in self.heard if message[0] == 3]

    async def hang_up(self) -> None:
        """Close all lines."""
        for line in list(self.lines):
            await line.stream.aclose()
