# SPDX-License-Identifier: Apache-2.0
"""An end of TLS 1.3 (RFC 8446) over Python's ssl. Does no I/O: bytes off the line in, bytes for it out."""

import os
import ssl
from collections.abc import Iterator, Sequence
from typing import Final, cast

from rpcflow.errors import AuthenticationError, ConnectionLostError, ProtocolError, RPCError
from rpcflow.protocol.values import FilePayload, Part

BATCH_NBYTES: Final = 1 << 17
"""Encrypted, or taken off the line, at a time."""
RECORD_NBYTES: Final = 1 << 14
"""Most in one record."""
_SMALL_NBYTES: Final = 4096
"""Smaller parts are joined, for each record costs something."""
_REFUSED: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a client certificate: pair with it, or give identity=",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know our certificate, nor who issued it: pair with it, or give identity=",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "our certificate has been revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not take our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not take our certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it does not take certificates like ours",
    "TLSV1_ALERT_DECRYPT_ERROR": "it does not take our certificate, or what we have signed with its key",
    "TLSV1_ALERT_ACCESS_DENIED": "it does not let us in",
}
"""What an alert of the other end's means; in TLS 1.3 it may come after our handshake is done."""
_TOO_OLD: Final = frozenset(
    (
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        "UNSUPPORTED_PROTOCOL",
        "WRONG_SSL_VERSION",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
    )
)
_NO_TLS: Final = frozenset(
    ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "PACKET_LENGTH_TOO_LONG")
)
_DISTRUSTED: Final = {
    9: "check the clock of this machine, and of the one that issued it",
    10: "have it renewed (rpcflow identity renew there)",
    62: "use the name that is in it, or say it with name=",
    64: "use an address that is in it, or say the name that is with name=",
}
"""What to do where OpenSSL does not take a certificate, by the number of its reason."""


