# SPDX-License-Identifier: Apache-2.0
"""Keys and certificates (X.509, RFC 5280) by the cryptography library: made, signed, read."""

import datetime
import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from . import need

need("cryptography")

from cryptography import x509  # noqa: E402
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: E402
from cryptography.hazmat.primitives.hashes import SHA256  # noqa: E402
from cryptography.hazmat.primitives.serialization import (  # noqa: E402
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Certificate = x509.Certificate
RevocationList = x509.CertificateRevocationList
ALGORITHMS: Final = ("p256", "ed25519")
_NONE: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for bytes that are no certificate, or none it can read."""
_SKEW: Final = datetime.timedelta(hours=1)
"""How long before now a certificate is valid from: clocks differ, those of boards above all."""
_CRL_DAYS: Final = 3650
"""Each use of the authority writes its list anew; a lab whose authority is not used for years goes on nevertheless."""
_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST: Final = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*\.?")


def now() -> datetime.datetime:
    """The time, with its zone."""
    return datetime.datetime.now(datetime.UTC)


def make_key(algorithm: str) -> Key:
    """A new private key.

    Raises:
        ValueError: an algorithm that is not among :data:`ALGORITHMS`.
    """
    if algorithm == "p256":
        return ec.generate_private_key(ec.SECP256R1())
    if algorithm == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    raise ValueError(f"{algorithm!r} is not an algorithm for keys; known are: {', '.join(ALGORITHMS)}")


def make_certificate(
    key: Key,
    name: str,
    *,
    days: float,
    hosts: Sequence[str] = (),
    issuer: tuple[Key, x509.Certificate] | None = None,
    authority: bool = False,
    server: bool = True,
    client: bool = True,
) -> x509.Certificate:
    """A certificate for a key.

    Args:
        key: whose public half it is about.
        name: its common name.
        days: how long it is valid, but no longer than its issuer's; 0 or less for one that is not any more.
        hosts: names and addresses by which a server is known.
        issuer: who signs; None for the key itself.
        authority: whether its key may sign others.
        server, client: what it is good for.

    Raises:
        ValueError: an argument that cannot be.
    """
    signer, above = issuer if issuer is not None else (key, None)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    until = _after(days)
    if above is not None:
        until = min(until, above.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if above is None else above.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now(), until) - _SKEW)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_usage(authority), critical=True)
    )
    if above is not None:
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    if not authority:
        kinds = [ExtendedKeyUsageOID.SERVER_AUTH] * server + [ExtendedKeyUsageOID.CLIENT_AUTH] * client
        builder = builder.add_extension(x509.ExtendedKeyUsage(kinds), critical=False)
    if hosts:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([host_name(host) for host in hosts]), critical=False
        )
    return builder.sign(signer, _digest(signer))


def make_crl(
    key: Key,
    certificate: x509.Certificate,
    serials: Sequence[int],
    before: x509.CertificateRevocationList | None = None,
) -> bytes:
    """A list of revoked certificates, PEM.

    Args:
        key, certificate: of the authority.
        serials: those newly revoked.
        before: the list that this one goes on from; what it holds stays revoked, since when it was.

    Raises:
        ValueError: a number that no certificate can have.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(certificate.subject)
        .last_update(now() - _SKEW)
        .next_update(now() + datetime.timedelta(days=_CRL_DAYS))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.CRLNumber(_crl_number(before) + 1), critical=False)
    )
    for entry in before or ():
        builder = builder.add_revoked_certificate(entry)
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now()).build()
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(key, _digest(key)).public_bytes(Encoding.PEM)


def read_crl(data: bytes, authority: x509.Certificate) -> x509.CertificateRevocationList:
    """A list of revoked certificates, PEM, that an authority has signed.

    Raises:
        ValueError: it is none, or another has signed it.
    """
    crl = x509.load_pem_x509_crl(data)
    if not crl.is_signature_valid(authority.public_key()):  # type: ignore[arg-type]
        raise ValueError("it was not signed with the authority's key")
    return crl


def _crl_number(crl: x509.CertificateRevocationList | None) -> int:
    if crl is None:
        return 0
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the key of one has signed the other; names alone say nothing, for anybody can take one."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError, ValueError, UnsupportedAlgorithm):
        return False
    return True


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether it says that its key may sign others."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def valid_now(data: bytes) -> str:
    """What is wrong with the time of a certificate (DER); empty where nothing is."""
    made = x509.load_der_x509_certificate(data)
    if now() > made.not_valid_after_utc:
        return f"has expired on {made.not_valid_after_utc:%Y-%m-%d}"
    if now() < made.not_valid_before_utc:
        return f"is not valid before {made.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; is a clock wrong?"
    return ""


def key_pem(key: Key) -> bytes:
    """A private key as PEM (PKCS #8)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def der(certificate: x509.Certificate) -> bytes:
    """A certificate as DER."""
    return certificate.public_bytes(Encoding.DER)


def read_der(data: bytes) -> x509.Certificate:
    """A certificate that was DER. Errors as the library's."""
    return x509.load_der_x509_certificate(data)


def read_one(data: bytes) -> x509.Certificate:
    """A certificate that was PEM. Errors as the library's."""
    return x509.load_pem_x509_certificate(data)


def read_certificate(data: bytes) -> bytes:
    """A certificate that is PEM or DER, as PEM.

    Raises:
        ValueError: it is none.
    """
    try:
        load = x509.load_pem_x509_certificate if b"-----BEGIN" in data else x509.load_der_x509_certificate
        made = load(data)
        made.public_key()
        _ = made.extensions
    except _NONE as error:
        raise ValueError(f"that is no certificate: {error}") from None
    return pem(made)


def read_pem(path: Path, data: bytes) -> tuple[Key, list[x509.Certificate]]:
    """The private key and the certificates of a file; the first one is the key's.

    Raises:
        ValueError: it does not hold both.
    """
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path} holds no private key that can be read: {error}") from None
    try:
        certificates = x509.load_pem_x509_certificates(data)
        public = certificates[0].public_key()
        _ = certificates[0].extensions
    except _NONE as error:
        raise ValueError(f"{path} holds no certificate that can be read: {error}") from None
    if key.public_key() != public:
        raise ValueError(f"{path}: the key is not that of its first certificate")
    return key, certificates  # type: ignore[return-value]


def common_name(name: x509.Name) -> str:
    """The common name in a name; empty where there is none."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def host_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The hosts that a certificate names."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def host_name(host: str) -> x509.GeneralName:
    """A host's name or address as it stands in a certificate.

    Raises:
        ValueError: it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is not the name or address of a host (it goes without a port)")
    return x509.DNSName(host)


def _after(days: float) -> datetime.datetime:
    try:
        return now() + datetime.timedelta(days=days)
    except (OverflowError, ValueError):  # not a number, too
        raise ValueError(f"{days!r} days is longer than a certificate can be valid") from None


def _digest(key: Any) -> SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
