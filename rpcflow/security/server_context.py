# SPDX-License-Identifier: Apache-2.0
"""How the accepting end of TLS is set up, and what it makes of a client's certificate.

TLS 1.3 only. A client's certificate is checked by OpenSSL, against the authorities and the paired clients that the
server has been given; what has been revoked is found out here, so that the client can be told in words.
"""

import logging
import os
import ssl
from pathlib import Path
from typing import Any, Final

import attrs

from rpcflow.errors import AuthenticationError

from . import need

ALPN: Final = "rpcflow"
ALPN_PAIR: Final = "rpcflow-pair/1"
ALPN_WEB: Final = "http/1.1"
_NAME_CHARACTERS: Final = 64
"""Of a common name, as X.520 has it."""
_REASONS: Final = {
    "HTTP_REQUEST": "spoke HTTP, not TLS",
    "WRONG_VERSION_NUMBER": "does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "does not speak TLS 1.3",
    "UNEXPECTED_EOF_WHILE_READING": "went during the TLS handshake",
    "TLSV1_ALERT_UNKNOWN_CA": "does not take our certificate: it does not know who issued it",
    "TLSV1_ALERT_INTERNAL_ERROR": "broke off the TLS handshake",
}
_log: Final = logging.getLogger("rpcflow.security")


@attrs.frozen
class TlsSettings:
    """What a service needs for TLS. Nothing secret: paths only.

    Args:
        identity: file with our key and certificate chain.
        client_ca: file with certificates of authorities that issue certificates to clients; ``None`` for none. A list
            of what they have revoked lies beside it, named the same but for ``.crl``.
        known_clients: folder with the certificates of paired clients; None for none.
        require_client: whether a client without a certificate is refused.
        pairing: whether lines for pairing are taken.
    """

    identity: str
    client_ca: str | None = None
    known_clients: str | None = None
    require_client: bool = False
    pairing: bool = False

    def files(self) -> list[str]:
        """All files that count."""
        found = [self.identity]
        if self.client_ca is not None:
            found += [self.client_ca, _crl_path(self.client_ca)]
        if self.known_clients is not None:
            found += [self.known_clients, *map(str, sorted(Path(self.known_clients).glob("*.crt")))]
        return found


@attrs.frozen
class ClientCertificate:
    """A certificate that a client has shown and has the key of. ``subject``: the common name that an authority has put
    into it; empty in one that is self-signed."""

    pin: str
    subject: str


