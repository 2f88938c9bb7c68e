# SPDX-License-Identifier: Apache-2.0
"""One end's incoming half of a session: frames in order, and what the other end must be told of them."""

from collections import deque
from typing import Final

from .sending import MAX_CREDIT

_PATIENCE: Final = 0.01
"""Seconds that an acknowledgement waits for something to go with."""
_UNACKNOWLEDGED: Final = 2


class Receiver:
    """Takes DATA frames in order, each once.

    Args:
        room: frames that are kept until they are read.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._frames: deque[memoryview] = deque()
        self._taken = 0  # frames since we last said what we want
        self._refused = False  # that frame, by NAK
        self._late: float | None = None
        self.wanted = 0
        self.began = False
        self.wants_ack = False
        self.wants_nak = False

    @property
    def credit(self) -> int:
        """Frames that there is room for."""
        return min(self._room - len(self._frames), MAX_CREDIT)

    @property
    def readable(self) -> bool:
        """Whether there is something to read."""
        return bool(self._frames)

    def read_into(self, buffer: memoryview) -> int:
        """Take what has come, as much as fits."""
        full, count = not self.credit, 0
        frames = self._frames
        while frames and count < len(buffer):
            first = frames[0]
            step = min(len(first), len(buffer) - count)
            buffer[count : count + step] = first[:step]
            count += step
            if step == len(first):
                frames.popleft()
            else:
                frames[0] = first[step:]
        if full and self.credit:
            self.wants_ack = True
        return count

    def data(self, number: int, payload: bytes, now: float) -> None:
        """A DATA frame has come."""
        ahead = (number - self.wanted) & 255
        if ahead == 0 and self.credit:
            self._frames.append(memoryview(payload))
            self.wanted = (number + 1) & 255
            self.began = True
            self._refused = self.wants_nak = False
            self._taken += 1
            if self._taken >= _UNACKNOWLEDGED:
                self.wants_ack = True
            elif self._late is None:
                self._late = now + _PATIENCE
        elif 0 < ahead < 128:
            if not self._refused:
                self.damaged()
        else:
            self.wants_ack = True

    def damaged(self) -> None:
        """A frame has come that may have been the one we want."""
        self._refused = self.wants_nak = True

    def told(self) -> None:
        """A frame goes out that says what we want."""
        self._taken = 0
        self._late = None
        self.wants_ack = self.wants_nak = False

    @property
    def due(self) -> float | None:
        """When an acknowledgement waits no longer."""
        return self._late

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._late is not None and now >= self._late:
            self.wants_ack = True
