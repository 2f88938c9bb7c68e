# SPDX-License-Identifier: Apache-2.0
"""Moves bytes between paired sockets, all pairs in one thread of its own.

An event loop's turn costs more than passing on a small packet does, so this has a bare loop around epoll. A small
read is passed on at once by way of one buffer that all share; a stream that fills that buffer is moved by splice
through a pipe, so that its bytes never come into Python. The other side's pace is the limit: while it takes no more,
nothing more is read.

Where one end says that it will send no more, the other is told so; then both have a moment to say their last, and
end together.
"""

import errno
import fcntl
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from typing import Final

import anyio

from rpcflow.transports.accepting import LINGER_SECONDS
from rpcflow.transports.logs import LimitedLog

AVAILABLE: Final = hasattr(select, "epoll") and hasattr(os, "splice")
_BUFFER_NBYTES: Final = 1 << 16
_PIPE_NBYTES: Final = 1 << 20
_ROUNDS: Final = 16
"""Moves for one pair before the others have their turn."""
_SPARE_PIPES: Final = 4
_IN: Final = getattr(select, "EPOLLIN", 1)
_OUT: Final = getattr(select, "EPOLLOUT", 4)
_GOING: Final = getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLET", 0)
"""For a socket that nothing is wanted of just now: only that its other end has gone, and that once."""
_FLAGS: Final = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)
_log: Final = logging.getLogger("rpcflow.proxy")


class _Pipe:
    """Room between two splices. ``filled``: bytes in it."""

    __slots__ = ("filled", "read", "write")

    def __init__(self) -> None:
        self.read, self.write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.filled = 0
        try:
            fcntl.fcntl(self.read, fcntl.F_SETPIPE_SZ, _PIPE_NBYTES)
        except OSError:
            pass  # the user has no more memory for pipes: a small one does it too

    def close(self) -> None:
        os.close(self.read)
        os.close(self.write)


class _Way:
    """One direction of a pair. ``held``: read, not taken by the target yet; ``ended``: nothing more goes this way."""

    __slots__ = ("ended", "eof", "held", "pipe", "source", "spliceable", "target")

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        self.held: memoryview | None = None
        self.pipe: _Pipe | None = None
        self.spliceable = True
        self.eof = False
        self.ended = False

    @property
    def blocked(self) -> bool:
        return self.held is not None or (self.pipe is not None and self.pipe.filled > 0)


class _Pair:
    __slots__ = ("deadline", "done", "masks", "near", "ways")

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near = near.fileno()
        self.ways = (_Way(near, far), _Way(far, near))
        self.masks: dict[int, int] = {}
        self.deadline: float | None = None
        self.done = anyio.Event()


