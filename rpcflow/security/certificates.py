# SPDX-License-Identifier: Apache-2.0
"""Keys and certificates (X.509, RFC 5280) by the cryptography library: made, signed, read."""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from . import need

need("cryptography")

from cryptography import x509  # noqa: E402
from cryptography.exceptions import UnsupportedAlgorithm  # noqa: E402
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
ALGORITHMS: Final = ("p256", "ed25519")
_SKEW: Final = datetime.timedelta(hours=1)
"""How long before now a certificate is valid from: clocks differ, those of boards above all."""
_CRL_DAYS: Final = 3650


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
        days: how long it is valid; 0 or less for one that is not any more.
        hosts: names and addresses by which a server is known.
        issuer: who signs; None for the key itself.
        authority: whether its key may sign others.
        server, client: what it is good for.
    """
    signer, above = issuer if issuer is not None else (key, None)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    until = now() + datetime.timedelta(days=days)
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
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return builder.sign(signer, _digest(signer))


def make_crl(key: Key, certificate: x509.Certificate, serials: Sequence[int]) -> bytes:
    """A list of revoked certificates, PEM."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(certificate.subject)
        .last_update(now() - _SKEW)
        .next_update(now() + datetime.timedelta(days=_CRL_DAYS))
    )
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now()).build()
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(key, _digest(key)).public_bytes(Encoding.PEM)


def read_crl(data: bytes) -> tuple[int, ...]:
    """The serial numbers in a list of revoked certificates, PEM.

    Raises:
        ValueError: it is none.
    """
    return tuple(entry.serial_number for entry in x509.load_pem_x509_crl(data))


def key_pem(key: Key) -> bytes:
    """A private key as PEM (PKCS #8)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def der(certificate: x509.Certificate) -> bytes:
    """A certificate as DER."""
    return certificate.public_bytes(Encoding.DER)


def read_certificate(data: bytes) -> bytes:
    """A certificate that is PEM or DER, as PEM.

    Raises:
        ValueError: it is none.
    """
    try:
        load = x509.load_pem_x509_certificate if b"-----BEGIN" in data else x509.load_der_x509_certificate
        made = load(data)
        made.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
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
    except ValueError as error:
        raise ValueError(f"{path} holds no certificate that can be read: {error}") from None
    if key.public_key() != certificates[0].public_key():
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


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise ValueError(f"{host!r} is not the name of a host") from None


def _digest(key: Any) -> SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
