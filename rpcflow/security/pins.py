# SPDX-License-Identifier: Apache-2.0
"""Pins: a key, said short. ``sha256:`` and 64 hexadecimal digits of the SHA-256 of a certificate's SubjectPublicKeyInfo
in DER, as in RFC 7469. A renewed certificate with the same key has the same pin."""

import hashlib
import hmac
import re
from typing import Final

from . import need

_PREFIX: Final = "sha256:"
_PIN: Final = re.compile(_PREFIX + "[0-9a-f]{64}")


def pin_of(certificate: bytes) -> str:
    """The pin of a certificate's key.

    Args:
        certificate: in DER.

    Raises:
        ValueError: that is no certificate.
        ImportError: the packages of an extra are missing.
    """
    need("cryptography")
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except x509.InvalidVersion as error:
        raise ValueError(f"no certificate: {error}") from None
    except UnsupportedAlgorithm as error:
        raise ValueError(f"a certificate with a key of a kind that is not known: {error}") from None
    return _PREFIX + hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def check_pin(text: str) -> str:
    """A pin as people write it, made as we write it.

    Raises:
        ValueError: it is none.
    """
    pin = text.strip().lower() if isinstance(text, str) else ""
    if not _PIN.fullmatch(pin):
        raise ValueError(f"{text!r} is not a pin: it is sha256: and 64 hexadecimal digits, as `READY` shows it")
    return pin


def same_pin(one: str, other: str) -> bool:
    """Whether two pins are the same; takes as long whether they are or not."""
    return hmac.compare_digest(one.encode(), other.encode())
