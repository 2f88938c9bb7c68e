# SPDX-License-Identifier: Apache-2.0
"""The connecting end of TLS 1.3 (RFC 8446) over Python's ssl. Does no I/O: bytes off the line in, bytes for it out."""

import os
import ssl
from collections.abc import Iterator, Sequence
from typing import Final, cast

from rpcflow.errors import AuthenticationError, ConnectionLostError, ProtocolError
from rpcflow.protocol.values import FilePayload, Part

BATCH_NBYTES: Final = 1 << 18
"""Encrypted, or taken off the line, at a time."""
_REFUSED: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a client certificate: pair with it, or give identity=",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know our certificate, nor who issued it: pair with it, or give identity=",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "our certificate has been revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not take our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not take our certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it does not take certificates like ours",
    "TLSV1_ALERT_ACCESS_DENIED": "it does not let us in",
}
"""What an alert of the other end's means; in TLS 1.3 it may come after our handshake is done."""
_NO_TLS: Final = frozenset(
    ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "PACKET_LENGTH_TOO_LONG")
)


class TlsStream:
    """One line.

    Args:
        context: of the connecting end.
        hostname: the name that the other end's certificate must have, where names are checked.
        where: the other end, for errors.
    """

    def __init__(self, context: ssl.SSLContext, hostname: str | None, where: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)
        self._where = where
        self._said_goodbye = False

    @property
    def certificate(self) -> bytes:
        """The other end's certificate, DER; there once the handshake is done."""
        return self._object.getpeercert(True) or b""

    @property
    def protocol(self) -> str | None:
        """What is spoken inside, as agreed on by ALPN."""
        return self._object.selected_alpn_protocol()

    # ---- the line

    def feed(self, data: memoryview) -> None:
        """Take in what came off the line; nothing is its end."""
        if len(data):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def outgoing(self) -> bytes:
        """What is to be put on the line."""
        return self._outgoing.read()

    # ---- its ends

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is done. Either way there may be something outgoing.

        Raises:
            AuthenticationError: the other end is not who it should be, or does not take us for who we are.
            ProtocolError: it does not speak TLS 1.3.
            ConnectionLostError: it broke off.
        """
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise self._translated(error) from error
        return True

    def read_into(self, buffer: memoryview) -> int | None:
        """Decrypt what has come; how much, 0 at the end of the stream, None if more must come first.

        Raises:
            ConnectionLostError: the line has ended without a goodbye, or what came is no TLS.
            AuthenticationError: the other end does not take our certificate.
        """
        count = 0
        try:
            while count < len(buffer):
                step = cast(int, self._object.read(len(buffer) - count, buffer[count:]))
                if not step:
                    break
                count += step
        except ssl.SSLWantReadError:
            return count or None
        except ssl.SSLZeroReturnError:
            return count
        except ssl.SSLError as error:
            if count:
                return count  # and the error the next time
            raise self._translated(error) from error
        return count

    def encrypt(self, parts: Sequence[Part]) -> Iterator[tuple[bytes, bool]]:
        """The bytes to put on the line for these parts, batch by batch, and whether that is the last.

        Raises:
            ConnectionLostError: we have said goodbye, or a file is shorter than was said.
        """
        batches = _batches(parts)
        batch = next(batches, None)
        while batch is not None:
            following = next(batches, None)
            try:
                for piece in batch:
                    while len(piece):
                        piece = piece[self._object.write(piece) :]
            except ssl.SSLError as error:
                raise self._translated(error) from error
            yield self.outgoing(), following is None
            batch = following

    def end(self) -> None:
        """Say goodbye, in what is outgoing. Does nothing a second time."""
        if not self._said_goodbye:
            self._said_goodbye = True
            try:
                self._object.unwrap()
            except (ssl.SSLError, ValueError):
                pass  # it waits for the other's goodbye, which we do not; or there was no handshake

    def _translated(self, error: ssl.SSLError) -> Exception:
        reason = error.reason or ""
        if isinstance(error, ssl.SSLCertVerificationError):
            return AuthenticationError(
                f"{self._where} is not who it should be: {error.verify_message}; "
                "its pin, as READY shows it, or ca= says whom to trust"
            )
        if reason in _REFUSED:
            return AuthenticationError(f"{self._where} refused us: {_REFUSED[reason]}")
        if reason in ("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_INSUFFICIENT_SECURITY"):
            return AuthenticationError(f"{self._where} does not speak TLS 1.3, and nothing older will do")
        if reason == "TLSV1_ALERT_NO_APPLICATION_PROTOCOL":
            return ProtocolError(f"{self._where} speaks TLS, but is nothing of rpcflow's")
        if isinstance(error, ssl.SSLEOFError) or reason == "UNEXPECTED_EOF_WHILE_READING":
            return ConnectionLostError(f"{self._where} broke the line off, without a goodbye")
        if reason in _NO_TLS:
            return ProtocolError(f"{self._where} does not speak TLS: is its scheme tcp:// or ws://?")
        return ConnectionLostError(
            f"the TLS line to {self._where} was lost: {reason.lower().replace('_', ' ') or error}"
        )


def _batches(parts: Sequence[Part]) -> Iterator[list[memoryview]]:
    """The parts in pieces of at most :data:`BATCH_NBYTES` together; small ones are joined, for a record each costs."""
    batch: list[memoryview] = []
    nbytes = 0
    small = bytearray()
    for part in parts:
        for chunk in _chunks(part):
            if nbytes + len(chunk) > BATCH_NBYTES:
                yield _with_small(batch, small)
                batch, nbytes, small = [], 0, bytearray()
            nbytes += len(chunk)
            if len(chunk) < 4096:
                small += chunk
            else:
                batch = _with_small(batch, small)
                small = bytearray()
                batch.append(chunk)
    if nbytes:
        yield _with_small(batch, small)


def _with_small(batch: list[memoryview], small: bytearray) -> list[memoryview]:
    if small:
        batch.append(memoryview(small))
    return batch


def _chunks(part: Part) -> Iterator[memoryview]:
    if isinstance(part, FilePayload):
        position, end = part.offset, part.offset + part.nbytes
        while position < end:
            chunk = os.pread(part.fd, min(BATCH_NBYTES, end - position), position)
            if not chunk:
                raise ConnectionLostError("the connection was lost: the file became shorter while it was sent")
            position += len(chunk)
            yield memoryview(chunk)
        return
    view = memoryview(part).cast("B")
    for start in range(0, len(view), BATCH_NBYTES):
        yield view[start : start + BATCH_NBYTES]
