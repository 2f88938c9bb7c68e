# SPDX-License-Identifier: Apache-2.0
"""Both ends of the link layer, without I/O and without a clock: times are seconds by any clock that does not go back.

Whoever drives one: gives it what comes off the line (``receive``), tells it that time has passed (``tick``, at
``deadline()`` at the latest), and after either, and after sending and reading, puts ``take_outgoing`` on the line.
"""

import enum
from collections.abc import Callable
from typing import Final

import attrs

from rpcflow.errors import ConnectionLostError, ProtocolError, RPCError

from .frames import MAX_PAYLOAD, MIN_PAYLOAD, Frame, FrameReader, Kind, Reason, encode
from .receiving import Receiver
from .sending import MAX_CREDIT, Sender

VERSION: Final = 1
HELLO_SECONDS: Final = 0.2
PING_SECONDS: Final = 1.0
_HELLOS: Final = 8
"""Sent in vain with one session number before another is tried."""
_BEHIND: Final = 16
"""Frames in a row whose `wanted` cannot be of a device that has been in the session from its beginning. A line that
carries some frames twice may bring a few."""
_REASONS: Final[dict[int, str]] = {
    Reason.UNKNOWN: "the device does not know this session any more: it was reset, or another program has used it",
    Reason.STARTED: "the device was reset",
}


class State(enum.Enum):
    """Of a session."""

    NONE = "none"
    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


def _between(least: int, most: int) -> Callable[[object, "attrs.Attribute[int]", int], None]:
    def check(_: object, attribute: "attrs.Attribute[int]", value: int) -> None:
        if not least <= value <= most:
            raise ValueError(f"{attribute.name} is {least} to {most}, not {value!r}")

    return check


@attrs.frozen
class Sizes:
    """What an end of a link has room for, and what it knows of its line.

    Args:
        payload: bytes in a frame that we take and send, 32 to 1,024.
        window: frames we keep until they are acknowledged, 1 to 64.
        room: frames we keep until they are read, 1 to 64.
        xonxoff: keep the bytes 11 and 13 off the line.
        byte_seconds: how long the line takes for a byte; 0 if that is not known.

    Raises:
        ValueError: one of them is not in its bounds.
    """

    payload: int = attrs.field(default=MAX_PAYLOAD, validator=_between(MIN_PAYLOAD, MAX_PAYLOAD))
    window: int = attrs.field(default=MAX_CREDIT, validator=_between(1, MAX_CREDIT))
    room: int = attrs.field(default=MAX_CREDIT, validator=_between(1, MAX_CREDIT))
    xonxoff: bool = False
    byte_seconds: float = 0.0


DEFAULT_SIZES: Final = Sizes()


