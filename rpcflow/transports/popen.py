# SPDX-License-Identifier: Apache-2.0
"""``popen:///path/to/program``: a process that we start, on a line of its own.

The path may be relative (``popen:./program``), is written as in any URL (``%20``), and may be followed by arguments
(``?arg=first&arg=second``). What the process prints is taken in whenever we wait for it, so that neither it nor we are
ever held up by that.
"""

import select
import socket
import time
from typing import TYPE_CHECKING, Final

from rpcflow.errors import ConnectionLostError, SessionCrashedError

from .child import GRACE, Child, start_in_thread
from .sockets import BlockingSocketChannel
from .url import Url, file_path

if TYPE_CHECKING:
    from .async_popen import AsyncPopenChannel

ENDED: Final = "the process has ended, though another holds its line"


class BlockingPopenChannel(BlockingSocketChannel):
    """The line of a child, for a thread."""

    _watches = True

    def __init__(self, child: Child, poll: bool | None = None) -> None:
        child.line.setblocking(False)
        super().__init__(child.line, poll)
        self.child = child
        self._ended = False

    def receive_into(self, buffer: memoryview, deadline: float | None = None) -> int:
        try:
            count = super().receive_into(buffer, deadline)
        except ConnectionLostError:
            self._see_why()
            raise
        if not count:
            self._see_why()
        return count

    def crashed(self, call: str = "") -> SessionCrashedError | None:
        """What to say of the process if the line has ended by its doing."""
        return self.child.crashed(call)

    def finish(self) -> None:
        """Close the line, and give the process a moment to end by itself."""
        try:
            if self._open:
                self.socket.shutdown(socket.SHUT_RDWR)
                self.child.wait(GRACE)
        except OSError:
            pass  # it has ended already
        finally:
            self.close()

    def close(self) -> None:
        super().close()
        self.child.end()

    def _see_why(self) -> None:
        if self._open:
            self.child.fall()

    def _wait(self, event: int, deadline: float | None) -> None:
        sock, words, watch = self.socket, self.child.words, self.child.watch
        while True:
            poller = select.poll()
            try:
                poller.register(sock, event)
                if not words.ended:
                    poller.register(words.fd, select.POLLIN)
                if watch is not None and not self._ended:
                    poller.register(watch, select.POLLIN)
            except ValueError:
                raise OSError("closed by another thread") from None
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            if self._ended:  # what it has said before that is there
                left = 0.0
            ready = {fd for fd, _ in poller.poll(None if left is None else min(left, 86400.0) * 1000)}
            if words.fd in ready:
                words.look()
            if sock.fileno() in ready:
                return
            if self._ended:
                raise OSError(ENDED)
            self._ended = watch is not None and not watch.closed and watch.fileno() in ready


class PopenTransport:
    """Starts a process, and connects to that."""

    greets = False

    async def connect(self, url: Url, *, poll: bool | None = None) -> "AsyncPopenChannel":
        from .async_popen import AsyncPopenChannel  # not needed by blocking programs and workers

        return await AsyncPopenChannel.start(*_program(url), poll=poll)

    def connect_blocking(
        self, url: Url, *, deadline: float | None = None, poll: bool | None = None
    ) -> BlockingPopenChannel:
        return BlockingPopenChannel(start_in_thread(*_program(url), poll), poll)


transport: Final = PopenTransport()


def _program(url: Url) -> tuple[str, list[str]]:
    if url.host:
        raise ValueError(f"{url}: what follows popen:// is an absolute path, as in popen:///path")
    for name, _ in url.query:
        if name != "arg":
            raise ValueError(f"{url}: {name!r} is not known; a program's arguments are ?arg=first&arg=second")
    return file_path(url), [value for _, value in url.query]
