# SPDX-License-Identifier: Apache-2.0
"""Pins."""

from __future__ import annotations

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.security.identity import init_identity, renew
from rpcflow.security.pins import check_pin, pin_of, same_pin

from .pairing_support import CLIENT, SERVER, der

DIGITS = "0123456789abcdef" * 4


def test_it_is_the_hash_of_the_key() -> None:
    key = x509.load_der_x509_certificate(der(SERVER)).public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert pin_of(der(SERVER)) == "sha256:" + hashlib.sha256(info).hexdigest()
    assert pin_of(der(SERVER)) != pin_of(der(CLIENT))


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize("algorithm", ["p256", "ed25519"])
def test_it_stays_when_the_certificate_is_renewed(algorithm: str) -> None:
    before = init_identity(algorithm=algorithm)
    after = renew()
    assert before.certificate != after.certificate
    assert pin_of(before.certificate) == pin_of(after.certificate) == before.pin


@given(st.binary(max_size=64))
def test_bytes_that_are_no_certificate(data: bytes) -> None:
    with pytest.raises(ValueError):
        pin_of(data)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(st.data())
def test_a_damaged_certificate_is_one_or_a_value_error(data: st.DataObject) -> None:
    damaged = bytearray(der(SERVER))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        pin = pin_of(bytes(damaged))
    except ValueError:
        return
    assert check_pin(pin) == pin


@pytest.mark.parametrize("text", [f"sha256:{DIGITS}", f" SHA256:{DIGITS.upper()}\n", f"Sha256:{DIGITS}\t"])
def test_as_people_write_it(text: str) -> None:
    assert check_pin(text) == f"sha256:{DIGITS}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        DIGITS,
        f"sha1:{DIGITS}",
        f"sha256:{DIGITS[:-1]}",
        f"sha256:{DIGITS}0",
        f"sha256: {DIGITS}",
        "sha256:" + "g" * 64,
        "sha256:" + "\N{FULLWIDTH DIGIT ONE}" * 64,
        f"sha256:{DIGITS}\nsha256:{DIGITS}",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        check_pin(text)


@given(st.text() | st.from_regex(r"\s?sha256:[0-9a-fA-F]{63,65}\s?", fullmatch=True))
def test_what_is_made_of_any_text(text: str) -> None:
    try:
        pin = check_pin(text)
    except ValueError:
        return
    assert check_pin(pin) == pin
    assert len(pin) == 71
    assert bytes.fromhex(pin.removeprefix("sha256:")) == bytes.fromhex(text.strip()[7:])


def test_the_same() -> None:
    assert same_pin(f"sha256:{DIGITS}", f"sha256:{DIGITS}")
    assert not same_pin(f"sha256:{DIGITS}", f"sha256:{DIGITS[::-1]}")
    assert not same_pin(f"sha256:{DIGITS}", "")