class Link:
    """What both ends do alike."""

    def __init__(self, sizes: Sizes) -> None:
        self.state = State.NONE
        self.session = 0
        self.sessions = 0
        """How many have begun."""
        self.error: RPCError | None = None
        """Why the session is over, if it did not end as it should."""
        self._sizes = sizes
        self._idle = 0.0  # when the line will have taken all it was given
        self._reader = FrameReader(sizes.payload)
        self._sender = Sender(MIN_PAYLOAD, 0, 1, False, 0.0)
        self._receiver = Receiver(sizes.room)
        self._waiting: dict[Kind, Frame] = {}  # frames that are no DATA; of a kind only the latest counts

    # ---- the stream

    @property
    def readable(self) -> bool:
        """Whether ``read_into`` has something."""
        return self._receiver.readable

    @property
    def empty(self) -> bool:
        """Whether all that was sent has arrived at the other end."""
        return self._sender.empty

    @property
    def all_given(self) -> bool:
        """Whether all that was sent has gone out once at least."""
        return self._sender.all_given

    @property
    def urgent(self) -> bool:
        """Whether there is something for the line that the other end waits for."""
        return self._receiver.wants_ack or self._receiver.wants_nak

    def send(self, data: memoryview) -> int:
        """Take some bytes of the stream; how many, 0 when there is no room. Short ones wait for :meth:`flush`."""
        return self._sender.send(data) if self.state is State.OPEN else 0

    def flush(self) -> None:
        """What was taken shall go out now."""
        self._sender.flush()

    def read_into(self, buffer: memoryview) -> int:
        """Take what has come; how many bytes, 0 when there are none now."""
        return self._receiver.read_into(buffer)

    def close(self) -> None:
        """End the session; the other end is told."""
        if self.state in (State.OPENING, State.OPEN):
            self._waiting = {Kind.RESET: self._reset(self.session, Reason.CLOSED)}
        self.state = State.CLOSED

    # ---- the line

    def receive(self, data: bytes, now: float) -> None:
        """This came off the line."""
        for frame in self._reader.feed(data):
            if frame is not None:
                self._received(frame, now)
            elif self.state is State.OPEN:
                self._receiver.damaged()

    def take_outgoing(self, now: float) -> bytes:
        """What the line is to take now, all of it."""
        out = [self._encoded(frame, now) for frame in self._waiting.values()]
        self._waiting.clear()
        if self.state is State.OPEN:
            receiver = self._receiver
            if receiver.wants_nak:
                out.append(self._encoded(self._frame(Kind.NAK), now))
            while (sent := self._sender.next_frame()) is not None:
                out.append(self._encoded(self._frame(Kind.DATA, sent.number, sent.payload), now))
                sent.given = self._idle
            if receiver.wants_ack:
                out.append(self._encoded(self._frame(Kind.ACK), now))
        return b"".join(out)

    def deadline(self) -> float | None:
        """When ``tick`` has something to do; None: not before something else has happened."""
        if self.state is not State.OPEN:
            return None
        return min((due for due in (self._sender.due, self._receiver.due) if due is not None), default=None)

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self.state is State.OPEN:
            self._sender.tick(now)
            self._receiver.tick(now)

    # ---- inside

    def _received(self, frame: Frame, now: float) -> None:
        raise NotImplementedError

    def _open(self, frame: Frame) -> None:
        """``frame``: HELLO or WELCOME of the other end."""
        most = min(self._sizes.payload, _payload_nbytes(frame))
        gives_up = isinstance(self, DeviceLink)
        self._sender = Sender(most, frame.credit, self._sizes.window, gives_up, self._sizes.byte_seconds)
        self._receiver = Receiver(self._sizes.room)
        self.state = State.OPEN
        self.sessions += 1

    def _in_session(self, frame: Frame, now: float) -> None:
        """DATA, ACK, NAK or PING of this session."""
        self._sender.heard(now)
        self._sender.acknowledge(frame.wanted, frame.credit, now)
        match frame.kind:
            case Kind.DATA:
                self._receiver.data(frame.number, frame.payload, now)
            case Kind.NAK:
                if not self._sender.refused(frame.wanted, now):
                    self._receiver.wants_ack = True
            case Kind.PING:
                self._receiver.wants_ack = True

    def _frame(self, kind: Kind, number: int = 0, payload: bytes = b"") -> Frame:
        receiver = self._receiver
        receiver.told()
        return Frame(kind, self.session, number, receiver.wanted, receiver.credit, payload)

    def _opening(self, kind: Kind, credit: int) -> Frame:
        payload = bytes([VERSION]) + self._sizes.payload.to_bytes(2, "little")
        return Frame(kind, self.session, 0, 0, credit, payload)

    @staticmethod
    def _reset(session: int, reason: Reason) -> Frame:
        return Frame(Kind.RESET, session, 0, 0, 0, bytes([reason, VERSION]))

    def _encoded(self, frame: Frame, now: float) -> bytes:
        line = encode(frame, self._sizes.xonxoff)
        self._idle = max(self._idle, now) + len(line) * self._sizes.byte_seconds
        return line


