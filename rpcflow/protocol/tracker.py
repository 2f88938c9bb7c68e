# SPDX-License-Identifier: Apache-2.0
"""The tracker's frames: ``i32`` size, then that many bytes of JSON. Before them each side sends a magic."""

import enum
import json
import struct
from typing import Any, Final

from rpcflow.errors import AuthenticationError, PermissionDeniedError, ProtocolError, RPCError

from .handshake import TRACKER_MAGIC
from .limits import DEFAULT_LIMITS, Limits

_I32: Final = struct.Struct("<i")
MAGIC_BYTES: Final = _I32.pack(TRACKER_MAGIC)
_REFUSALS: Final = {kind.__name__: kind for kind in (AuthenticationError, PermissionDeniedError)}


class TrackerCode(enum.IntEnum):
    """First element of a message to a tracker."""

    PING = 1
    STOP = 2
    PUT = 3
    REQUEST = 4
    UPDATE_INFO = 5
    SUMMARY = 6
    GET_PENDING_MATCHKEYS = 7


def encode_frame(message: Any, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """One message as a frame. ASCII only, because stock peers count characters.

    Raises:
        ValueError: it is larger than a frame may be.
    """
    return frame(json.dumps(message).encode(), limits.tracker_frame_nbytes)


def frame(data: bytes, most: int = DEFAULT_LIMITS.tracker_frame_nbytes) -> bytes:
    """JSON that is encoded already as a frame.

    Raises:
        ValueError: it is longer than ``most``.
    """
    if len(data) > most:
        raise ValueError(f"a tracker message of {len(data)} bytes; the limit is {most}")
    return _I32.pack(len(data)) + data


def encode_refusal(error: RPCError) -> bytes:
    """The answer of a tracker of ours to whom it does not serve: ``[-1, "KIND: message"]``."""
    return encode_frame([-1, f"{type(error).__name__}: {str(error)[:1000]}"])


def check_refusal(answer: Any) -> None:
    """Raise what a tracker's answer stands for if it is a refusal.

    Raises:
        AuthenticationError, PermissionDeniedError: it does not serve us.
    """
    match answer:
        case [-1, str(text)]:
            kind, _, message = text.partition(": ")
            if kind in _REFUSALS:
                raise _REFUSALS[kind](message)


class FrameReader:
    """Messages out of a byte stream.

    Args:
        magic: whether the stream begins with the tracker's magic.
        limits: bounds a frame.
        answers: whether they are a tracker's answers, which may be longer than messages to one.
    """

    __slots__ = ("_buffer", "_error", "_magic", "_most", "total")

    def __init__(self, magic: bool = True, limits: Limits = DEFAULT_LIMITS, answers: bool = False) -> None:
        self._most = limits.tracker_answer_nbytes if answers else limits.tracker_frame_nbytes
        self._buffer = bytearray()
        self._magic = magic
        self._error: ProtocolError | None = None
        self.total = 0

    @property
    def greeted(self) -> bool:
        """Whether the magic has come, if one was to come."""
        return not self._magic

    @property
    def between_frames(self) -> bool:
        """Whether the bytes so far end with a frame."""
        return not self._buffer and not self._magic

    def feed(self, data: bytes | bytearray | memoryview) -> list[Any]:
        """Take bytes in, return the messages they complete.

        Raises:
            ProtocolError: wrong magic, a size out of bounds, or what is not JSON. From then on every call
                raises it.
        """
        self.add(data)
        messages: list[Any] = []
        while (message := self.next_message()) is not None:
            messages.append(message[0])
        return messages

    def add(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes in without looking at them, for :meth:`next_message`."""
        if self._error is None:
            self._buffer += data
        self.total += len(data)

    def next_message(self) -> tuple[Any] | None:
        """The next message, or None until more bytes come. Errors as :meth:`feed`."""
        if self._error is not None:
            raise self._error
        try:
            return self._next()
        except ProtocolError as error:
            error.offset = error.details["offset"] = self.total
            self._error = error
            self._buffer.clear()
            raise

    def _next(self) -> tuple[Any] | None:
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        (size,) = _I32.unpack_from(buffer)
        if self._magic:
            if size != TRACKER_MAGIC:
                raise ProtocolError(f"the peer does not speak to trackers: it began with {bytes(buffer[:4])!r}")
            self._magic = False
            del buffer[:4]
            return self._next()
        if not 0 < size <= self._most:
            raise ProtocolError(f"a tracker message of {size} bytes; the limit is {self._most}")
        if len(buffer) < 4 + size:
            return None
        body = bytes(buffer[4 : 4 + size])
        del buffer[: 4 + size]
        try:
            return (json.loads(body),)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a tracker message is not JSON: {error}") from None
