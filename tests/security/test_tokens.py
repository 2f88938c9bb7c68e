# SPDX-License-Identifier: Apache-2.0
"""Tokens and their hashes."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.protocol.credentials import check_token
from rpcflow.security import tokens
from rpcflow.security.tokens import hash_token, is_hash, new_token, token_matches


def test_tokens_are_long_random_and_fit_to_be_sent() -> None:
    made = {new_token() for _ in range(500)}
    assert len(made) == 500
    for token in made:
        check_token(token)
        assert len(base64.urlsafe_b64decode(token + "=")) == 32
        assert not token.startswith("-")  # or a command would take it for an option


def test_one_with_a_dash_in_front_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["-abc", "-def", "ghi"])
    monkeypatch.setattr(tokens.secrets, "token_urlsafe", lambda nbytes: next(drawn))
    assert new_token() == "ghi"


def test_the_hash_is_plain_sha256() -> None:
    assert hash_token("abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(st.text())
def test_a_token_matches_its_own_hash_alone(token: str) -> None:
    hashed = hash_token(token)
    assert is_hash(hashed)
    assert token_matches(token, hashed)
    assert not token_matches(token + "x", hashed)
    assert not token_matches(hashed, hashed)


def test_half_a_surrogate_pair_is_a_token_like_any() -> None:
    assert token_matches("\ud800", hash_token("\ud800"))


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", "sha256:" + "a" * 63, "sha256:" + "a" * 65, "sha256:" + "A" * 64, "sha256:" + "g" * 64],
)
def test_what_is_no_hash(text: str) -> None:
    assert not is_hash(text)
    assert not token_matches("x", text)


@given(st.text())
def test_what_is_a_hash(text: str) -> None:
    assert is_hash(text) is (len(text) == 71 and text[:7] == "sha256:" and set(text[7:]) <= set("0123456789abcdef"))
    assert not token_matches(text, text)


def test_a_bare_digest_or_a_line_end_is_no_hash() -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    assert is_hash(f"sha256:{digest}")
    assert not is_hash(digest)
    assert not is_hash(f"sha256:{digest}\n")
    assert not token_matches("x", digest)
    assert not token_matches("x", "sha256:ä")
