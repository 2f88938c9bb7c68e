# SPDX-License-Identifier: Apache-2.0
"""Bearer tokens."""

from __future__ import annotations

import base64
import hashlib

from hypothesis import given
from hypothesis import strategies as st

from rpcflow.security.tokens import hash_token, is_hash, new_token, token_matches


def test_new_ones_are_256_bits_and_all_different() -> None:
    made = [new_token() for _ in range(300)]
    assert len(set(made)) == 300
    for token in made:
        assert len(base64.urlsafe_b64decode(token + "=")) == 32
        assert not token.startswith("-")  # it would be taken for an option


def test_what_is_kept_is_the_hash() -> None:
    token = new_token()
    hashed = hash_token(token)
    assert hashed == "sha256:" + hashlib.sha256(token.encode()).hexdigest()
    assert is_hash(hashed)
    assert token not in hashed


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_only_the_token_itself_matches(one: str, other: str) -> None:
    assert token_matches(one, hash_token(one))
    assert token_matches(one, hash_token(other)) is (one == other)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_no_hash_matches_nothing(text: str) -> None:
    assert is_hash(text) is (len(text) == 71 and text[:7] == "sha256:" and set(text[7:]) <= set("0123456789abcdef"))
    assert not token_matches(text, text)
    assert not token_matches(text, "")
