# SPDX-License-Identifier: Apache-2.0
"""The conversation by which two ends that share a one-time code come to know each other's keys. No IO, no clock.

The line is TLS, but neither end can check the other's certificate yet. So both run SPAKE2 with the code as password,
and as names of the two sides the pins that they *see*: the key of the server's certificate on this very line, and the
key of the certificate that the client will introduce itself with. Somebody in between has another key, so the two ends
have different names for the server, and the code fails, even if every byte is relayed. From what SPAKE2 gives and all
that was said come two keys, one a direction; all that follows carries a code made with them.

::

    client                                      server
    HELLO          pin, element        ->
                                       <-       element                REPLY
    CLIENT_CONFIRM code                ->
                                       <-       code          SERVER_CONFIRM
    INTRODUCTION   code, name, cert    ->
                                       <-       code, name            STORED

The client confirms first: see docs/decisions/0014-pairing.md.
"""

import hashlib
import hmac
from typing import Any, Final

from rpcflow.errors import AuthenticationError, PermissionDeniedError, ProtocolError, RPCError

from . import need
from .pairing_frames import (
    MAC_NBYTES,
    PIN_NBYTES,
    Frame,
    Kind,
    Reason,
    pack_introduction,
    reason_of,
    unpack_introduction,
    unpack_name,
)
from .pins import pin_of

CODE_DIGITS: Final = (6, 8)
WRONG_CODE: Final = "the code was wrong, or somebody sits between the two ends"
_PROTOCOL: Final = b"rpcflow-pair/1"
_PIN_PREFIX: Final = "sha256:"
_REFUSALS: Final[dict[Reason, tuple[type[RPCError], str]]] = {
    Reason.NO_PAIRING: (
        PermissionDeniedError,
        "that server takes no new clients now: pairing is off, or its code is used",
    ),
    Reason.WRONG_CODE: (AuthenticationError, WRONG_CODE),
    Reason.BUSY: (PermissionDeniedError, "others are pairing with that server now: try again in a minute"),
    Reason.NOT_STORED: (PermissionDeniedError, "that server could not store our certificate; its log says why"),
    Reason.MALFORMED: (ProtocolError, "that server does not understand how we pair"),
}


def read_code(text: str) -> str:
    """A code as people write it: blanks and dashes do not count.

    Raises:
        ValueError: it is not six to eight digits. The text is not in the message.
    """
    code = "".join(text.split()).replace("-", "")
    least, most = CODE_DIGITS
    if not (code.isascii() and code.isdecimal() and least <= len(code) <= most):
        raise ValueError(f"a code is {least} to {most} digits")
    return code


class _Secret:
    """SPAKE2 and what comes of it: one side's."""

    def __init__(self, side: str, code: str, client_pin: str, server_pin: str) -> None:
        need("spake2")
        import spake2

        kind = spake2.SPAKE2_A if side == "client" else spake2.SPAKE2_B
        self._spake: Any = kind(
            read_code(code).encode(),
            idA=_PROTOCOL + b" client " + client_pin.encode(),
            idB=_PROTOCOL + b" server " + server_pin.encode(),
        )
        self.element: bytes = self._spake.start()

    def finish(self, element: bytes, transcript: bytes) -> tuple[bytes, bytes]:
        """The keys for what the client says and for what the server says.

        Raises:
            ProtocolError: what the other side sent is no element, or not of the other side.
        """
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        from spake2 import SPAKEError
        from spake2.ed25519_basic import NotOnCurve

        try:
            shared = self._spake.finish(element)
        except (SPAKEError, NotOnCurve, ValueError):
            raise ProtocolError("what was sent for the exchange of keys is none") from None
        keys = HKDF(SHA256(), 2 * MAC_NBYTES, None, _PROTOCOL + b" keys " + transcript).derive(shared)
        return keys[:MAC_NBYTES], keys[MAC_NBYTES:]


class _Conversation:
    """What both sides keep: all that was said, and the keys once there are some."""

    def __init__(self) -> None:
        self._said = hashlib.sha256(_PROTOCOL)
        self._keys: tuple[bytes, bytes] | None = None

    def _note(self, frame: Frame) -> Frame:
        self._said.update(frame.encode())
        return frame

    def _code(self, kind: Kind, rest: bytes) -> bytes:
        assert self._keys is not None
        key = self._keys[0] if kind in (Kind.CLIENT_CONFIRM, Kind.INTRODUCTION) else self._keys[1]
        return hmac.digest(key, self._said.digest() + bytes((kind,)) + rest, "sha256")

    def _seal(self, kind: Kind, rest: bytes = b"") -> Frame:
        return self._note(Frame(kind, self._code(kind, rest) + rest))

    def _open(self, frame: Frame) -> bytes | None:
        """What a frame says beside its code; None if the code is wrong."""
        code, rest = frame.body[:MAC_NBYTES], frame.body[MAC_NBYTES:]
        if not hmac.compare_digest(code, self._code(frame.kind, rest)):
            return None
        self._note(frame)
        return rest


