# SPDX-License-Identifier: Apache-2.0
"""One end's outgoing half of a session: frames under way, and when they go out again."""

from collections import deque
from typing import Final

from .frames import MIN_PAYLOAD, OVERHEAD_NBYTES

MAX_CREDIT: Final = 64
_GROWTH: Final = 4
_FIRST_TIME: Final = 0.3
_LEAST_TIME: Final = 0.03
_MOST_TIME: Final = 2.0
_TRIES: Final = 6


class RoundTrip:
    """How long to wait for an acknowledgement (RFC 6298), in seconds.

    Args:
        frame_seconds: that the line takes for the longest frame: an acknowledgement may have to wait behind one.
    """

    def __init__(self, frame_seconds: float) -> None:
        self._least = _LEAST_TIME + 2 * frame_seconds
        self._smoothed: float | None = None
        self._deviation = 0.0
        self._doubled = 0

    @property
    def patience(self) -> float:
        """From a frame's last byte until it is sent again."""
        time = _FIRST_TIME if self._smoothed is None else self._smoothed + 4 * self._deviation
        return min(max(time, self._least) * (1 << self._doubled), _MOST_TIME)

    def measured(self, seconds: float) -> None:
        """A frame that was sent once was acknowledged after ``seconds``."""
        if self._smoothed is None:
            self._smoothed, self._deviation = seconds, seconds / 2
        else:
            self._deviation = 0.75 * self._deviation + 0.25 * abs(self._smoothed - seconds)
            self._smoothed = 0.875 * self._smoothed + 0.125 * seconds
        self._doubled = 0

    def double(self) -> None:
        """It was too short."""
        if self.patience < _MOST_TIME:
            self._doubled += 1

    def calm(self) -> None:
        """It was not too short after all."""
        self._doubled = 0


class Outgoing:
    """A DATA frame that has not been acknowledged. ``given``: when its last byte is on the line."""

    __slots__ = ("given", "number", "payload", "tries")

    def __init__(self, number: int, payload: bytes) -> None:
        self.number = number
        self.payload = payload
        self.tries = 0
        self.given = 0.0


class Sender:
    """Cuts a stream into frames, and keeps them until the other end has taken them.

    Args:
        payload_nbytes: most that a frame may carry.
        credit: frames that the other end has room for.
        window: frames that we keep.
        gives_up: stop sending a frame again after six times without a word from the other end.
        byte_seconds: that the line takes for a byte; 0 if that is not known.
    """

    def __init__(self, payload_nbytes: int, credit: int, window: int, gives_up: bool, byte_seconds: float) -> None:
        self.round_trip = RoundTrip((payload_nbytes + OVERHEAD_NBYTES) * byte_seconds)
        self.taken = False
        """Whether the other end has taken any frame."""
        self.behind = 0
        """Frames in a row by which the other end wants what it has taken before, or what it cannot know of."""
        self._most = self._payload_nbytes = payload_nbytes
        self._window = window
        self._credit = min(credit, MAX_CREDIT)
        self._gives_up = gives_up
        self._frames: deque[Outgoing] = deque()
        self._next = 0
        self._given = 0  # frames, from the oldest on, given to the line since we last began anew
        self._sent = 0  # the same, ever
        self._acknowledged = 0.0  # when
        self._unheard = 0  # times that the timer has run out since we heard of the other end
        self._rest = bytearray()  # what does not fill a frame yet
        self._flushed = False

    # ---- the stream

    @property
    def empty(self) -> bool:
        """Whether all has arrived at the other end."""
        return not self._frames and not self._rest

    @property
    def all_given(self) -> bool:
        """Whether all has gone out once at least."""
        return self._sent == len(self._frames) and not self._rest

    def send(self, data: memoryview) -> int:
        """Take some bytes of the stream; how many, 0 when there is no room."""
        taken = 0
        while True:
            self._cut()
            step = min(self._payload_nbytes - len(self._rest), len(data) - taken)
            if step <= 0:
                return taken
            self._rest += data[taken : taken + step]
            self._flushed = False
            taken += step

    def flush(self) -> None:
        """What was taken shall go out now, be it little."""
        self._flushed = True
        self._cut()

    def _cut(self) -> None:
        while self._rest and len(self._frames) < min(self._window, max(self._credit, 1)):
            if len(self._rest) < self._payload_nbytes and not self._flushed:
                return
            payload = bytes(self._rest[: self._payload_nbytes])
            del self._rest[: len(payload)]
            self._frames.append(Outgoing(self._next, payload))
            self._next = (self._next + 1) & 255

    # ---- the line

    def next_frame(self) -> Outgoing | None:
        """The next frame for the line; the caller sets its ``given``."""
        if self._given >= min(len(self._frames), self._credit):
            return None
        frame = self._frames[self._given]
        frame.tries += 1
        self._given += 1
        self._sent = max(self._sent, self._given)
        return frame

    def heard(self, now: float) -> None:
        """A frame of the session has come."""
        if self._unheard:
            if self._given_up:
                self._acknowledged = now
                self.round_trip.calm()
            self._unheard = 0

    def acknowledge(self, wanted: int, credit: int, now: float) -> None:
        """What a frame says of ours."""
        count = (wanted - self._oldest) & 255
        if count > self._sent:
            self.behind += 1
            return  # none that we have sent, or one that has arrived already
        self.behind = 0
        self._credit = min(credit, MAX_CREDIT)
        if count:
            self.taken = True
            last = self._frames[count - 1]
            if last.tries == 1:
                self.round_trip.measured(max(now - last.given, 0.0))
            self._acknowledged = now
            for _ in range(count):
                self._frames.popleft()
            self._sent -= count
            self._given = max(self._given - count, 0)
            self._payload_nbytes = min(self._payload_nbytes + _GROWTH * count, self._most)
        self._cut()

    def refused(self, wanted: int, now: float) -> bool:
        """The other end misses a frame. False: it is none under way."""
        if not self._sent or wanted != self._oldest:
            return False
        if self._given and now >= self._frames[0].given:  # else that was said before it could have come
            self._begin_anew()
        return True

    @property
    def due(self) -> float | None:
        """When the oldest frame is sent again."""
        if not self._given or self._given_up:
            return None
        return max(self._frames[0].given, self._acknowledged) + self.round_trip.patience

    def tick(self, now: float) -> None:
        """Time has passed."""
        due = self.due
        if due is not None and now >= due:
            self._unheard += 1
            self.round_trip.double()
            self._begin_anew()

    @property
    def _oldest(self) -> int:
        return (self._next - len(self._frames)) & 255

    @property
    def _given_up(self) -> bool:
        return self._gives_up and self._unheard >= _TRIES - 1

    def _begin_anew(self) -> None:
        self._given = 0
        self._payload_nbytes = max(self._payload_nbytes // 2, min(MIN_PAYLOAD, self._most))
