# SPDX-License-Identifier: Apache-2.0
"""Credentials: what a client of rpcflow may say before everything else on a line, to show who it is.

Only inside TLS, or where nobody can listen (loopback, Unix sockets); to a server, tracker or proxy of rpcflow. Format:
eight bytes that neither a key, a tracker's magic nor the length of a packet can begin with, a length (uint32, little
endian), a token in ASCII. Nothing is answered; a refusal comes in answer to what follows.
"""

import struct
from typing import Final

from rpcflow.errors import ProtocolError

CREDENTIALS_MAGIC: Final = b"rpcflow\x01"
TOKEN_NBYTES: Final = 1024
"""The longest token."""
_U32: Final = struct.Struct("<I")
CREDENTIALS_NBYTES: Final = len(CREDENTIALS_MAGIC) + _U32.size
"""What comes before the token."""


def check_token(token: str) -> None:
    """Refuse what cannot be a token.

    Raises:
        ValueError: it is not visible ASCII, or is empty or too long.
    """
    visible = isinstance(token, str) and token.isascii() and token.isprintable() and " " not in token
    if not visible or not 0 < len(token) <= TOKEN_NBYTES:
        raise ValueError(f"a token is 1 to {TOKEN_NBYTES} visible ASCII characters")  # never the token itself


def encode_credentials(token: str) -> bytes:
    """What is sent first.

    Raises:
        ValueError: that is no token.
    """
    check_token(token)
    return CREDENTIALS_MAGIC + _U32.pack(len(token)) + token.encode()


class CredentialsReader:
    """Reads credentials where there are some: read exactly ``wanted`` bytes off the line, give them to :meth:`feed`,
    until ``done``. Whether there are any is to be seen before that, by :meth:`begins`.

    Attributes:
        token: what was sent; empty before that.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._length: int | None = None
        self.wanted = CREDENTIALS_NBYTES
        self.token = ""
        self.done = False

    @staticmethod
    def begins(data: bytes) -> bool:
        """Whether a line that begins with ``data`` begins with credentials. Its first byte tells: nothing else that may
        come first begins with that one."""
        return data[:1] == CREDENTIALS_MAGIC[:1]

    def feed(self, data: bytes | memoryview) -> None:
        """Take in at most ``wanted`` bytes.

        Raises:
            ProtocolError: these are no credentials.
        """
        assert 0 < len(data) <= self.wanted
        self._buffer += data
        self.wanted -= len(data)
        if self.wanted:
            return
        if self._length is None:
            if not self._buffer.startswith(CREDENTIALS_MAGIC):
                raise ProtocolError("the peer's credentials do not begin as they should")
            (self._length,) = _U32.unpack_from(self._buffer, len(CREDENTIALS_MAGIC))
            if not 0 < self._length <= TOKEN_NBYTES:
                raise ProtocolError(f"a token of {self._length} bytes is refused; the limit is {TOKEN_NBYTES}")
            self.wanted = self._length
        else:
            text = bytes(self._buffer).decode("ascii", "replace")
            try:
                check_token(text)
            except ValueError as error:
                raise ProtocolError(str(error)) from None
            self.token = text
            self.done = True
        self._buffer.clear()