def _expect(frame: Frame, kind: Kind) -> None:
    if frame.kind is not kind:
        raise ProtocolError(f"a {frame.kind.name} where a {kind.name} is due")


class ClientConversation(_Conversation):
    """The client's side: send :meth:`hello`, then what :meth:`take` gives for each frame, until ``stored``.

    Args:
        code: the one-time code.
        server_pin: of the certificate that the server has shown on this line.
        certificate: our own, DER.
        name: what we wish to be called.

    Attributes:
        stored: what the server calls us from now on; None before that.
        proven: whether the server has shown that it knows the code.

    Raises:
        ValueError: one of them cannot be.
    """

    def __init__(self, code: str, server_pin: str, certificate: bytes, name: str) -> None:
        super().__init__()
        self._introduction = pack_introduction(name, certificate)
        pin = pin_of(certificate)
        self._secret = _Secret("client", code, pin, server_pin)
        self._pin = bytes.fromhex(pin.removeprefix(_PIN_PREFIX))
        self._due = Kind.REPLY
        self.proven = False
        self.stored: str | None = None

    def hello(self) -> Frame:
        """What is sent first."""
        return self._note(Frame(Kind.HELLO, self._pin + self._secret.element))

    def take(self, frame: Frame) -> Frame | None:
        """Take the server's next frame; what to answer, or None when there is nothing more to say.

        Raises:
            AuthenticationError: the code was wrong, or somebody sits in between.
            PermissionDeniedError: the server does not pair, now or with us.
            ProtocolError: that is not how pairing goes.
        """
        if frame.kind is Kind.REFUSED:
            kind, words = _REFUSALS[reason_of(frame)]
            raise kind(words)
        if self.stored is not None:
            raise ProtocolError(f"a {frame.kind.name} after all has been said")
        _expect(frame, self._due)
        if frame.kind is Kind.REPLY:
            self._note(frame)
            self._keys = self._secret.finish(frame.body, self._said.digest())
            self._due = Kind.SERVER_CONFIRM
            return self._seal(Kind.CLIENT_CONFIRM)
        rest = self._open(frame)
        if rest is None:
            raise AuthenticationError(WRONG_CODE)
        if frame.kind is Kind.SERVER_CONFIRM:
            self.proven = True
            self._due = Kind.STORED
            return self._seal(Kind.INTRODUCTION, self._introduction)
        self.stored = unpack_name(rest)
        return None


class ServerConversation(_Conversation):
    """The server's side: one method a frame, in the order of the conversation.

    Args:
        code: the one-time code.
        server_pin: of our certificate, which this line began with.
    """

    def __init__(self, code: str, server_pin: str) -> None:
        super().__init__()
        self._one_time = code
        self._server_pin = server_pin
        self._secret: _Secret | None = None
        self._element = b""
        self._client_pin = ""

    def reply(self, hello: Frame) -> Frame:
        """Our half of the exchange. It says nothing about the code, nor does how the client's half looks at it.

        Raises:
            ProtocolError: it is no HELLO.
        """
        _expect(hello, Kind.HELLO)
        self._client_pin = _PIN_PREFIX + hello.body[:PIN_NBYTES].hex()
        self._element = hello.body[PIN_NBYTES:]
        self._note(hello)
        self._secret = _Secret("server", self._one_time, self._client_pin, self._server_pin)
        return self._note(Frame(Kind.REPLY, self._secret.element))

    def confirm(self, frame: Frame) -> Frame | None:
        """Whether the client knows the code: our own confirmation if it does, None if not. Once only.

        Raises:
            ProtocolError: it is no confirmation.
        """
        _expect(frame, Kind.CLIENT_CONFIRM)
        secret, self._secret = self._secret, None
        assert secret is not None, "reply() comes first, and this once"
        try:
            self._keys = secret.finish(self._element, self._said.digest())
        except ProtocolError:
            return None  # a guess like any other
        if self._open(frame) is None:
            self._keys = None
            return None
        return self._seal(Kind.SERVER_CONFIRM)

    def introduced(self, frame: Frame) -> tuple[str, bytes]:
        """The name that the client wishes for (any text), and its certificate (DER, with the pin of the HELLO).

        Raises:
            ProtocolError: it is no introduction, or not of that client.
        """
        _expect(frame, Kind.INTRODUCTION)
        rest = self._open(frame)
        if rest is None:
            raise ProtocolError("an introduction that somebody has changed")
        name, certificate = unpack_introduction(rest)
        try:
            pin = pin_of(certificate)
        except ValueError:
            raise ProtocolError("an introduction without a certificate") from None
        if pin != self._client_pin:
            raise ProtocolError("an introduction with another certificate than was announced")
        return name, certificate

    def stored(self, name: str) -> Frame:
        """That the client is known from now on, under this name."""
        return self._seal(Kind.STORED, name.encode())
