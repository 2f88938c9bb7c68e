# SPDX-License-Identifier: Apache-2.0
"""Packets out of a byte stream, bit by bit, with bulk data going straight to where it belongs.

How a driver uses a reader: fill ``get_buffer()``, tell how much with ``received()``, then take events until
``next_event()`` gives None. Three kinds of events come:

- a packet. CopyToRemote and CopyAck come as soon as their head is in; the caller may then name a sink with
  ``receive_payload()`` (else the payload is thrown away), and PayloadEnd follows behind the last byte.
- :class:`Bulk`: a large packet holds a long value. The caller may name a sink (else memory that grows), and
  the packet comes whole when it is whole, with what the sink made of the data in the value's place.
- :class:`PayloadEnd`.

From where bytes cannot be a packet any more, every call raises the same ProtocolError.
"""

import enum
import struct
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final, NamedTuple, cast

from rpcflow.errors import ProtocolError

from .limits import DEFAULT_LIMITS, Limits
from .packets import (
    FIRST_SYSCALL,
    LAST_SYSCALL,
    CallFunc,
    Code,
    CopyAck,
    CopyFromRemote,
    CopyToRemote,
    ExceptionPacket,
    InitServer,
    Packet,
    Return,
    Shutdown,
    SysCall,
)
from .sinks import DiscardSink, MemorySink, Sink
from .values import I32, U64, TypeIndex, Value, check_ndim, decode_tensor, decode_value, decode_values

_HEAD: Final = struct.Struct("<Qi")
_SCRATCH_NBYTES: Final = 1 << 16
_CALL_FUNC: Final = int(Code.CALL_FUNC)
_RETURN: Final = int(Code.RETURN)


