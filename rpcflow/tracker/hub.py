# SPDX-License-Identifier: Apache-2.0
"""All connections of a tracker in one task: which are ready, which are late, which are too many.

A task for each would cost memory that ten thousand idle servers do not need.
"""

import logging
import select
import selectors
import socket
import time
from typing import Final

import anyio
import anyio.lowlevel

from rpcflow.security.door import Visitor
from rpcflow.security.rights import Rights
from rpcflow.transports.logs import LimitedLog

from .desk import Desk
from .line import Line, Stage

_UNSENT_NBYTES: Final = 256 * 1024 * 1024
"""What all peers together may leave unread."""
_GONE: Final[int] = getattr(select, "POLLRDHUP", 0)
_log: Final = logging.getLogger("rpcflow.tracker")


class Hub:
    """The connections.

    Args:
        desk: answers them.
        handshake_timeout: seconds until the magic must be there.
        timeout: seconds a peer may stop in the middle of a message, or of taking an answer.
        rights: what the policy makes of them.
    """

    def __init__(self, desk: Desk, handshake_timeout: float, timeout: float, rights: Rights) -> None:
        self.desk = desk
        self.rights = rights
        self.unsent = 0
        self._seconds = {
            Stage.MAGIC: handshake_timeout,
            Stage.REFUSED: handshake_timeout,
            Stage.FRAME: timeout,
            Stage.ANSWERS: timeout,
        }
        self._selector = selectors.DefaultSelector()
        self._lines: dict[Line, None] = {}
        self._timed: dict[Line, None] = {}
        self._clogged: dict[Line, None] = {}
        self.log = LimitedLog(_log)
        self._more: dict[Line, None] = {}
        self._poller = select.poll() if _GONE else None
        self._arrived = anyio.Event()

    def __len__(self) -> int:
        return len(self._lines)

    # ---- tasks

    async def run(self) -> None:
        """Serve until cancelled, or told to stop."""
        selector, desk = self._selector, self.desk
        number = selector.fileno()
        while not desk.stopped:
            if self._more:
                await anyio.lowlevel.checkpoint()
            else:
                await anyio.wait_readable(number)
            for key, events in selector.select(0):
                line: Line = key.data
                if line in self._lines:  # it may have been closed for another's sake since
                    self._call(line, events)
            more, self._more = self._more, {}
            for line in more:
                if line in self._lines:
                    self._call(line, 0)

    async def watch_clock(self) -> None:
        """Close whoever takes too long, until cancelled."""
        # What is timed after a look cannot be due before the shortest time has passed: no need to be told of it.
        shortest = min(self._seconds.values())
        while True:
            if not self._lines:
                self._arrived = anyio.Event()
                await self._arrived.wait()
            now = time.monotonic()
            for line in [line for line in self._timed if line.deadline <= now]:
                if line.stage is not Stage.REFUSED:  # of that one all has been said
                    self.log.info("too slow", "%s is closed: it did not finish %s in time", line, line.stage.value)
                self.remove(line)
            nearest = min((line.deadline for line in self._timed), default=now + shortest)
            await anyio.sleep(min(nearest - now, shortest))

    def close(self) -> None:
        """Close everything."""
        for line in list(self._lines):
            self.remove(line)
        self._selector.close()
        self.log.flush()

    # ---- for lines

    def watch(self, line: Line, events: int) -> None:
        """From now on wait for these events."""
        self._selector.modify(line.socket, events, line)

    def time(self, line: Line) -> None:
        """It has entered a stage: give it its time."""
        seconds = self._seconds.get(line.stage)
        if seconds is None:
            self._timed.pop(line, None)
        else:
            line.deadline = time.monotonic() + seconds
            self._timed[line] = None
        if line.stage is Stage.ANSWERS:
            self._clogged[line] = None
        else:
            self._clogged.pop(line, None)

    def again(self, line: Line) -> None:
        """It has more to do, though its socket has nothing new."""
        self._more[line] = None

    def keep(self, nbytes: int) -> None:
        """So much could not be sent yet. Where that becomes too much, whoever blocks for longest goes."""
        self.unsent += nbytes
        if self.unsent > _UNSENT_NBYTES and self._clogged:
            worst = next(iter(self._clogged))
            self.log.warning("unread answers", "%s is closed: it does not take its answers", worst)
            del self._clogged[worst]
            worst.end()

    def has_gone(self, sock: socket.socket) -> bool:
        """Whether the other end has closed, without taking what it sent."""
        if self._poller is not None:
            self._poller.register(sock, _GONE)
            try:
                return bool(self._poller.poll(0))
            finally:
                self._poller.unregister(sock)
        try:
            return not sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def remove(self, line: Line) -> None:
        """Close a line and have the desk forget it. Does nothing if that is done."""
        if line not in self._lines:
            return
        for lines in (self._lines, self._timed, self._clogged, self._more):
            lines.pop(line, None)
        self._selector.unregister(line.socket)
        line.close()
        self.desk.gone(line)

    # ---- inside

    def _call(self, line: Line, events: int) -> None:
        try:
            if events:
                line.ready(events)
            else:
                line.proceed()
        except Exception:  # one connection's fault must not end the others: the log has it
            self.log.exception("failed", "serving %s failed", line)
            self.remove(line)

    def welcome(self, sock: socket.socket, visitor: Visitor) -> None:
        """Take in whoever the door has let in."""
        try:
            line = Line(self, sock, visitor)
            self._selector.register(sock, selectors.EVENT_READ, line)
        except OSError:
            sock.close()
            visitor.leave()
            return
        self._lines[line] = None
        line.start()
        self._arrived.set()
