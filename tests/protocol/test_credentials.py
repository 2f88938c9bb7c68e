# SPDX-License-Identifier: Apache-2.0
"""Credentials, the first bytes of a line where there are some."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.errors import ProtocolError
from rpcflow.protocol.credentials import (
    CREDENTIALS_MAGIC,
    CREDENTIALS_NBYTES,
    TOKEN_NBYTES,
    CredentialsReader,
    check_token,
    encode_credentials,
)
from rpcflow.protocol.handshake import encode_hello
from rpcflow.protocol.packets import InitServer, encode
from rpcflow.protocol.tracker import MAGIC_BYTES

VISIBLE = "".join(chr(code) for code in range(33, 127))
TOKENS = st.text(st.sampled_from(VISIBLE), min_size=1, max_size=TOKEN_NBYTES)


def read(reader: CredentialsReader, data: bytes, step: int = 1 << 20) -> int:
    """Feed until they are whole; how many bytes that took."""
    pos = 0
    while not reader.done and pos < len(data):
        piece = data[pos : pos + min(step, reader.wanted)]
        reader.feed(piece)
        pos += len(piece)
    return pos


def test_literal() -> None:
    assert encode_credentials("abc") == b"rpcflow\x01\x03\0\0\0abc"
    assert len(CREDENTIALS_MAGIC) == 8


@pytest.mark.parametrize("step", [1, 3, 1000])
@given(token=TOKENS, more=st.binary(max_size=20))
def test_reads_what_was_written_and_no_byte_too_many(step: int, token: str, more: bytes) -> None:
    data = encode_credentials(token)
    assert CredentialsReader.begins(data)
    reader = CredentialsReader()
    assert read(reader, data + more, step) == len(data)
    assert reader.done
    assert reader.wanted == 0
    assert reader.token == token


def test_memoryviews_are_fed_as_well() -> None:
    data = encode_credentials("abc")
    reader = CredentialsReader()
    reader.feed(memoryview(data)[:CREDENTIALS_NBYTES])
    assert reader.wanted == 3
    assert not reader.token
    reader.feed(memoryview(data)[CREDENTIALS_NBYTES:])
    assert reader.token == "abc"


@given(TOKENS, st.data())
def test_a_part_is_not_whole(token: str, data: Any) -> None:
    whole = encode_credentials(token)
    reader = CredentialsReader()
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert read(reader, whole[:cut]) == cut
    assert not reader.done
    assert reader.token == ""
    assert 0 < reader.wanted <= TOKEN_NBYTES


@pytest.mark.parametrize("magic", [encode_hello("client:x"), MAGIC_BYTES])
def test_nothing_else_begins_so(magic: bytes) -> None:
    assert not CredentialsReader.begins(magic)
    assert not CredentialsReader.begins(b"")
    first = encode(InitServer("0.8.0", []))[0]
    assert not isinstance(first, tuple)
    assert not CredentialsReader.begins(bytes(first))  # on a line without a key: the length of a packet


@pytest.mark.parametrize(
    "token", ["", "a b", " a", "a\n", "a\0", "\x7f", "ä", "\ud800", "a" * (TOKEN_NBYTES + 1), b"abc", None, 7]
)
def test_what_is_no_token(token: Any) -> None:
    for check in (check_token, encode_credentials):
        with pytest.raises(ValueError, match="visible ASCII") as caught:
            check(token)
        assert not token or str(token) not in str(caught.value)


def test_the_longest_token() -> None:
    data = encode_credentials("z" * TOKEN_NBYTES)
    reader = CredentialsReader()
    assert read(reader, data) == len(data)
    assert reader.token == "z" * TOKEN_NBYTES


@pytest.mark.parametrize("step", [1, 5, 1000])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"rpcflow\x02\x01\0\0\0a", "begin as they should"),
        (b"rPcflow\x01\x01\0\0\0a", "begin as they should"),
        (CREDENTIALS_MAGIC + struct.pack("<I", 0), "0 bytes is refused"),
        (CREDENTIALS_MAGIC + struct.pack("<I", TOKEN_NBYTES + 1), "the limit is 1024"),
        (CREDENTIALS_MAGIC + struct.pack("<I", 2**32 - 1), "the limit is 1024"),
        (CREDENTIALS_MAGIC + struct.pack("<I", 3) + b"a b", "visible ASCII"),
        (CREDENTIALS_MAGIC + struct.pack("<I", 3) + b"a\nb", "visible ASCII"),
        (CREDENTIALS_MAGIC + struct.pack("<I", 3) + b"a\xc3\xa4", "visible ASCII"),
    ],
)
def test_refusals(data: bytes, words: str, step: int) -> None:
    reader = CredentialsReader()
    with pytest.raises(ProtocolError, match=words):
        read(reader, data, step)
    assert reader.token == ""
    assert not reader.done


@pytest.mark.parametrize("secret", [b"s3cret word", b"s3cret\xff"])
def test_an_error_does_not_show_the_token(secret: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        read(CredentialsReader(), CREDENTIALS_MAGIC + struct.pack("<I", len(secret)) + secret)
    assert "s3cret" not in str(caught.value)


@given(st.binary(max_size=64))
def test_any_bytes_are_credentials_or_refused(data: bytes) -> None:
    outcomes = []
    for step in (1, 1000):
        reader = CredentialsReader()
        try:
            read(reader, CREDENTIALS_MAGIC + data, step)
        except ProtocolError as error:
            outcomes.append(str(error))
        else:
            outcomes.append(reader.token)
    assert outcomes[0] == outcomes[1]
