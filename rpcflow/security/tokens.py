# SPDX-License-Identifier: Apache-2.0
"""Bearer tokens: made here, kept only as hashes.

A token is 256 random bits, so that a plain SHA-256 hides it: a slow hash would make slower what nobody can do anyway.
"""

import hashlib
import hmac
import re
import secrets
from typing import Final

_TOKEN_NBYTES: Final = 32
_PREFIX: Final = "sha256:"
_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")


def new_token() -> str:
    """A new token: 256 random bits, in characters that need no quotes anywhere and never with a dash in front."""
    while True:
        token = secrets.token_urlsafe(_TOKEN_NBYTES)
        if not token.startswith("-"):
            return token


def hash_token(token: str) -> str:
    """What is kept of a token: ``sha256:`` and 64 hex digits."""
    return _PREFIX + hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def is_hash(text: str) -> bool:
    """Whether that is what :func:`hash_token` makes."""
    return _HASH.fullmatch(text) is not None


def token_matches(token: str, hashed: str) -> bool:
    """Whether a token is the one that was hashed; takes as long whatever the token is."""
    return hmac.compare_digest(hash_token(token).encode(), hashed.encode())