class TlsStream:
    """One line.

    Args:
        context: of the connecting end.
        hostname: the name that the other end's certificate must have, where names are checked.
        where: the other end, for errors.
        accepts: whether this is the accepting end.
    """

    def __init__(self, context: ssl.SSLContext, hostname: str | None, where: str, accepts: bool = False) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, accepts, None if accepts else hostname)
        self._where = where
        self._shaken = False
        self._said_goodbye = False
        self._dry = False
        self._ended = False
        self._ready = bytearray()
        self._fault: tuple[type[RPCError], str] | None = None

    @property
    def certificate(self) -> bytes:
        """The other end's certificate, DER; there once the handshake is done."""
        return self._object.getpeercert(True) or b""

    @property
    def protocol(self) -> str | None:
        """What is spoken inside, as agreed on by ALPN."""
        return self._object.selected_alpn_protocol()

    def refusal(self) -> RPCError | None:
        """That the other end does not want us, if that is among what has come. What may be read stays to be read."""
        self.decrypt_all()
        return self._raised() if self._fault is not None and self._fault[0] is AuthenticationError else None

    # ---- the line

    def feed(self, data: memoryview) -> None:
        """Take in what came off the line; nothing is its end."""
        if self._ended or self._fault is not None:
            return
        self._dry = False
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
            raise self._failed(error) from error
        self._shaken = True
        return True

    def read_into(self, buffer: memoryview) -> int | None:
        """Decrypt what has come; how much, 0 at the end of the stream, None if more must come first.

        Raises:
            ConnectionLostError: the line has ended without a goodbye, or what came is no TLS.
            AuthenticationError: the other end does not take our certificate.
        """
        if self._ready:
            count = min(len(buffer), len(self._ready))
            buffer[:count] = self._ready[:count]
            del self._ready[:count]
            return count
        if self._dry:
            return None
        return self._decrypt(buffer)

    def _decrypt(self, buffer: memoryview) -> int | None:
        if self._fault is not None:
            raise self._raised()
        count = 0
        size = len(buffer)
        try:
            while not self._ended:
                step = cast(int, self._object.read(size - count, buffer[count:] if count else buffer))
                if not step:
                    self._ended = True
                    break
                count += step
                if count == size:
                    break
                if not self._incoming.pending:  # and nothing is kept further in: the last record fitted
                    self._dry = not self._incoming.eof
                    break
        except ssl.SSLWantReadError:
            self._dry = True
            return count or None
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLError as error:
            failed = self._failed(error)
            if not count:  # else it comes the next time
                raise failed from error
        return count

    def decrypt_all(self) -> None:
        """Decrypt all that has come, for :meth:`read_into`; what is wrong with it, that one says."""
        buffer = memoryview(bytearray(RECORD_NBYTES))
        try:
            while not self._dry and (count := self._decrypt(buffer)):
                self._ready += buffer[:count]
        except RPCError:
            pass  # kept, and said behind the data

    def encrypt_one(self, data: bytes) -> bytes:
        """The bytes to put on the line for a little, :data:`RECORD_NBYTES` at most. Errors as :meth:`encrypt`."""
        if self._said_goodbye:
            raise self._closed()
        try:
            self._object.write(data)
        except ssl.SSLError as error:
            raise self._unwritten(error) from error
        return self._outgoing.read()

    def encrypt(self, parts: Sequence[Part]) -> Iterator[tuple[bytes, bool]]:
        """The bytes to put on the line for these parts, batch by batch, and whether that is the last; encrypted as
        they are asked for.

        Raises:
            ConnectionLostError: we have said goodbye, the line is dead, or a file is shorter than was said.
            AuthenticationError: the other end has refused us.
        """
        if len(parts) == 1 and type(parts[0]) is bytes and 0 < len(parts[0]) <= RECORD_NBYTES:
            return _Once(self, parts[0])  # the usual call
        return self._encrypt(parts)

    def _encrypt(self, parts: Sequence[Part]) -> Iterator[tuple[bytes, bool]]:
        write = self._object.write
        batches = _batches(parts)
        batch = next(batches, None)
        while batch is not None:
            following = next(batches, None)
            if self._said_goodbye:
                raise self._closed()
            try:
                for piece in batch:
                    while len(piece):
                        piece = piece[write(piece) :]
            except ssl.SSLError as error:
                raise self._unwritten(error) from error
            yield self._outgoing.read(), following is None
            batch = following

    def end(self) -> None:
        """Say goodbye, in what is outgoing. Does nothing a second time."""
        if self._said_goodbye or not self._shaken:
            return
        self._said_goodbye = True
        # OpenSSL looks for the other's goodbye too, and would take data that comes before it for an error.
        self.decrypt_all()
        try:
            self._object.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # it waits for the other's goodbye, which we do not

    # ---- what went wrong

    def _closed(self) -> ConnectionLostError:
        return ConnectionLostError("the connection is closed: we have said goodbye")

    def _unwritten(self, error: ssl.SSLError) -> RPCError:
        return self._failed(error) if self._fault is None else self._raised()

    def _raised(self) -> RPCError:
        assert self._fault is not None
        kind, text = self._fault
        return kind(text)

    def _failed(self, error: ssl.SSLError) -> RPCError:
        """OpenSSL says what is wrong once, and then calls it the end of the stream: so we keep it."""
        self._fault = self._translated(error)
        return self._raised()

    def _translated(self, error: ssl.SSLError) -> tuple[type[RPCError], str]:
        reason = error.reason or _named(error)
        where = self._where
        if isinstance(error, ssl.SSLCertVerificationError):
            todo = _DISTRUSTED.get(
                error.verify_code,
                "pair with it, or say whom to trust: pin= with the pin that its READY shows, or ca= with who issued it",
            )
            return AuthenticationError, f"{where} is not who it should be: {error.verify_message}; {todo}"
        if reason in _REFUSED:
            return AuthenticationError, f"{where} refused us: {_REFUSED[reason]}"
        if reason in _TOO_OLD:
            return AuthenticationError, f"{where} does not speak TLS 1.3, and nothing older will do"
        if reason == "TLSV1_ALERT_NO_APPLICATION_PROTOCOL":
            return ProtocolError, f"{where} speaks TLS, but is not an rpcflow server, tracker or proxy"
        if isinstance(error, ssl.SSLEOFError) or reason == "UNEXPECTED_EOF_WHILE_READING":
            if not self._shaken:
                return ConnectionLostError, hung_up(where)
            return ConnectionLostError, f"{where} broke the line off, without a goodbye"
        if reason in _NO_TLS and not self._shaken:
            return ProtocolError, f"{where} does not speak TLS: is its scheme tcp:// or ws://?"
        return ConnectionLostError, f"the TLS line to {where} was lost: {reason.lower().replace('_', ' ') or error}"


def _named(error: ssl.SSLError) -> str:
    """The reason of an error whose name Python does not know, made of OpenSSL's words for it."""
    words = str(error).partition("] ")[2].rpartition(" (")[0]
    return words.upper().replace(" ", "_")


class _Once:
    """What a generator does that gives one batch, and is slower to make."""

    __slots__ = ("_data", "_stream")

    def __init__(self, stream: TlsStream, data: bytes) -> None:
        self._stream = stream
        self._data = data

    def __iter__(self) -> "_Once":
        return self

    def __next__(self) -> tuple[bytes, bool]:
        data, self._data = self._data, b""
        if not data:
            raise StopIteration
        return self._stream.encrypt_one(data), True


def hung_up(where: str, why: str = "") -> str:
    """What is said of who goes away during the handshake."""
    detail = f" ({why})" if why else ""
    return (
        f"{where} hung up during the TLS handshake{detail}: does it speak TLS? A server without it is tcp:// or ws://"
    )


def _batches(parts: Sequence[Part]) -> Iterator[list[memoryview]]:
    """The parts in pieces of about :data:`BATCH_NBYTES` together; small ones are joined, for a record each costs."""
    batch: list[memoryview] = []
    nbytes = 0
    small = bytearray()
    for part in parts:
        for chunk in _chunks(part):
            if nbytes + len(chunk) > BATCH_NBYTES + _SMALL_NBYTES:  # a head goes with what it is the head of
                yield _with_small(batch, small)
                batch, nbytes, small = [], 0, bytearray()
            nbytes += len(chunk)
            if len(chunk) < _SMALL_NBYTES:
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
