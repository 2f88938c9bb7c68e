# SPDX-License-Identifier: Apache-2.0
"""The line of a child, for tasks."""

import select
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread
import trio

from rpcflow.errors import ConnectionLostError, SessionCrashedError

from .async_sockets import AsyncSocketChannel
from .child import GRACE, Binary, Child, start
from .popen import ENDED

_new_epoll: Final = getattr(select, "epoll", None)
_Wait = Callable[[Any], Awaitable[None]]


class AsyncPopenChannel(AsyncSocketChannel):
    """The line of a child, for tasks. What takes a moment (to start it, to see it end) happens in a thread."""

    def __init__(self, child: Child, poll: bool | None = None) -> None:
        child.line.setblocking(False)
        super().__init__(child.line, poll)
        self.child = child
        self._ears = _Ears(child, self._wait_readable, self._wait_writable)
        self._wait_readable = self._ears.wait_readable
        self._wait_writable = self._ears.wait_writable

    @classmethod
    async def start(cls, binary: Binary, args: Sequence[str] = (), *, poll: bool | None = None) -> "AsyncPopenChannel":
        """Start a program; errors as :func:`rpcflow.transports.child.start`. Nothing is left when cancelled."""
        return cls(await _in_thread(partial(start, binary, args, poll)), poll)

    async def receive_into(self, buffer: memoryview) -> int:
        try:
            count = await super().receive_into(buffer)
        except ConnectionLostError:
            await self._see_why()
            raise
        if not count:
            await self._see_why()
        return count

    def crashed(self, call: str = "") -> SessionCrashedError | None:
        """What to say of the process if the line has ended by its doing."""
        return self.child.crashed(call)

    async def finish(self) -> None:
        """Close the line, and give the process a moment to end by itself."""
        try:
            if self._open:
                self.socket.shutdown(socket.SHUT_RDWR)
                with anyio.CancelScope(shield=True):
                    await _in_thread(partial(self.child.wait, GRACE))
        except OSError:
            pass  # it has ended already
        finally:
            self.close()

    def close(self) -> None:
        super().close()
        self._ears.close()
        self.child.end()

    async def _see_why(self) -> None:
        if self._open:
            await _in_thread(self.child.fall)


class _Ears:
    """Waits for the line, takes in what the child says meanwhile, and sees it end: by an epoll object that stands for
    all three, which is waited for as one; by two tasks where the system has none, and does not tell of ends either."""

    def __init__(self, child: Child, wait_readable: _Wait, wait_writable: _Wait) -> None:
        self._socket = child.line
        self._words = child.words
        self._watch = child.watch
        self._ended = False
        self._plain_readable = wait_readable
        self._plain_writable = wait_writable
        self._reading: Any = None
        self._writing: Any = None

    async def wait_readable(self, _: Any) -> None:
        """Until there may be something to receive."""
        self._listen()
        if _new_epoll is not None:
            if self._reading is None:
                self._reading = self._all(select.EPOLLIN)
            await self._any(self._reading)
        elif self._words.ended:
            await self._plain_readable(self._socket)
        else:
            await self._either(self._plain_readable)

    async def wait_writable(self, _: Any) -> None:
        """Until it may be possible to send."""
        self._listen()
        if _new_epoll is not None:
            if self._writing is None:
                self._writing = self._all(select.EPOLLOUT)
            await self._any(self._writing)
        elif self._words.ended:
            await self._plain_writable(self._socket)
        else:
            await self._either(self._plain_writable)

    def close(self) -> None:
        """Whoever waits is woken."""
        for epoll in (self._reading, self._writing):
            if epoll is not None and not epoll.closed:
                anyio.notify_closing(epoll.fileno())
                epoll.close()

    def _listen(self) -> None:
        # Before each sleep, so what has woken us without anything to receive is taken by the next.
        if not self._words.ended:
            self._words.look()
            self._hang_up()

    def _hang_up(self) -> None:
        if self._words.ended and self._words.fd >= 0:  # it would wake us for ever
            for epoll in (self._reading, self._writing):
                if epoll is not None:
                    epoll.unregister(self._words.fd)

    def _all(self, event: int) -> Any:
        assert _new_epoll is not None
        epoll = _new_epoll()
        epoll.register(self._socket, event)
        if not self._words.ended:
            epoll.register(self._words.fd, select.EPOLLIN)
        if self._watch is not None:
            epoll.register(self._watch, select.EPOLLIN)
        return epoll

    async def _any(self, epoll: Any) -> None:
        if self._ended:
            # What it has said before that was there when whoever calls has looked once more.
            raise OSError(ENDED)
        await self._plain_readable(epoll.fileno())
        if self._watch is not None and not epoll.closed:
            self._ended = any(fd == self._watch.fileno() for fd, _ in epoll.poll(0))

    async def _either(self, wait: _Wait) -> None:
        async with anyio.create_task_group() as tasks:

            async def until(wait: _Wait, what: Any) -> None:
                try:
                    await wait(what)
                except (anyio.BusyResourceError, trio.BusyResourceError):
                    return  # the other direction waits too, and listens for both
                except (OSError, ValueError, anyio.ClosedResourceError, trio.ClosedResourceError):
                    pass  # it is closed: whoever waits sees that for itself
                tasks.cancel_scope.cancel()

            tasks.start_soon(until, wait, self._socket)
            tasks.start_soon(until, self._plain_readable, self._words.fd)


async def _in_thread(work: Callable[[], Any]) -> Any:
    # A limiter of its own: threads that a program keeps busy must not keep this waiting.
    return await anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1))
