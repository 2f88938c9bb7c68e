# SPDX-License-Identifier: Apache-2.0
"""Moves bytes between a TLS line and the plain socket of whoever serves it; neither side is waited for.

One end's pace is the other's limit: what cannot be passed on is held, one buffer in each direction, and nothing more
is read until it has gone. Whatever the TLS line's end does (a goodbye, a reset, bytes that are no TLS), the plain side
sees an end of stream; when the plain side ends, the TLS line says goodbye and has a moment to read that.
"""

import select
import socket
import ssl
import time
from typing import Final

from rpcflow.transports.polling import BUDGET, AdaptivePolling

CARRY_NBYTES: Final = 1 << 18
"""A buffer that keeps up with the cipher: 16 records."""
SMALL_NBYTES: Final = 1 << 15
_RECORD_NBYTES: Final = 1 << 14
_ROUNDS: Final = 4
"""Buffers moved in one direction before the other has its turn."""
_GONE: Final = getattr(select, "POLLRDHUP", 0)
_IDLE: Final = (select.POLLIN, select.POLLIN)
"""What a line wants on which nothing is held."""
_OFF: Final = select.POLLHUP | select.POLLERR | getattr(select, "POLLNVAL", 0)


class Carried:
    """A TLS line, its handshake done, and its plain socket; both are not in blocking mode.

    Attributes:
        over: nothing is left to be done.
        ending: the plain side has ended: what is left is to have the goodbye read.
    """

    def __init__(self, tls: ssl.SSLSocket, plain: socket.socket, nbytes: int = SMALL_NBYTES) -> None:
        self.tls = tls
        self.plain = plain
        self.over = False
        self.ending = False
        self._nbytes = nbytes
        self._in = memoryview(bytearray(nbytes))
        self._out = memoryview(bytearray(nbytes))
        self._to_plain: memoryview | None = None
        self._to_tls: memoryview | None = None
        self._more = True  # records may be inside already, of which the socket says nothing
        self._read_wants_write = False
        self._plain_hung = False
        self._no_more_in = False

    def grow(self, nbytes: int) -> None:
        """Take larger buffers from now on; where something is held, as soon as it has gone."""
        self._nbytes = nbytes
        if self._to_plain is None:
            self._in = self._grown(self._in)
        if self._to_tls is None:
            self._out = self._grown(self._out)

    def _grown(self, buffer: memoryview) -> memoryview:
        """For a buffer in which nothing is held."""
        return buffer if len(buffer) >= self._nbytes else memoryview(bytearray(self._nbytes))

    def wants(self) -> tuple[int, int]:
        """What to poll for: at the TLS socket, and at the plain one (-1: not at all)."""
        if self.ending:
            return select.POLLIN, -1
        tls = 0
        if not self._no_more_in:
            tls = select.POLLIN if self._to_plain is None else _GONE
        if self._to_tls is not None or self._read_wants_write:
            tls |= select.POLLOUT
        plain = select.POLLIN if self._to_tls is None else 0
        if self._to_plain is not None:
            plain |= select.POLLOUT
        if plain == 0 and self._plain_hung:
            plain = -1  # it would say so for ever
        return tls, plain

    @property
    def restless(self) -> bool:
        """Whether there is more to do now, without waiting for a socket."""
        return self._more and self._to_plain is None and not self.ending and not self.over

    def move(self, tls: int, plain: int) -> None:
        """Do what can be done; ``tls`` and ``plain`` are what poll said of them."""
        if self.over:
            return
        if self.ending:
            self._drain()
            return
        if plain & _OFF:
            self._plain_hung = True
        if self._no_more_in and tls & _OFF:
            self.over = True
            return
        try:
            if self._to_plain is not None:
                self._pass_in()
                if self._to_plain is not None and tls & (_GONE | _OFF):
                    self.over = True  # it has gone, and what it has said will not be read in time
                    return
            wanted = select.POLLOUT if self._read_wants_write else 0
            if self._to_plain is None and not self._no_more_in and (tls & (~select.POLLOUT | wanted) or self.restless):
                self._take_in()
            if self._to_tls is not None or plain & ~select.POLLOUT:
                self._take_out()
        except (OSError, ValueError):  # ssl's errors are OSErrors
            self.over = True

    def close(self) -> None:
        """Close both."""
        self.over = True
        self.plain.close()
        self.tls.close()

    def pass_small(self, from_tls: bool) -> bool:
        """The usual case, quickly: a few bytes that are there and go through whole. False where it is another case, for
        :meth:`move` to go on with; nothing may be held then."""
        source, target, buffer = (self.tls, self.plain, self._in) if from_tls else (self.plain, self.tls, self._out)
        try:
            count = source.recv_into(buffer)
        except (OSError, ValueError):
            return False  # it says so again
        if not count:
            return False
        held: memoryview | None = buffer[:count]
        try:
            sent = target.send(buffer[:count])
            held = None if sent == count else buffer[sent:count]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except (OSError, ValueError):
            self.over = True
        if from_tls:
            self._to_plain = held
            self._more = count >= _RECORD_NBYTES or self.tls.pending() > 0
        else:
            self._to_tls = held
        return held is None and not self._more and not self.over

    # ---- from the TLS line

    def _take_in(self) -> None:
        for _ in range(_ROUNDS):
            self._read_wants_write = False
            count, ended = self._fill()
            if count:
                self._to_plain = self._in[:count]
                self._pass_in()
            if ended:
                self._no_more_in = True
                self._more = False
                if self._to_plain is None:
                    self._end_in()
                return
            self._more = count == self._nbytes or self.tls.pending() > 0
            if not self._more or self._to_plain is not None:
                return

    def _fill(self) -> tuple[int, bool]:
        """Decrypt as much as is there; how much, and whether that was the end."""
        self._in = self._grown(self._in)
        count = 0
        try:
            while count < self._nbytes:
                step = self.tls.recv_into(self._in[count:])
                if not step:
                    return count, True
                count += step
                if step < _RECORD_NBYTES and not self.tls.pending():
                    break  # a short record is the last one, mostly; if not, the next look tells
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            self._read_wants_write = True
        except OSError:
            return count, True
        return count, False

    def _pass_in(self) -> None:
        assert self._to_plain is not None
        try:
            self._to_plain = self._to_plain[self.plain.send(self._to_plain) :]
        except BlockingIOError:
            return
        if not self._to_plain:
            self._to_plain = None
            if self._no_more_in:
                self._end_in()

    def _end_in(self) -> None:
        """The TLS line has said its last. Nobody we serve goes on speaking to who does not listen any more: its end is
        the end of both, once the plain side has seen it."""
        self.plain.shutdown(socket.SHUT_WR)

    # ---- to the TLS line

    def _take_out(self) -> None:
        for _ in range(_ROUNDS):
            if self._to_tls is None:
                self._out = self._grown(self._out)
                try:
                    count = self.plain.recv_into(self._out)
                except BlockingIOError:
                    return
                if not count:
                    self._say_goodbye()
                    return
                self._to_tls = self._out[:count]
            try:
                self._to_tls = self._to_tls[self.tls.send(self._to_tls) :]
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            if not self._to_tls:
                self._to_tls = None

    def _say_goodbye(self) -> None:
        try:
            self.tls.unwrap()
        except (OSError, ValueError):
            pass  # what comes next is for nobody, and is thrown away unread
        if self._no_more_in:
            self.over = True
            return
        self.ending = True
        self.plain.close()
        try:
            self.tls.shutdown(socket.SHUT_WR)
        except OSError:
            self.over = True

    def _drain(self) -> None:
        try:
            raw = socket.socket.recv(self.tls, 65536)  # past the cipher
        except BlockingIOError:
            return
        except OSError:
            raw = b""
        if not raw:
            self.over = True


