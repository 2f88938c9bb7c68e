# SPDX-License-Identifier: Apache-2.0
"""Frames of the link layer: fields to bytes for the line, and back from whatever the line makes of them."""

import enum
import re
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import crc32

MIN_PAYLOAD: Final = 32
MAX_PAYLOAD: Final = 1024
OVERHEAD_NBYTES: Final = 12
"""Bytes of a frame on the line that are not payload, before stuffing."""
_HEAD: Final = struct.Struct("<BHBBB")
_FCS: Final = struct.Struct("<I")
_LEAST: Final = _HEAD.size + _FCS.size
_FLAG: Final = b"\x7e"
_ESCAPED: Final = re.compile(rb"\x7d(.?)", re.DOTALL)
_MEANT: Final = {bytes([i]): bytes([i ^ 0x20]) for i in range(256)}


class Kind(enum.IntEnum):
    """What a frame is for."""

    HELLO = 1
    WELCOME = 2
    DATA = 3
    ACK = 4
    NAK = 5
    PING = 6
    RESET = 7


class Reason(enum.IntEnum):
    """Why a RESET."""

    UNKNOWN = 0
    STARTED = 1
    CLOSED = 2
    VERSION = 3


class Frame(NamedTuple):
    """One frame; the fields are those of the specification, docs/reference/link.md."""

    kind: Kind
    session: int
    number: int
    wanted: int
    credit: int
    payload: bytes = b""


_SHORTEST: Final = {Kind.HELLO: 3, Kind.WELCOME: 3, Kind.DATA: 1, Kind.RESET: 2}
"""Bytes of payload that a kind cannot do without."""


def encode(frame: Frame, xonxoff: bool = False) -> bytes:
    """The bytes for the line. ``xonxoff``: the bytes 11 and 13 must not be among them."""
    kind, session, number, wanted, credit, payload = frame
    body = _HEAD.pack(kind, session, number, wanted, credit) + payload
    body += _FCS.pack(crc32(body))
    body = body.replace(b"\x7d", b"\x7d\x5d").replace(b"\x7e", b"\x7d\x5e")
    if xonxoff:
        body = body.replace(b"\x11", b"\x7d\x31").replace(b"\x13", b"\x7d\x33")
    return _FLAG + body + _FLAG


def decode(stuffed: bytes | bytearray, payload_nbytes: int) -> Frame | None:
    """The frame of what stands between two flags, or None if it is damaged: one with more payload than
    ``payload_nbytes`` is."""
    try:
        body = _ESCAPED.sub(lambda match: _MEANT[match[1]], stuffed) if b"\x7d" in stuffed else bytes(stuffed)
        end = len(body) - _FCS.size
        if not _LEAST <= len(body) <= _LEAST + payload_nbytes or crc32(body[:end]) != _FCS.unpack_from(body, end)[0]:
            return None
        kind, session, number, wanted, credit = _HEAD.unpack_from(body)
        frame = Frame(Kind(kind), session, number, wanted, credit, body[_HEAD.size : end])
    except (KeyError, ValueError):  # an escape of nothing; an unknown kind
        return None
    return frame if len(frame.payload) >= _SHORTEST.get(frame.kind, 0) else None


class FrameReader:
    """Finds frames in what comes off the line, in pieces of any size; holds no more than one frame.

    Args:
        payload_nbytes: longest payload we have offered to take.
    """

    def __init__(self, payload_nbytes: int) -> None:
        self._payload_nbytes = payload_nbytes
        self._most = 2 * (_LEAST + payload_nbytes)
        self._held = bytearray()
        self._overlong = False
        self._synchronized = False

    def feed(self, data: bytes) -> Iterator[Frame | None]:
        """Every frame that ``data`` ends, None for each damaged one. To be used up before the next feed."""
        begin = 0
        while True:
            end = data.find(_FLAG, begin)
            if end < 0:
                self._hold(data[begin:])
                return
            self._hold(data[begin:end])
            begin = end + 1
            held, overlong = self._held, self._overlong
            self._held, self._overlong = bytearray(), False
            if not self._synchronized:
                self._synchronized = True  # we came in the middle of something that was not for us
            elif overlong:
                yield None
            elif held:
                yield decode(held, self._payload_nbytes)

    def _hold(self, piece: bytes) -> None:
        if self._synchronized and not self._overlong:
            if len(self._held) + len(piece) <= self._most:
                self._held += piece
            else:
                self._held.clear()
                self._overlong = True