class HostLink(Link):
    """The host's end: begins the session, and notices that the line is dead.

    Args:
        pick: a number at random, from 1 to 65,535: of the session.
        now: the time.
        sizes: of this end.
        timeout: seconds without a word from the device until it is given up.
    """

    def __init__(
        self,
        pick: Callable[[], int],
        now: float,
        sizes: Sizes = DEFAULT_SIZES,
        timeout: float = 5.0,
    ) -> None:
        super().__init__(sizes)
        self._pick = pick
        self._timeout = timeout
        self._heard = self._attended = now
        self._hello = now
        self._hellos = 0
        self._ping = now
        self.session = pick()
        self.state = State.OPENING
        self.tick(now)

    def receive(self, data: bytes, now: float) -> None:
        self._attend(now)
        super().receive(data, now)

    def deadline(self) -> float | None:
        if self.state is State.OPENING:
            return min(self._hello, self._heard + self._timeout)
        if self.state is not State.OPEN:
            return None
        silence = min(self._ping, self._heard + self._timeout)
        due = super().deadline()
        return silence if due is None else min(due, silence)

    def tick(self, now: float) -> None:
        self._attend(now)
        super().tick(now)
        if self.state in (State.OPENING, State.OPEN) and now >= self._heard + self._timeout:
            opening = self.state is State.OPENING
            what = "no device answers" if opening else "the line is dead: the device has not said a word"
            self._fail(ConnectionLostError(f"{what} within {self._timeout:g} s"))
        elif self.state is State.OPENING and now >= self._hello:
            if self._hellos and self._hellos % _HELLOS == 0:
                self.session = self._pick()
            self._hellos += 1
            # On a slow line, several frames' time, lest they queue up.
            self._hello = now + max(HELLO_SECONDS, 60 * self._sizes.byte_seconds)
            self._waiting[Kind.HELLO] = self._opening(Kind.HELLO, self._sizes.room)
        elif self.state is State.OPEN and now >= self._ping:
            self._ping = now + PING_SECONDS
            self._waiting[Kind.PING] = self._frame(Kind.PING)

    def _attend(self, now: float) -> None:
        """Silence counts while somebody listens: not between two calls, and not while this process was stopped."""
        if now - self._attended > 2 * PING_SECONDS:
            self._heard, self._ping = now, now + PING_SECONDS
        self._attended = now

    def _received(self, frame: Frame, now: float) -> None:
        if frame.kind is Kind.RESET and self.state is not State.CLOSED:
            self._was_reset(frame, now)
        elif frame.session != self.session:
            return
        elif frame.kind is Kind.WELCOME:
            if self.state is State.OPENING and _payload_nbytes(frame) >= MIN_PAYLOAD:
                self._waiting.clear()
                self._open(frame)
                self._heard, self._ping = now, now + PING_SECONDS
            elif self.state is State.OPEN and self._sender.taken:
                self._fail(ConnectionLostError(_REASONS[Reason.STARTED]))
        elif frame.kind is not Kind.HELLO and self.state is State.OPEN:
            self._heard, self._ping = now, now + PING_SECONDS
            self._in_session(frame, now)
            if self._sender.behind >= _BEHIND:
                self._fail(ConnectionLostError(_REASONS[Reason.STARTED]))

    def _was_reset(self, frame: Frame, now: float) -> None:
        reason = frame.payload[0]
        if self.state is State.OPENING:
            if frame.session == 0:
                self._hello = now
            elif frame.session == self.session and reason == Reason.VERSION:
                self._fail(
                    ProtocolError(f"the device speaks version {frame.payload[1]} of the link layer, we speak {VERSION}")
                )
        elif frame.session == 0 or (frame.session == self.session and reason != Reason.CLOSED):
            self._fail(ConnectionLostError(_REASONS.get(reason, "the device ended the session")))
        elif frame.session == self.session:
            self.state = State.CLOSED

    def _fail(self, error: RPCError) -> None:
        self._waiting.clear()
        self.error = error
        self.state = State.CLOSED


class DeviceLink(Link):
    """The device's end, for one host at a time. ``state`` is NONE while no host has begun a session."""

    def __init__(self, sizes: Sizes = DEFAULT_SIZES) -> None:
        super().__init__(sizes)
        self._waiting[Kind.RESET] = self._reset(0, Reason.STARTED)

    def _received(self, frame: Frame, now: float) -> None:
        current = self.state is State.OPEN and frame.session == self.session
        match frame.kind:
            case Kind.WELCOME:
                return
            case Kind.RESET:
                if current:
                    self.state = State.NONE
            case Kind.HELLO:
                self._greeted(frame, current)
            case _ if current:
                self._in_session(frame, now)
            case _:
                self._waiting[Kind.RESET] = self._reset(frame.session, Reason.UNKNOWN)

    def _greeted(self, frame: Frame, current: bool) -> None:
        if frame.payload[0] != VERSION:
            self._waiting[Kind.RESET] = self._reset(frame.session, Reason.VERSION)
            return
        if frame.session == 0 or _payload_nbytes(frame) < MIN_PAYLOAD or (current and self._receiver.began):
            return
        if not current:
            self.session = frame.session
            self._waiting.clear()
            self._open(frame)
        self._waiting[Kind.WELCOME] = self._opening(Kind.WELCOME, self._sizes.room)


def _payload_nbytes(frame: Frame) -> int:
    return int.from_bytes(frame.payload[1:3], "little")