class Direction(enum.Enum):
    """Which way a stream flows; each way has its own legal codes."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


_LEGAL: Final = {
    Direction.TO_SERVER: frozenset(
        {Code.SHUTDOWN, Code.INIT_SERVER, Code.CALL_FUNC, Code.COPY_FROM_REMOTE, Code.COPY_TO_REMOTE}
        | set(range(FIRST_SYSCALL, LAST_SYSCALL + 1))
    ),
    Direction.TO_CLIENT: frozenset({Code.SHUTDOWN, Code.RETURN, Code.EXCEPTION, Code.COPY_ACK}),
}
_MAY_BE_LARGE: Final = frozenset({Code.INIT_SERVER, Code.CALL_FUNC, Code.RETURN})
_FIXED_NBYTES: Final = {
    TypeIndex.NONE: 0,
    TypeIndex.INT: 8,
    TypeIndex.BOOL: 8,
    TypeIndex.FLOAT: 8,
    TypeIndex.POINTER: 8,
    TypeIndex.DTYPE: 8,
    TypeIndex.DEVICE: 8,
    TypeIndex.FUNCTION: 8,
    TypeIndex.MODULE: 8,
}


class Bulk(NamedTuple):
    """A long value is about to come. ``values``: those before it in its packet; ``handle``: of a CallFunc."""

    code: Code
    handle: int | None
    values: list[Value]
    nbytes: int
    is_text: bool


class PayloadEnd(NamedTuple):
    """The payload of the CopyToRemote or CopyAck before is in. ``value``: what its sink made of it."""

    value: object = None


Event = Packet | Bulk | PayloadEnd
_Steps = Generator[Event | None, None, Event]


class PacketReader:
    """Turns one direction of a session's byte stream into events.

    Args:
        direction: which codes are legal.
        limits: how large things may be.
    """

    def __init__(self, direction: Direction, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._direction = direction
        self._legal = _LEGAL[direction]
        # The packet that small calls are made of is worth a way of its own.
        self._usual = int(Code.CALL_FUNC if direction is Direction.TO_SERVER else Code.RETURN)
        self._packet_limit = limits.packet_nbytes
        self._view = memoryview(bytearray(_SCRATCH_NBYTES))
        self._start = self._end = 0
        self._wanted = 12  # bytes from _start on without which there is no progress
        self._steps: _Steps | None = None
        self._sink: Sink | None = None
        self._sinking = 0  # bytes the current sink still wants straight from the line
        self._error: ProtocolError | None = None
        self._total = 0

    # ---- bytes in

    def get_buffer(self) -> memoryview:
        """Room for the next bytes of the stream, at least one; valid until the next call of anything here."""
        if self._sinking:
            assert self._sink is not None
            room = self._sink.get_buffer()
            return room[: self._sinking] if len(room) > self._sinking else room
        view = self._view
        if self._start == self._end:
            self._start = self._end = 0
            if self._wanted <= len(view):
                return view
        if self._end == len(view) or (self._start and self._start + self._wanted > len(view)):
            self._make_room()
            view = self._view
        return view[self._end :] if self._end else view

    def fresh_buffer(self) -> memoryview | None:
        """As :meth:`get_buffer` where a packet begins, from the buffer's first byte on; None in the middle of one.

        Whoever understands what was put there without our help says so by :meth:`consumed`, else by :meth:`received`.
        """
        if self._steps is not None or self._start != self._end or self._error is not None:
            return None
        self._start = self._end = 0
        return self._view

    def consumed(self, nbytes: int) -> None:
        """So many bytes were put into the fresh buffer, and are dealt with."""
        self._total += nbytes

    def received(self, nbytes: int) -> None:
        """So many bytes were put into the buffer given last."""
        self._total += nbytes
        if self._sinking:
            assert self._sink is not None
            self._sink.filled(nbytes)
            self._sinking -= nbytes
        else:
            self._end += nbytes

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Take ``data`` in and return the events it completes, bulk data going to default sinks.

        Raises:
            ProtocolError: as :meth:`next_event`. Events before the fault are lost: drivers that must have
            them
                use the three calls of the class.
        """
        events: list[Event] = []
        rest = memoryview(data)
        while True:
            event = self.next_event()
            if event is not None:
                events.append(event)
            elif len(rest) == 0:
                return events
            else:
                room = self.get_buffer()
                step = min(len(room), len(rest))
                room[:step] = rest[:step]
                rest = rest[step:]
                self.received(step)

    @property
    def between_packets(self) -> bool:
        """Whether the bytes so far end with a packet. Meaningful once :meth:`next_event` has given None."""
        return self._steps is None and self._start == self._end

    @property
    def total(self) -> int:
        """Bytes taken in so far."""
        return self._total

    def unread(self) -> bytes:
        """Take out what came behind the last event, for whoever reads the stream from here on."""
        rest = bytes(self._view[self._start : self._end])
        self._start = self._end
        return rest

    # ---- events out

    def next_event(self) -> Event | None:
        """The next event, or None when more bytes are needed for it.

        Raises:
            ProtocolError: the stream is not the protocol; ``offset`` says how many bytes had been taken in.
        """
        if self._error is not None:
            raise self._error
        try:
            if self._steps is not None:
                return self._step()
            return self._packet()
        except ProtocolError as error:
            self._fail(error)
            raise

    def receive_payload(self, sink: Sink) -> None:
        """Where the bulk data announced by the last event shall go."""
        self._sink = sink

    def close(self) -> None:
        """No more will be read: let go of a sink that waits for data."""
        if self._sink is not None:
            self._sink.abandon()
            self._sink = None
        self._steps = None
        self._sinking = 0

    # ---- inside

    def _fail(self, error: ProtocolError) -> None:
        error.offset = error.details["offset"] = self._total
        self._error = error
        self.close()

    def _packet(self) -> Event | None:
        while True:
            start = self._start
            available = self._end - start
            if available < 12:
                if available < 8:
                    self._wanted = 12
                    return None
                (length,) = U64.unpack_from(self._view, start)
                self._check_length(length)
                if length == 0:
                    self._start += 8
                    continue
                self._wanted = 12
                return None
            length, code = _HEAD.unpack_from(self._view, start)
            if code == self._usual and 12 <= length <= self._packet_limit:
                end = start + 8 + length
                if self._end < end:
                    self._wanted = 8 + length
                    return None
                self._wanted = 12
                packet = _decode(code, self._view[start + 12 : end], self.limits)
                self._start = end
                return packet
            if length == 0:
                self._start += 8
                continue
            self._check_length(length)
            if code not in self._legal:
                raise ProtocolError(f"{code} is not the code of a packet that flows {self._direction.value}")
            if code in (Code.COPY_TO_REMOTE, Code.COPY_ACK):
                self._start += 12
                self._steps = self._copy(code, length - 4)
                return self._step()
            if length > self.limits.packet_nbytes:
                if code not in _MAY_BE_LARGE:
                    raise ProtocolError(
                        f"a {Code(code).name} packet of {length} bytes is refused; the limit is "
                        f"{self.limits.packet_nbytes}"
                    )
                self._start += 12
                self._steps = self._large(Code(code), length - 4)
                return self._step()
            if available < 8 + length:
                self._wanted = 8 + length
                return None
            self._wanted = 12
            end = start + 8 + length
            packet = _decode(code, self._view[start + 12 : end], self.limits)
            self._start = end
            return packet

    def _check_length(self, length: int) -> None:
        if 0 < length < 4:
            raise ProtocolError(f"a packet of {length} bytes has no room for its code")
        if length >= 1 << 62:
            raise ProtocolError(f"a packet of {length} bytes is larger than any memory")

    def _step(self) -> Event | None:
        assert self._steps is not None
        try:
            return next(self._steps)
        except StopIteration as stop:
            self._steps = None
            self._wanted = 12
            return cast(Event, stop.value)

    def _need(self, nbytes: int) -> Generator[None, None, memoryview]:
        """The next ``nbytes`` of the stream as a view that lasts until the next bytes are asked for."""
        while self._end - self._start < nbytes:
            self._wanted = nbytes
            yield None
        self._wanted = 1
        start = self._start
        self._start += nbytes
        return self._view[start : start + nbytes]

    def _pour(self, nbytes: int, fallback: Callable[[], Sink]) -> Generator[None, None, object]:
        """Let ``nbytes`` flow into the sink that the caller has named, or into one that ``fallback``
        makes."""
        sink = self._sink = self._sink or fallback()
        at_hand = min(nbytes, self._end - self._start)
        nbytes -= at_hand
        while at_hand:
            room = sink.get_buffer()
            step = min(len(room), at_hand)
            assert step > 0  # else this would never end
            room[:step] = self._view[self._start : self._start + step]
            sink.filled(step)
            self._start += step
            at_hand -= step
        self._sinking = nbytes
        while self._sinking:
            yield None
        self._sink = None
        return sink.finish()

    def _copy(self, code: int, nbytes: int) -> _Steps:
        if code == Code.COPY_ACK:
            yield CopyAck(nbytes)
            return PayloadEnd((yield from self._pour(nbytes, DiscardSink)))
        if nbytes < 40:
            raise ProtocolError("a CopyToRemote packet is too short for its tensor")
        head = yield from self._need(24)
        (ndim,) = I32.unpack_from(head, 16)
        check_ndim(ndim, self.limits)
        self._start -= 24
        head_nbytes = 32 + 8 * ndim + 8
        if nbytes < head_nbytes:
            raise ProtocolError("a CopyToRemote packet is too short for its tensor")
        head = yield from self._need(head_nbytes)
        tensor, pos = decode_tensor(head, 0, self.limits)
        (payload,) = U64.unpack_from(head, pos)
        if payload != nbytes - head_nbytes:
            raise ProtocolError(f"a CopyToRemote packet says {payload} bytes and has room for {nbytes - head_nbytes}")
        yield CopyToRemote(tensor, payload)
        return PayloadEnd((yield from self._pour(payload, DiscardSink)))

    def _large(self, code: Code, nbytes: int) -> _Steps:
        """A packet beyond the packet limit: all but its long values must still fit into that limit."""
        ends = self._total - (self._end - self._start) + nbytes
        limits = self.limits
        budget = limits.packet_nbytes
        if nbytes > limits.value_nbytes + limits.packet_nbytes:
            raise ProtocolError(
                f"a {code.name} packet of {nbytes} bytes is refused; the limit for strings and bytes is "
                f"{limits.value_nbytes}"
            )

        def left() -> int:
            return ends - (self._total - (self._end - self._start))

        def need(size: int) -> Generator[None, None, memoryview]:
            nonlocal budget
            budget -= size
            if size > left():
                raise ProtocolError("a packet ends in the middle of a value")
            if budget < 0:
                raise ProtocolError(
                    f"a {code.name} packet has over {limits.packet_nbytes} bytes beside its long values"
                )
            return (yield from self._need(size))

        handle: int | None = None
        version = ""
        if code == Code.CALL_FUNC:
            (handle,) = U64.unpack((yield from need(8)))
        elif code == Code.INIT_SERVER:
            (size,) = U64.unpack((yield from need(8)))
            version = _version((yield from need(_bounded(size, limits.packet_nbytes))))
        (count,) = I32.unpack((yield from need(4)))
        if not 0 <= count <= min(left(), limits.packet_nbytes) // 4:
            raise ProtocolError(f"a packet of {nbytes} bytes cannot hold {count} values")
        values: list[Value] = []
        for _ in range(count):
            (index,) = I32.unpack((yield from need(4)))
            if index in _FIXED_NBYTES:
                fixed = yield from need(_FIXED_NBYTES[index])
                values.append(decode_value(index, fixed, 0, limits)[0])
                continue
            if index == TypeIndex.DLTENSOR:
                (ndim,) = I32.unpack_from((yield from need(24)), 16)
                check_ndim(ndim, limits)
                self._start -= 24
                budget += 24
                values.append(decode_tensor((yield from need(32 + 8 * ndim)), 0, limits)[0])
                continue
            raw = index in (TypeIndex.RAW_STR, TypeIndex.RAW_BYTES)
            is_text = index == TypeIndex.RAW_STR
            head_nbytes = 8 if raw else 12
            head = yield from need(head_nbytes)
            size = U64.unpack_from(head, head_nbytes - 8)[0]
            if not raw:
                if not (index >= TypeIndex.OBJECT or index in (TypeIndex.SMALL_STR, TypeIndex.SMALL_BYTES)):
                    raise ProtocolError(f"{index} is not the index of a type that travels over RPC")
                (inner,) = I32.unpack_from(head, 0)
                is_text = inner == TypeIndex.STR
                if inner not in (TypeIndex.STR, TypeIndex.BYTES):
                    values.append(decode_value(index, head, 0, limits)[0])
                    continue
            if size > left():
                raise ProtocolError("a packet ends in the middle of a value")
            if size < limits.bulk_nbytes:
                self._start -= head_nbytes
                budget += head_nbytes
                values.append(decode_value(index, (yield from need(head_nbytes + size)), 0, limits)[0])
                continue
            if size > limits.value_nbytes:
                raise ProtocolError(f"a value of {size} bytes is refused; the limit is {limits.value_nbytes}")
            yield Bulk(code, handle, values, size, is_text)
            poured: Any = yield from self._pour(size, partial(MemorySink, size))
            if is_text and isinstance(poured, bytearray):
                try:
                    poured = poured.decode()
                except UnicodeDecodeError as error:
                    raise ProtocolError(f"a text is not UTF-8: {error.reason}") from None
            values.append(poured)
        if left():
            raise ProtocolError(f"{left()} bytes stand behind the last value of a packet")
        if handle is not None:
            return CallFunc(handle, values)
        return InitServer(version, values) if code == Code.INIT_SERVER else Return(values)

    def _make_room(self) -> None:
        """Move what is unread to the front, into a buffer twice as large if this one is full.

        So memory is taken as bytes arrive, not as they are claimed, and however small the pieces are in which
        they come, each byte is moved a few times at most.
        """
        size = len(self._view)
        unread = self._end - self._start
        target = self._view
        if unread == size:
            target = memoryview(bytearray(min(2 * size, max(self._wanted, size + 1))))
        target[:unread] = self._view[self._start : self._end]
        self._view = target
        self._start, self._end = 0, unread


