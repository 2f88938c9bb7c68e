# SPDX-License-Identifier: Apache-2.0
"""The frames of a pairing conversation. Small, few, and each refused as soon as its head says it is none.

A frame is a version (1), a kind, the length of its body (uint16, little endian), and the body.
"""

import enum
import struct
from typing import Final

import attrs

from rpcflow.errors import ProtocolError

VERSION: Final = 1
HEAD_NBYTES: Final = 4
PIN_NBYTES: Final = 32
ELEMENT_NBYTES: Final = 33
"""A side's letter and a point of the curve."""
MAC_NBYTES: Final = 32
NAME_NBYTES: Final = 64
CERTIFICATE_NBYTES: Final = 8192
_HEAD: Final = struct.Struct("<BBH")


class Kind(enum.IntEnum):
    """What a frame says."""

    HELLO = 1
    """Client: the pin of its certificate, and its element."""
    REPLY = 2
    """Server: its element."""
    CLIENT_CONFIRM = 3
    """Client: a code that only who knows the one-time code can make."""
    SERVER_CONFIRM = 4
    """Server: as the client's."""
    INTRODUCTION = 5
    """Client: a code over all, the name it wishes for, its certificate."""
    STORED = 6
    """Server: a code over all, the name it has got."""
    REFUSED = 7
    """Server: why it goes no further."""


class Reason(enum.IntEnum):
    """Why a server goes no further."""

    NO_PAIRING = 1
    WRONG_CODE = 2
    BUSY = 3
    NOT_STORED = 4
    MALFORMED = 5


_LENGTHS: Final = {
    Kind.HELLO: (PIN_NBYTES + ELEMENT_NBYTES, PIN_NBYTES + ELEMENT_NBYTES),
    Kind.REPLY: (ELEMENT_NBYTES, ELEMENT_NBYTES),
    Kind.CLIENT_CONFIRM: (MAC_NBYTES, MAC_NBYTES),
    Kind.SERVER_CONFIRM: (MAC_NBYTES, MAC_NBYTES),
    Kind.INTRODUCTION: (MAC_NBYTES + 2, MAC_NBYTES + 1 + NAME_NBYTES + CERTIFICATE_NBYTES),
    Kind.STORED: (MAC_NBYTES + 1, MAC_NBYTES + NAME_NBYTES),
    Kind.REFUSED: (1, 1),
}


@attrs.frozen
class Frame:
    """One frame. Its body is not shown: it is of no use to people."""

    kind: Kind
    body: bytes = attrs.field(repr=False)

    def encode(self) -> bytes:
        """What goes over the line.

        Raises:
            ValueError: the body is longer or shorter than its kind allows.
        """
        least, most = _LENGTHS[self.kind]
        if not least <= len(self.body) <= most:
            raise ValueError(f"{len(self.body)} bytes are no {self.kind.name}")
        return _HEAD.pack(VERSION, self.kind, len(self.body)) + self.body


def refusal(reason: Reason) -> Frame:
    """The frame that ends a conversation."""
    return Frame(Kind.REFUSED, bytes((reason,)))


def reason_of(frame: Frame) -> Reason:
    """Why a server goes no further.

    Raises:
        ProtocolError: that is no reason.
    """
    try:
        return Reason(frame.body[0])
    except ValueError:
        raise ProtocolError(f"a refusal to pair without a reason we know: {frame.body[0]}") from None


class FrameReader:
    """Takes one frame after the other off a line: read exactly ``wanted`` bytes, give them to :meth:`feed`."""

    def __init__(self) -> None:
        self.wanted = HEAD_NBYTES
        self._kind: Kind | None = None

    def feed(self, data: bytes) -> Frame | None:
        """Take ``wanted`` bytes; the frame, once it is whole.

        Raises:
            ProtocolError: that is no frame.
        """
        if len(data) != self.wanted:
            raise ValueError(f"{len(data)} bytes where {self.wanted} are due")
        if self._kind is None:
            self._kind, self.wanted = _read_head(data)
            return None
        frame = Frame(self._kind, bytes(data))
        self._kind, self.wanted = None, HEAD_NBYTES
        return frame


def _read_head(data: bytes) -> tuple[Kind, int]:
    version, number, length = _HEAD.unpack(data)
    if version != VERSION:
        raise ProtocolError(f"a frame of version {version}; pairing is of version {VERSION}")
    try:
        kind = Kind(number)
    except ValueError:
        raise ProtocolError(f"a frame of kind {number}, which pairing does not know") from None
    least, most = _LENGTHS[kind]
    if not least <= length <= most:
        raise ProtocolError(f"a {kind.name} of {length} bytes")
    return kind, length


def pack_introduction(name: str, certificate: bytes) -> bytes:
    """What a client introduces itself with.

    Args:
        name: the name it wishes for.
        certificate: DER.

    Raises:
        ValueError: one of them is too long, or there is none.
    """
    text = name.encode()
    if len(text) > NAME_NBYTES:
        raise ValueError(f"a name is no longer than {NAME_NBYTES} bytes")
    if not 0 < len(certificate) <= CERTIFICATE_NBYTES:
        raise ValueError(f"a certificate for pairing has 1 to {CERTIFICATE_NBYTES} bytes, not {len(certificate)}")
    return bytes((len(text),)) + text + certificate


def unpack_introduction(data: bytes) -> tuple[str, bytes]:
    """The name and the certificate. The name may be any text.

    Raises:
        ProtocolError: they cannot be told apart.
    """
    count = data[0]
    if count > NAME_NBYTES or len(data) <= 1 + count:
        raise ProtocolError("an introduction whose name does not fit")
    return unpack_name(data[1 : 1 + count]), data[1 + count :]


def unpack_name(data: bytes) -> str:
    """A name, any text.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ProtocolError("a name that is not text") from None
