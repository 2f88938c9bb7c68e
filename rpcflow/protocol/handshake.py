# SPDX-License-Identifier: Apache-2.0
"""The handshake: magic and key one way, a code and perhaps a key the other way.

The readers say how many bytes they want next and never want more than the handshake has, so that whoever
reads the packets behind it finds them untouched on the line.
"""

import enum
import re
import struct
from typing import Final

import attrs

from rpcflow.errors import ProtocolError

from .limits import DEFAULT_LIMITS, Limits

MAGIC: Final = 0xFF271
TRACKER_MAGIC: Final = 0x2F271
_I32: Final = struct.Struct("<i")
_II: Final = struct.Struct("<ii")
_TIMEOUT: Final = "-timeout="
_PIN: Final = "-tls="
_PIN_WORD: Final = re.compile(_PIN + "sha256:[0-9a-f]{64}")


class Answer(enum.IntEnum):
    """What a server or proxy answers to a key."""

    OK = MAGIC
    DUPLICATE = MAGIC + 1
    MISMATCH = MAGIC + 2


class Side(enum.StrEnum):
    """Who speaks in a key text."""

    CLIENT = "client"
    SERVER = "server"


@attrs.frozen
class KeyText:
    """What a key text says: ``client:KEY -timeout=SECONDS`` or ``server:KEY``.

    Args:
        side: who sends it.
        key: the device type asked for or offered, or a match key; no white space.
        timeout: the session's budget in seconds; None or 0 is none.
        pin: what a server of rpcflow tells a proxy, for clients to come by TLS: ``sha256:`` and the hexadecimal digest
            of its key. Stock proxies pass over it.
    """

    side: Side
    key: str
    timeout: float | None = None
    pin: str = ""

    def __str__(self) -> str:
        text = f"{self.side}:{self.key}"
        if self.timeout:
            text += f" {_TIMEOUT}{self.timeout}"
        return f"{text} {_PIN}{self.pin}" if self.pin else text

    @classmethod
    def parse(cls, text: str) -> "KeyText":
        """Read a key text. Words that are not known are passed over, as stock servers do.

        Raises:
            ProtocolError: no words at all, no side, or a timeout that is no number of seconds.
        """
        words = text.split()
        side, colon, key = words[0].partition(":") if words else ("", "", "")
        if not colon or side not in (Side.CLIENT, Side.SERVER):
            raise ProtocolError(f"{text[:100]!r} is not the key text of a client or a server")
        timeout: float | None = None
        pin = ""
        for word in words[1:]:
            if _PIN_WORD.fullmatch(word):
                pin = word.removeprefix(_PIN)
            if word.startswith(_TIMEOUT):
                try:
                    timeout = float(word[len(_TIMEOUT) :])
                except ValueError:
                    raise ProtocolError(f"{word[:100]!r} is not a number of seconds") from None
                if not 0 <= timeout < float("inf"):
                    raise ProtocolError(f"{word[:100]!r} is not a number of seconds")
        return cls(Side(side), key, timeout or None, pin)


def encode_hello(text: str, magic: int = MAGIC) -> bytes:
    """What the connecting side sends first."""
    data = text.encode()
    return _II.pack(magic, len(data)) + data


def encode_answer(answer: Answer, text: str = "") -> bytes:
    """What the other side answers; only OK carries a text."""
    return _I32.pack(answer) if answer != Answer.OK else encode_hello(text, answer)


@attrs.frozen
class Hello:
    """A finished handshake message. ``code``: the magic, or an :class:`Answer`; ``text``: None behind a
    refusal."""

    code: int
    text: str | None


class HelloReader:
    """Reads one handshake message: read exactly ``wanted`` bytes, give them to :meth:`feed`, until ``hello``
    is there.

    Args:
        codes: the legal codes and whether a text follows each.
        limits: bounds the key.
    """

    def __init__(self, codes: dict[int, bool], limits: Limits = DEFAULT_LIMITS) -> None:
        self._codes = codes
        self._limits = limits
        self._buffer = bytearray()
        self._code: int | None = None
        self._size: int | None = None
        self.wanted = 4
        self.hello: Hello | None = None

    @classmethod
    def for_server(cls, limits: Limits = DEFAULT_LIMITS) -> "HelloReader":
        """What a server or proxy reads first."""
        return cls({MAGIC: True}, limits)

    @classmethod
    def for_client(cls, limits: Limits = DEFAULT_LIMITS) -> "HelloReader":
        """What a client, or a server at a proxy, reads as the answer."""
        return cls({Answer.OK: True, Answer.DUPLICATE: False, Answer.MISMATCH: False}, limits)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take in at most ``wanted`` bytes.

        Raises:
            ProtocolError: these are not a handshake.
        """
        assert 0 < len(data) <= self.wanted
        self._buffer += data
        self.wanted -= len(data)
        if self.wanted:
            return
        if self._code is None:
            (code,) = _I32.unpack(self._buffer)
            if code not in self._codes:
                raise ProtocolError(f"the peer does not speak TVM's RPC: it began with {bytes(self._buffer)!r}")
            self._code = code
            if not self._codes[code]:
                self.hello = Hello(code, None)
                return
            self.wanted = 4
        elif self._size is None:
            (size,) = _I32.unpack(self._buffer)
            if not 0 <= size <= self._limits.key_nbytes:
                raise ProtocolError(f"a key of {size} bytes is refused; the limit is {self._limits.key_nbytes}")
            self._size = self.wanted = size
            if size == 0:
                self.hello = Hello(self._code, "")
        else:
            try:
                self.hello = Hello(self._code, self._buffer.decode())
            except UnicodeDecodeError as error:
                raise ProtocolError(f"a key is not UTF-8: {error.reason}") from None
        self._buffer.clear()


def check_key(key: str) -> None:
    """Refuse a key that the handshake cannot carry.

    Raises:
        ValueError: it is not text, too long, or holds white space.
    """
    if not isinstance(key, str) or (key and key.split() != [key]):
        raise ValueError(f"{key!r} cannot be a key: a key is text without white space")
    if len(key.encode()) > 2048:
        raise ValueError("a key is at most 2048 bytes long")