def make_context(settings: TlsSettings, alpn: str = ALPN) -> ssl.SSLContext:
    """The context for one listener.

    Raises:
        ValueError: a file is not what it should be.
        OSError: it cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # sessions are not resumed: each line shows again who it is
    context.set_alpn_protocols([alpn, ALPN_PAIR] if settings.pairing and alpn == ALPN else [alpn])
    try:
        context.load_cert_chain(settings.identity)
    except ssl.SSLError as error:
        why = error.reason or "it is no PEM file"
        raise ValueError(f"{settings.identity} holds no key with its certificate: {why}") from None
    trusted = 0
    if settings.client_ca is not None:
        try:
            context.load_verify_locations(settings.client_ca)
        except ssl.SSLError as error:
            raise ValueError(f"{settings.client_ca} holds no certificates: {error.reason}") from None
        trusted += 1
    if settings.known_clients is not None:
        for path in sorted(Path(settings.known_clients).glob("*.crt")):
            try:
                context.load_verify_locations(str(path))
                trusted += 1
            except (OSError, ssl.SSLError) as error:
                _log.warning("the certificate of a paired client is passed over: %s: %s", path, error)
    if trusted and alpn != ALPN_WEB:
        context.verify_mode = ssl.CERT_OPTIONAL
    # Where one is required and none comes, the client is told so in words, by the service.
    return context


class Contexts:
    """Contexts that follow their files.

    Args:
        settings: of all.
        alpns: one protocol for each listener.

    Raises:
        ValueError, OSError: they cannot be made.
    """

    def __init__(self, settings: TlsSettings, alpns: list[str]) -> None:
        self._settings = settings
        self._alpns = alpns
        self._seen = _stamps(settings)
        self._made = [make_context(settings, alpn) for alpn in alpns]
        self._revoked = _revoked(settings)

    def get(self, listener: int) -> ssl.SSLContext:
        """The context of a listener."""
        return self._made[listener]

    def refresh(self) -> None:
        """Read again what has changed: a renewed certificate, a new client, a revoked one. What cannot be read leaves
        things as they were, and is logged."""
        stamps = _stamps(self._settings)
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            made = [make_context(self._settings, alpn) for alpn in self._alpns]
            revoked = _revoked(self._settings)
            if revoked is None and self._revoked is not None:  # to forget who is not to come in is never meant
                raise ValueError("the list of revoked certificates has gone")
        except (OSError, ValueError) as error:
            _log.error("TLS goes on with what it had: %s", error)
            return
        self._made, self._revoked = made, revoked
        _log.info("TLS goes on with new certificates")

    def check(self, tls: Any) -> ClientCertificate | None:
        """Who a client is, by its certificate; None where it has shown none.

        Raises:
            AuthenticationError: it is not to be let in.
        """
        der = tls.getpeercert(True)
        if der is None:
            if self._settings.require_client:
                raise AuthenticationError("a client certificate is required here: pair, or have one issued")
            return None
        shown = tls.getpeercert()
        serial = int(shown["serialNumber"], 16)
        issuer = _common_name(shown.get("issuer", ()))
        subject = _common_name(shown.get("subject", ()))
        if len(subject) > _NAME_CHARACTERS:
            raise AuthenticationError("the name in the certificate is too long")
        if (issuer, serial) in (self._revoked or ()):
            raise AuthenticationError(f"the certificate of {subject!r} has been revoked")
        from .pins import pin_of

        try:
            pin = pin_of(der)
        except ValueError:  # OpenSSL takes more than others do
            raise AuthenticationError("the client certificate makes no sense") from None
        # What a paired client calls itself in a certificate of its own says nothing.
        return ClientCertificate(pin, "" if shown["subject"] == shown["issuer"] else subject)


def handshake_problem(error: Exception) -> str:
    """What went wrong in a handshake, for the log; empty where somebody has just looked whether a port is open."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return _REASONS.get(error.reason, f"the TLS handshake failed: {error.reason.lower().replace('_', ' ')}")
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    return ""


def _common_name(name: Any) -> str:
    found = [value for relative in name for key, value in relative if key == "commonName"]
    return found[0] if found else ""


def _crl_path(certificates: str) -> str:
    return os.path.splitext(certificates)[0] + ".crl"


def _stamps(settings: TlsSettings) -> list[tuple[int, int, int] | None]:
    found: list[tuple[int, int, int] | None] = []
    for path in settings.files():
        try:
            status = os.stat(path)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return found


def _revoked(settings: TlsSettings) -> frozenset[tuple[str, int]] | None:
    """Issuer and serial number of what is not valid any more; None where there is no list."""
    if settings.client_ca is None or not os.path.exists(path := _crl_path(settings.client_ca)):
        return None
    need("cryptography")
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509.oid import NameOID

    data = Path(path).read_bytes()
    authorities = x509.load_pem_x509_certificates(Path(settings.client_ca).read_bytes())
    found: set[tuple[str, int]] = set()
    for block in _pem_blocks(data, b"X509 CRL"):
        crl = x509.load_pem_x509_crl(block)
        signed = [authority for authority in authorities if authority.subject == crl.issuer]
        try:
            good = any(crl.is_signature_valid(one.public_key()) for one in signed)  # type: ignore[arg-type]
        except (TypeError, UnsupportedAlgorithm):
            good = False
        if not good:
            raise ValueError(
                f"{path} holds a list of revoked certificates that nobody in {settings.client_ca} has signed"
            )
        names = crl.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
        found |= {(str(names[0].value) if names else "", entry.serial_number) for entry in crl}
    if not found and b"X509 CRL" not in data:
        raise ValueError(f"{path} holds no list of revoked certificates")
    return frozenset(found)


def _pem_blocks(data: bytes, kind: bytes) -> list[bytes]:
    begin, end = b"-----BEGIN %s-----" % kind, b"-----END %s-----" % kind
    found = []
    position = data.find(begin)
    while position >= 0:
        stop = data.find(end, position)
        if stop < 0:
            break
        found.append(data[position : stop + len(end)] + b"\n")
        position = data.find(begin, stop)
    return found