class SpliceRelay:
    """Start it, run :meth:`run` in a task, and :meth:`stop` it when no pair is left in the care of :meth:`carry`.

    Args:
        stall: seconds that the last bytes of an end that has gone may wait for the other to take some of them.
    """

    def __init__(self, stall: float = 30.0) -> None:
        self._stall = stall
        self._epoll = select.epoll()
        self._wake_read, self._wake_write = socket.socketpair()
        self._done_read, self._done_write = socket.socketpair()
        for sock in (self._wake_read, self._wake_write, self._done_read, self._done_write):
            sock.setblocking(False)
        self._epoll.register(self._wake_read.fileno(), _IN)
        self._lock = threading.Lock()  # whoever holds it may touch the pairs and their sockets
        self._pairs: dict[int, _Pair] = {}
        self._ending: set[_Pair] = set()
        self._finished: deque[_Pair] = deque()
        self._spare: list[_Pipe] = []
        self._buffer = memoryview(bytearray(_BUFFER_NBYTES))
        self._log = LimitedLog(_log)
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="rpcflow proxy relay", daemon=True)

    # ---- for the event loop

    def start(self) -> None:
        """Begin; no pair is carried before."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and give all back. It never waits for a peer, so this takes no time to speak of."""
        self._stopping = True
        self._wake_write.send(b"x")
        if self._thread.ident is not None:
            self._thread.join()
        self._log.flush()
        for pipe in self._spare:
            pipe.close()
        self._epoll.close()
        for sock in (self._wake_read, self._wake_write, self._done_read, self._done_write):
            sock.close()

    async def run(self) -> None:
        """Pass on what the thread has to say, until cancelled."""
        while True:
            await anyio.wait_readable(self._done_read)
            self._done_read.recv(4096)
            while self._finished:
                self._finished.popleft().done.set()

    async def carry(self, near: socket.socket, far: socket.socket) -> None:
        """Move bytes both ways until both ends have ended; the sockets stay open. Cancelled, it lets go at once."""
        pair = _Pair(near, far)
        with self._lock:
            for way in pair.ways:
                self._pairs[way.source.fileno()] = pair
            self._arm(pair)
        try:
            await pair.done.wait()
        finally:
            with self._lock:
                self._drop(pair)

    # ---- the thread

    def _loop(self) -> None:
        poll = self._epoll.poll
        wake = self._wake_read.fileno()
        patience: float | None = None
        while not self._stopping:
            events = poll(patience)
            with self._lock:
                for fd, _ in events:
                    pair = self._pairs.get(fd)
                    if pair is not None:
                        self._turn(pair, fd)
                    elif fd == wake:
                        self._wake_read.recv(4096)
                if self._ending:
                    self._end_overdue()
                patience = self._patience()

    def _patience(self) -> float | None:
        if not self._ending:
            return None
        first = min(pair.deadline or 0.0 for pair in self._ending)
        return max(0.0, first - time.monotonic()) + 0.001

    def _pass_on(self, pair: _Pair, fd: int) -> bool:
        """The short way for a small packet, by far the most frequent case; whether that was all there is to do."""
        there, back = pair.ways
        if there.held is not None or there.pipe is not None or back.held is not None or back.pipe is not None:
            return False
        if pair.deadline is not None:
            return False
        way = there if fd == pair.near else back
        try:
            count = way.source.recv_into(self._buffer)
        except BlockingIOError:
            return True
        except OSError:
            return False  # the next look finds the end
        return self._sent_whole(way, count)

    def _turn(self, pair: _Pair, fd: int) -> None:
        ways = pair.ways
        try:
            if self._pass_on(pair, fd):
                return
            if pair.masks.get(fd) == _GOING:
                self._end_soon(pair, moved=False)
            for way in ways:
                if way.ended:
                    continue
                wanted = way.target if way.blocked else way.source
                if wanted.fileno() == fd:
                    self._move(pair, way)
            if ways[0].ended and ways[1].ended:
                self._finish(pair)
            else:
                self._arm(pair)
        except Exception:  # one pair's fault must not end the others: the log has it
            self._log.exception("failed", "carrying between a client and a server failed")
            self._finish(pair)

    def _move(self, pair: _Pair, way: _Way) -> None:
        """Move what can be moved now."""
        moved = False
        try:
            moved = self._flush(way)
            for _ in range(_ROUNDS):
                if way.eof or way.blocked or not self._read(way):
                    break
                moved = True
        except BlockingIOError:
            pass  # the target is full
        except OSError:
            way.eof = True  # one of the two is gone; what the other still says, it may say
            way.held = None
            self._give_back(way)
        if way.eof and not way.blocked:
            way.ended = True
            self._give_back(way)
            try:
                way.target.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # gone already
        if way.eof or pair.deadline is not None:
            self._end_soon(pair, moved)

    def _end_soon(self, pair: _Pair, moved: bool) -> None:
        """One end will say no more: the other has time to take what is there, as long as it does take it."""
        if moved or pair.deadline is None:
            blocked = pair.ways[0].blocked or pair.ways[1].blocked
            pair.deadline = time.monotonic() + (self._stall if blocked else LINGER_SECONDS)
            self._ending.add(pair)

    def _flush(self, way: _Way) -> bool:
        """Give the target what is held for it; whether it took anything. Raises BlockingIOError where it took none."""
        held, pipe = way.held, way.pipe
        if held is not None:
            sent = way.target.send(held, socket.MSG_NOSIGNAL)
            way.held = held[sent:] if sent < len(held) else None
            return True
        if pipe is not None and pipe.filled:
            pipe.filled -= os.splice(pipe.read, way.target.fileno(), pipe.filled, flags=_FLAGS)
            return True
        return False

    def _read(self, way: _Way) -> bool:
        """Take from the source and pass on; whether to try again."""
        if way.pipe is not None:
            return self._splice(way, way.pipe)
        try:
            count = way.source.recv_into(self._buffer)
        except BlockingIOError:
            return False
        self._sent_whole(way, count)
        return count == _BUFFER_NBYTES and not way.blocked

    def _sent_whole(self, way: _Way, count: int) -> bool:
        """Pass on what is in the buffer; whether it was taken, and was all there was."""
        if not count:
            way.eof = True
            return False
        data = self._buffer[:count]
        try:
            sent = way.target.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            way.eof = True  # it has gone
            return False
        if sent < count:
            way.held = memoryview(bytes(data[sent:]))
            return False
        if count < _BUFFER_NBYTES:
            return True
        if way.spliceable:
            way.pipe = self._spare.pop() if self._spare else self._new_pipe()
        return False

    def _splice(self, way: _Way, pipe: _Pipe) -> bool:
        try:
            count = os.splice(way.source.fileno(), pipe.write, _PIPE_NBYTES, flags=_FLAGS)
        except BlockingIOError:
            self._give_back(way)
            return False
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            way.spliceable = False  # sockets of a kind that cannot do it
            self._give_back(way)
            return True
        if not count:
            way.eof = True
            return False
        pipe.filled += count
        while pipe.filled:
            self._flush(way)
        return True

    def _new_pipe(self) -> _Pipe | None:
        try:
            return _Pipe()
        except OSError:
            return None  # out of descriptors: the buffer does it, more slowly

    def _give_back(self, way: _Way) -> None:
        pipe, way.pipe = way.pipe, None
        if pipe is None:
            return
        if pipe.filled or len(self._spare) >= _SPARE_PIPES:
            pipe.close()
        else:
            self._spare.append(pipe)

    # ---- what is watched

    def _arm(self, pair: _Pair) -> None:
        there, back = pair.ways
        for sock, outgoing, incoming in ((there.source, there, back), (back.source, back, there)):
            mask = 0
            if not outgoing.eof and not outgoing.blocked:
                mask |= _IN
            if not incoming.ended and incoming.blocked:
                mask |= _OUT
            self._watch(pair, sock.fileno(), mask or _GOING)

    def _watch(self, pair: _Pair, fd: int, mask: int) -> None:
        before = pair.masks.get(fd, 0)
        if mask == before:
            return
        if not before:
            self._epoll.register(fd, mask)
        elif not mask:
            self._epoll.unregister(fd)
        else:
            self._epoll.modify(fd, mask)
        pair.masks[fd] = mask

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for pair in [pair for pair in self._ending if pair.deadline is not None and pair.deadline <= now]:
            self._finish(pair)

    def _finish(self, pair: _Pair) -> None:
        self._drop(pair)
        self._finished.append(pair)
        try:
            self._done_write.send(b"x")
        except BlockingIOError:
            pass  # full: the event loop will look anyway

    def _drop(self, pair: _Pair) -> None:
        self._ending.discard(pair)
        for way in pair.ways:
            if self._pairs.pop(way.source.fileno(), None) is not None:
                self._watch(pair, way.source.fileno(), 0)
            self._give_back(way)