def carry(line: Carried, linger: float, alive: int | None = None, poll: bool | None = None) -> None:
    """Carry one line to its end, in a process of its own.

    Args:
        linger: seconds for the other end to read our goodbye.
        alive: a descriptor that becomes readable when there is no reason to go on.
        poll: None polls adaptively before it sleeps; False never does.
    """
    line.grow(CARRY_NBYTES)
    poller = select.poll()
    if alive is not None:
        poller.register(alive, select.POLLIN)
    tls, plain = line.tls.fileno(), line.plain.fileno()
    polling = AdaptivePolling(poll)
    registered: tuple[int, int] = (-1, -1)
    usual = False
    until = 0.0  # when the other end has had its time to read our goodbye, whatever it goes on saying
    while not line.over:
        if not usual:
            wanted = line.wants()
            if wanted != registered:
                _register(poller, tls, registered[0], wanted[0])
                _register(poller, plain, registered[1], wanted[1])
                registered = wanted
        if registered == _IDLE and not line.restless:
            found = _look(poller, polling) or poller.poll()
            if len(found) == 1 and found[0][1] == select.POLLIN and found[0][0] != alive:
                usual = line.pass_small(found[0][0] == tls)
                if usual:
                    continue
        else:
            pause = None
            if line.ending:
                until = until or time.monotonic() + linger
                pause = max(0.0, until - time.monotonic()) * 1000
            found = poller.poll(0 if line.restless else pause)
        usual = False
        ready = dict(found)
        if alive in ready or (line.ending and (not ready or time.monotonic() >= until)):
            break
        line.move(ready.get(tls, 0), ready.get(plain, 0))
        if line.ending and registered[1] != -1:
            _register(poller, plain, registered[1], -1)
            registered = (registered[0], -1)
    line.close()


def _look(poller: "select.poll", polling: AdaptivePolling) -> list[tuple[int, int]]:
    """Look for a short while, where that pays, before going to sleep."""
    if not polling.worthwhile():
        return []
    found = poller.poll(0)
    if found:
        return found  # it was there already, which says nothing about looking
    ends = time.perf_counter() + BUDGET
    while True:
        found = poller.poll(0)
        late = time.perf_counter() > ends
        if late or found:
            (polling.miss if late else polling.hit)()
            return found


def _register(poller: "select.poll", number: int, before: int, wanted: int) -> None:
    if wanted == before:
        return
    if wanted == -1:
        poller.unregister(number)
    else:
        poller.register(number, wanted)