def _bounded(size: int, limit: int) -> int:
    if size > limit:
        raise ProtocolError("a version text ends behind its packet")
    return size


def _version(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"a version text is not UTF-8: {error.reason}") from None


def _decode(code: int, body: memoryview, limits: Limits) -> Packet:
    try:
        if code == _CALL_FUNC:
            return CallFunc(U64.unpack_from(body)[0], decode_values(body, 8, limits))
        if code == _RETURN:
            return Return(decode_values(body, 0, limits))
        if code >= FIRST_SYSCALL:
            return SysCall(Code(code), decode_values(body, 0, limits))
        if code == Code.EXCEPTION:
            values = decode_values(body, 0, limits)
            if len(values) != 1 or not isinstance(values[0], str):
                raise ProtocolError("an Exception packet holds exactly one text")
            return ExceptionPacket(values[0])
        if code == Code.COPY_FROM_REMOTE:
            tensor, pos = decode_tensor(body, 0, limits)
            (nbytes,) = U64.unpack_from(body, pos)
            if pos + 8 != len(body):
                raise ProtocolError("bytes stand behind a CopyFromRemote request")
            return CopyFromRemote(tensor, nbytes)
        if code == Code.INIT_SERVER:
            (size,) = U64.unpack_from(body)
            if size > len(body) - 8:
                raise ProtocolError("a version text ends behind its packet")
            return InitServer(_version(body[8 : 8 + size]), decode_values(body, 8 + size, limits))
    except struct.error:
        raise ProtocolError("a packet ends in the middle of a value") from None
    if len(body):
        raise ProtocolError("bytes stand behind a Shutdown")
    return Shutdown()
