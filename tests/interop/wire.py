"""The bytes of TVM's RPC, read by code that is independent of rpcflow's own.

Every packet is taken apart into plain tuples, and the places at which a handle or a pointer stands are
kept, so that a recorded packet can be sent again to a server that gave out other numbers.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAGIC = 0xFF271
INIT, CALL, RETURN, EXCEPTION, COPY_FROM, COPY_TO, COPY_ACK = 2, 3, 4, 5, 6, 7, 8
SHUTDOWN, FIND, FREE, FREE_DATA, SYNC = 1, 9, 10, 14, 15
VERSION = b"0.8.0"

#: where the lead keeps the recordings
RECORDINGS = Path(__file__).parent.parent / "data" / "wire"


class Malformed(ValueError):
    """These bytes are no packet."""


@dataclass
class Cursor:
    data: bytes
    at: int = 0
    #: offsets of the 64-bit numbers that are handles or pointers
    slots: list[int] = field(default_factory=list)

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise Malformed(f"{size} bytes wanted at {self.at} of {len(self.data)}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def handle(self) -> int:
        self.slots.append(self.at)
        return int(self.number("Q"))

    def text(self) -> bytes:
        return self.take(self.number("Q"))

    def tensor(self) -> tuple[Any, ...]:
        data = self.handle()
        device = self.number("i"), self.number("i")
        ndim = self.number("i")
        dtype = self.number("B"), self.number("B"), self.number("H")
        shape = tuple(self.number("q") for _ in range(ndim))
        return (data, device, dtype, shape, self.number("Q"))

    def value(self) -> tuple[Any, ...]:
        index = self.number("i")
        if index == 0:
            return ("none",)
        if index in (1, 2):
            return ("int" if index == 1 else "bool", self.number("q"))
        if index == 3:
            return ("float", self.take(8))
        if index == 4:
            return ("handle", self.handle())
        if index == 5:
            dtype = self.number("B"), self.number("B"), self.number("H")
            self.take(4)
            return ("dtype", *dtype)
        if index == 6:
            return ("device", self.number("i"), self.number("i"))
        if index == 7:
            return ("tensor", *self.tensor())
        if index in (8, 9):
            return ("str" if index == 8 else "bytes", self.text())
        if index in (68, 73):
            return ("function" if index == 68 else "module", self.handle())
        if index in (11, 12) or index >= 64:
            inner = self.number("I")
            if inner == 65:
                return ("str", self.text())
            if inner == 66:
                return ("bytes", self.text())
            if inner == 115:
                return ("object", self.handle())
        raise Malformed(f"type index {index}")

    def sequence(self) -> list[tuple[Any, ...]]:
        return [self.value() for _ in range(self.number("i"))]


@dataclass
class Packet:
    """One packet with its length; `parts` is None where its contents are malformed."""

    data: bytes
    code: int
    parts: Any
    slots: list[int]

    @property
    def is_malformed(self) -> bool:
        return self.parts is None


def read_packet(data: bytes) -> Packet:
    """A packet from its bytes, length and all."""
    cursor = Cursor(data, 8)
    if len(data) == 8:
        return Packet(data, 0, [], [])
    code = cursor.number("i")
    parts: Any
    try:
        if code == INIT:
            parts = [cursor.text(), cursor.sequence()]
        elif code == CALL:
            parts = [cursor.handle(), cursor.sequence()]
        elif code in (COPY_FROM, COPY_TO):
            parts = [cursor.tensor(), cursor.number("Q")]
            if code == COPY_TO:
                parts.append(cursor.take(parts[1]))
        elif code == COPY_ACK:
            parts = cursor.take(len(data) - cursor.at)
        elif code == SHUTDOWN:
            parts = []
        elif RETURN <= code <= 21:
            parts = cursor.sequence()
        else:
            raise Malformed(f"code {code}")
        if cursor.at != len(data):
            raise Malformed("trailing bytes")
    except Malformed:
        parts = None
    return Packet(data, code, parts, cursor.slots)


@dataclass
class Stream:
    """One direction of a connection: a handshake, then packets; fed in pieces, as they were recorded."""

    from_server: bool
    buffer: bytes = b""
    started: bool = False

    def feed(self, data: bytes) -> list[bytes]:
        """What is complete now: the handshake, then packets; as bytes."""
        self.buffer += data
        whole: list[bytes] = []
        while (size := self._complete()) is not None:
            whole.append(self.buffer[:size])
            self.buffer = self.buffer[size:]
            self.started = True
        return whole

    def _complete(self) -> int | None:
        if not self.started:
            size = 8
            if len(self.buffer) >= 4 and struct.unpack_from("<i", self.buffer)[0] != MAGIC:
                # An error code stands alone; a wrong magic is sent as it was recorded.
                size = 4 if self.from_server else len(self.buffer)
            elif len(self.buffer) >= 8:
                size = 8 + struct.unpack_from("<i", self.buffer, 4)[0]
        else:
            size = 8
            if len(self.buffer) >= 8:
                size = 8 + struct.unpack_from("<Q", self.buffer)[0]
        return size if 0 < size <= len(self.buffer) else None


@dataclass(frozen=True)
class Recording:
    name: str
    events: list[tuple[str, bytes]]
    first_close: str | None

    @property
    def key(self) -> str:
        """The key of the server in this recording."""
        for direction, data in self.events:
            if direction == "s2c" and data[:4] == struct.pack("<i", MAGIC):
                size = struct.unpack_from("<i", data, 4)[0]
                return data[8 : 8 + size].decode().removeprefix("server:")
        return "x1"


def load_recording(name: str) -> Recording:
    document = json.loads((RECORDINGS / f"{name}.json").read_text())
    events = [(event["dir"], bytes.fromhex(event["hex"])) for event in document["events"]]
    return Recording(name, events, document["first_close"])


def session_recordings() -> list[str]:
    """Those between a client and a server: not tracker, proxy or pipe."""
    other = ("tracker-", "proxy-", "pipe-")
    return sorted(path.stem for path in RECORDINGS.glob("*.json") if not path.stem.startswith(other))


# -- making packets


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<iQ", 8, len(data)) + data


def integer(value: int) -> bytes:
    return struct.pack("<iq", 1, value)


def pointer(value: int) -> bytes:
    return struct.pack("<iQ", 4, value)


def packet(code: int, payload: bytes = b"") -> bytes:
    return struct.pack("<Qi", 4 + len(payload), code) + payload


def sequence(*values: bytes) -> bytes:
    return struct.pack("<i", len(values)) + b"".join(values)


def handshake(key: str, side: str = "client") -> bytes:
    text = f"{side}:{key}".encode()
    return struct.pack("<ii", MAGIC, len(text)) + text


def init() -> bytes:
    return packet(INIT, struct.pack("<Q", len(VERSION)) + VERSION + sequence())


def find(name: str) -> bytes:
    return packet(FIND, sequence(string(name)))


def call(handle: int, *values: bytes) -> bytes:
    return packet(CALL, struct.pack("<Q", handle) + sequence(*values))


def free(handle: int) -> bytes:
    return packet(FREE, sequence(pointer(handle)))


RETURN_NONE = packet(RETURN, sequence(struct.pack("<i", 0)))
