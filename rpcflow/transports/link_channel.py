# SPDX-License-Identifier: Apache-2.0
"""Channels over a line that needs the link layer: what blocking and async ones share, and the blocking one.

A link lives only while somebody is inside a call: then it takes in what comes, sends again what was lost, and asks
whether the line still lives. Between calls it stands still, and the other end waits.
"""

import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from rpcflow.errors import ConnectionLostError, RPCError
from rpcflow.protocol.link import Link, State
from rpcflow.protocol.values import FilePayload, Part

_READ_NBYTES: Final = 1 << 16
_FILE_NBYTES: Final = 1 << 16


class LinkEnd:
    """A descriptor and the link over it, for one session. Nothing here waits, and nothing but :meth:`check` raises.

    Args:
        fd: not blocking; whoever made it closes it.
        link: this end.
        where: for messages.
        session: which of the link's, counted from 1: a device's link may see several.
    """

    def __init__(self, fd: int, link: Link, where: str, session: int = 1) -> None:
        self.fd = fd
        self.link = link
        self._where = where
        self._session = session
        self._unsent = b""
        self._lost: RPCError | None = None

    @property
    def opening(self) -> bool:
        """Whether the session has not begun yet."""
        return self.link.sessions < self._session

    @property
    def stuck(self) -> bool:
        """Whether the line takes no more just now."""
        return bool(self._unsent)

    @property
    def all_given(self) -> bool:
        """Whether the line has taken all there was to send."""
        return not self._unsent and self.link.all_given

    @property
    def _over(self) -> bool:
        return self.link.sessions > self._session or (not self.opening and self.link.state is not State.OPEN)

    def check(self) -> None:
        """Whether the session goes on.

        Raises:
            RPCError: it does not.
        """
        if self._lost is None:
            if self.link.error is not None:
                self._lost = type(self.link.error)(f"{self.link.error} ({self._where})")
            elif self._over:
                self._lost = ConnectionLostError(f"the other end has closed the session ({self._where})")
        if self._lost is not None:
            raise self._lost

    def take(self, buffer: memoryview) -> int | None:
        """Bytes that have arrived; 0 at the end of the stream, None: not yet.

        Raises:
            RPCError: the session is over, and not as it should be.
        """
        if self.link.sessions == self._session and (count := self.link.read_into(buffer)):
            if self.link.urgent:
                self.write()
            return count
        if self._over and self.link.error is None:
            return 0
        self.check()
        return None

    def read(self) -> bool:
        """Take in what has come; whether anything has happened."""
        try:
            data = os.read(self.fd, _READ_NBYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            self._gone(error)
        else:
            if data:
                self.link.receive(data, time.monotonic())
                self.write()
            else:
                self._gone(None)
        return True

    def write(self) -> None:
        """Give the line what it takes."""
        try:
            while self._lost is None:
                if not self._unsent:
                    self._unsent = self.link.take_outgoing(time.monotonic())
                    if not self._unsent:
                        return
                self._unsent = self._unsent[os.write(self.fd, self._unsent) :]
        except BlockingIOError:
            pass  # whoever waits, waits for that too
        except OSError as error:
            self._gone(error)

    def seconds(self) -> float | None:
        """After which the link wants to be looked after; what is due now is done. None: after none."""
        now = time.monotonic()
        self.link.tick(now)
        self.write()
        if self._lost is not None or self._over or self.link.error is not None:
            return 0.0
        due = self.link.deadline()
        return None if due is None else max(due - now, 0.0)

    def say_goodbye(self) -> None:
        """Tell the other end that it is over, as far as that goes without waiting."""
        if not self._over:
            self.link.close()
            self.write()

    def _gone(self, error: OSError | None) -> None:
        why = f": {error.strerror}" if error is not None else ""
        self._lost = ConnectionLostError(f"the line is gone{why} ({self._where})")


def pieces(parts: Sequence[Part]) -> Iterator[memoryview]:
    """All bytes of some parts, in order.

    Raises:
        ConnectionLostError: a file became shorter; the packet around it cannot be completed.
    """
    for part in parts:
        if not isinstance(part, FilePayload):
            yield memoryview(part).cast("B")
            continue
        position, end = part.offset, part.offset + part.nbytes
        while position < end:
            data = os.pread(part.fd, min(_FILE_NBYTES, end - position), position)
            if not data:
                raise ConnectionLostError("the file became shorter while it was sent")
            yield memoryview(data)
            position += len(data)


class BlockingLinkChannel:
    """A link for one thread at a time; another may close it.

    Args:
        line: it is this channel's from now on.
        close: lets go of the descriptor.
    """

    def __init__(self, line: LinkEnd, close: Callable[[], None]) -> None:
        self._line = line
        self._close = close
        self._open = True
        self._busy = threading.Lock()
        self._woken, self._wake = os.pipe()

    def begin(self, deadline: float | None = None) -> None:
        """Wait for the device.

        Raises:
            TimeoutError: the deadline passed.
            ConnectionLostError: none answers.
        """
        with _Turn(self):
            self._line.write()
            while self._line.opening:
                self._wait(deadline)
                self._line.check()

    def send(self, parts: Sequence[Part], deadline: float | None = None) -> None:
        line = self._line
        with _Turn(self):
            line.check()
            for piece in pieces(parts):
                while len(piece):
                    taken = line.link.send(piece)
                    piece = piece[taken:]
                    if not taken:
                        self._wait(deadline)
                        line.check()
            line.link.flush()
            line.write()
            while not line.all_given:
                self._wait(deadline)
                line.check()

    def receive_into(self, buffer: memoryview, deadline: float | None = None) -> int:
        line = self._line
        with _Turn(self):
            while (count := line.take(buffer)) is None:
                self._wait(deadline)
            return count

    def close(self) -> None:
        self._open = False
        if self._busy.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._busy.release()
        else:  # a thread inside finds out, and does it
            try:
                os.write(self._wake, b"x")
            except OSError:
                pass  # it has just done it

    def _end(self) -> None:
        if self._wake >= 0:
            self._line.say_goodbye()
            self._close()
            os.close(self._woken)
            os.close(self._wake)
            self._wake = -1

    def _wait(self, deadline: float | None) -> None:
        """Until something has happened."""
        line = self._line
        if line.read():
            return
        seconds = line.seconds()
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            seconds = left if seconds is None else min(seconds, left)
        poller = select.poll()
        poller.register(line.fd, select.POLLIN | (select.POLLOUT if line.stuck else 0))
        poller.register(self._woken, select.POLLIN)
        ready = poller.poll(None if seconds is None else min(seconds, 86400.0) * 1000)
        if not self._open:
            raise ConnectionLostError("the connection is closed")
        if any(events & ~select.POLLIN for fd, events in ready if fd == line.fd):
            line.write()


class _Turn:
    """One call on a blocking channel."""

    def __init__(self, channel: BlockingLinkChannel) -> None:
        self._channel = channel

    def __enter__(self) -> None:
        channel = self._channel
        channel._busy.acquire()
        if not channel._open:
            self.__exit__()
            raise ConnectionLostError("the connection is closed")

    def __exit__(self, *_: object) -> None:
        channel = self._channel
        try:
            if not channel._open:
                channel._end()
        finally:
            channel._busy.release()
        if not channel._open:
            channel.close()  # closed between the two lines above
