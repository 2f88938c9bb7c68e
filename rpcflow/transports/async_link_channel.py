# SPDX-License-Identifier: Apache-2.0
"""Channels of tasks over a line that needs the link layer, on trio and (by anyio) asyncio."""

from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.lowlevel
import trio

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.values import Part

from .link_channel import LinkEnd, pieces

_CLOSED = (anyio.ClosedResourceError, trio.ClosedResourceError, OSError, ValueError)


class AsyncLinkChannel:
    """A link for one sending and one receiving task. Whichever waits looks after the line; if both do, one of them.

    Args:
        line: it is this channel's from now on.
        close: lets go of the descriptor.
    """

    def __init__(self, line: LinkEnd, close: Callable[[], None]) -> None:
        self._line = line
        self._close = close
        self._open = True
        self._sleep: anyio.CancelScope | None = None
        self._happened = anyio.Event()

    async def begin(self) -> None:
        """Wait for the device.

        Raises:
            ConnectionLostError: none answers.
        """
        self._line.write()
        while self._line.opening:
            await self._wait()
            self._line.check()

    async def send(self, parts: Sequence[Part]) -> None:
        line = self._line
        self._check()
        for piece in pieces(parts):
            while len(piece):
                taken = line.link.send(piece)
                piece = piece[taken:]
                if not taken:
                    await self._wait()
                    self._check()
        line.link.flush()
        line.write()
        while not line.all_given:
            await self._wait()
            self._check()
        if self._sleep is not None:
            self._sleep.cancel()  # whoever looks after the line does not know of these frames' deadline

    async def receive_into(self, buffer: memoryview) -> int:
        while True:
            if not self._open:
                raise ConnectionLostError("the connection is closed")
            count = self._line.take(buffer)
            if count is not None:
                return count
            await self._wait()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._line.say_goodbye()
            anyio.notify_closing(self._line.fd)
            self._close()
            self._happened.set()

    def _check(self) -> None:
        if not self._open:
            raise ConnectionLostError("the connection is closed")
        self._line.check()

    async def _wait(self) -> None:
        """Until something has happened."""
        line = self._line
        if line.read():
            self._tell()
            await anyio.lowlevel.checkpoint()  # a line that always has something is not the only one here
            return
        if self._sleep is not None:
            await self._happened.wait()
            return
        seconds = line.seconds()
        try:
            with anyio.move_on_after(seconds) as self._sleep:
                await self._ready()
        except _CLOSED:
            if self._open:
                raise
        finally:
            self._sleep = None
            self._tell()

    async def _ready(self) -> None:
        line = self._line
        if not line.stuck:
            await anyio.wait_readable(line.fd)
            return
        async with anyio.create_task_group() as tasks:

            async def wait(ready: Callable[[int], Awaitable[None]]) -> None:
                try:
                    await ready(line.fd)
                except _CLOSED:
                    pass  # whoever called finds that out
                tasks.cancel_scope.cancel()

            tasks.start_soon(wait, anyio.wait_writable)
            await wait(anyio.wait_readable)
        if self._open:
            line.write()

    def _tell(self) -> None:
        """There is something new for the task that waits for us to wait."""
        self._happened.set()
        self._happened = anyio.Event()
