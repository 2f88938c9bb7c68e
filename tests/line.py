# SPDX-License-Identifier: Apache-2.0
"""A serial line for tests and measurements: carries bytes between two descriptors at the speed of a line, and as badly
as asked."""

import errno
import os
import pty
import random
import select
import threading
import time
import tty
from collections import deque

import attrs

_CHUNK_SECONDS = 0.001
"""Of line time that is delivered at once."""
_AHEAD_NBYTES = 4096
"""Taken from a sender before the line has carried it: what a port's buffer holds."""


@attrs.define
class ByteFaults:
    """How likely it is for a byte that it is lost, changed, doubled, or that one is added before it."""

    lose: float = 0.0
    change: float = 0.0
    double: float = 0.0
    add: float = 0.0
    delay: float = 0.0
    """Seconds, at most, that bytes given at once are late."""


@attrs.define
class Faults(ByteFaults):
    """And for a frame, that is, what stands between two ``7E``."""

    lose_frames: float = 0.0
    double_frames: float = 0.0

    def __bool__(self) -> bool:
        return any(attrs.astuple(self))


def spoilt_byte(dice: random.Random, chances: ByteFaults, byte: int) -> bytes:
    """What arrives for a byte."""
    out = bytearray()
    if dice.random() < chances.add:
        out.append(dice.randrange(256))
    if dice.random() < chances.lose:
        return bytes(out)
    out.append(byte ^ (1 << dice.randrange(8)) if dice.random() < chances.change else byte)
    if dice.random() < chances.double:
        out.append(out[-1])
    return bytes(out)


class Spoiler:
    """Spoils one direction; the order stays."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self._losing = False
        self._frame = bytearray()

    def delay(self) -> float:
        """How late the next bytes are."""
        return self.random.random() * self.faults.delay if self.faults.delay else 0.0

    def spoilt(self, data: bytes) -> bytes:
        """What arrives for what was sent."""
        faults, draw = self.faults, self.random.random
        if not faults:
            return data
        out = bytearray()
        for byte in data:
            if byte == 0x7E:
                if self._frame and draw() < faults.double_frames:
                    out += b"~" + self._frame
                self._frame.clear()
                self._losing = draw() < faults.lose_frames
            elif self._losing:
                continue
            elif faults.double_frames and len(self._frame) < 4096:
                self._frame.append(byte)
            out += spoilt_byte(self.random, faults, byte)
        return bytes(out)


class _Way:
    """One direction."""

    def __init__(self, source: int, target: int, spoiler: Spoiler, byte_seconds: float) -> None:
        self.source = source
        self.target = target
        self.spoiler = spoiler
        self.byte_seconds = byte_seconds
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.nbytes = 0
        self.carried = 0
        self.stuck = False
        self.ended = False
        self._free = 0.0
        self._last = 0.0

    def take(self) -> None:
        """Take from the sender."""
        try:
            data = os.read(self.source, _AHEAD_NBYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        if not data:
            self.ended = True
            return
        now = time.monotonic()
        self._free = max(self._free, now)
        late = self.spoiler.delay()
        step = max(1, round(_CHUNK_SECONDS / self.byte_seconds)) if self.byte_seconds else len(data)
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            self._free += len(piece) * self.byte_seconds  # against the line's own clock: no error adds up
            self._last = max(self._last, self._free + late)
            if out := self.spoiler.spoilt(piece):
                self.waiting.append((self._last, out))
                self.nbytes += len(out)

    def give(self) -> None:
        """Give the receiver what has arrived by now."""
        self.stuck = False
        now = time.monotonic()
        while self.waiting and self.waiting[0][0] <= now:
            at, data = self.waiting[0]
            try:
                count = os.write(self.target, data)
            except BlockingIOError:
                self.stuck = True
                return
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EPIPE, errno.ECONNRESET):
                    raise
                count = len(data)  # nobody is there: a line does not mind
            self.nbytes -= count
            self.carried += count
            if count < len(data):
                self.waiting[0] = (at, data[count:])
            else:
                self.waiting.popleft()


class Line:
    """Joins two descriptors, in a thread of its own, until it is closed.

    Args:
        one, other: of terminals or sockets; put into non-blocking mode; not closed.
        baud: bits a second, ten of which are a byte; None for as fast as it goes.
        forth, back: what goes wrong from ``one`` to ``other``, and the other way.
        seed: of the dice.
    """

    def __init__(
        self,
        one: int,
        other: int,
        *,
        baud: float | None = None,
        forth: Faults | None = None,
        back: Faults | None = None,
        seed: int = 0,
    ) -> None:
        for fd in (one, other):
            os.set_blocking(fd, False)
        byte_seconds = 10 / baud if baud else 0.0
        self.forth = Spoiler(seed, forth or Faults())
        self.back = Spoiler(seed + 1, back or Faults())
        self._ways = [_Way(one, other, self.forth, byte_seconds), _Way(other, one, self.back, byte_seconds)]
        self._cut = False
        self._woken, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, name="line", daemon=True)
        self._thread.start()

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes delivered forth and back."""
        return self._ways[0].carried, self._ways[1].carried

    def cut(self, off: bool = True) -> None:
        """From now on nothing arrives any more; ``off=False`` mends it."""
        self._cut = off

    def close(self) -> None:
        """Carry nothing any more."""
        if self._wake >= 0:
            os.write(self._wake, b"x")
            self._thread.join()
            os.close(self._wake)
            os.close(self._woken)
            self._wake = -1

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            reading = [self._woken]
            reading += [way.source for way in self._ways if way.nbytes < _AHEAD_NBYTES and not way.ended]
            writing = [way.target for way in self._ways if way.stuck]
            due = [way.waiting[0][0] for way in self._ways if way.waiting and not way.stuck]
            seconds = max(min(due) - time.monotonic(), 0.0) if due else None
            ready, _, _ = select.select(reading, writing, [], seconds)
            if self._woken in ready:
                return
            for way in self._ways:
                if way.source in ready:
                    way.take()
                    if self._cut:
                        way.waiting.clear()
                        way.nbytes = 0
                way.give()


class Terminal:
    """A pseudo terminal in raw mode: ``path`` is the port for a host, ``fd`` the other end of its line."""

    def __init__(self) -> None:
        self.fd, self._near = pty.openpty()
        tty.setraw(self._near)
        self.path = os.ttyname(self._near)
        os.set_blocking(self.fd, False)

    def unplug(self) -> None:
        """As if the port were pulled out."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Let go of it."""
        self.unplug()
        if self._near >= 0:
            os.close(self._near)
            self._near = -1

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
