# SPDX-License-Identifier: Apache-2.0
"""The handshake and its key texts."""

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.errors import ProtocolError
from rpcflow.protocol.handshake import Answer, Hello, HelloReader, KeyText, Side, encode_answer, encode_hello
from rpcflow.protocol.limits import Limits
from tests import strategies as wire


def read(reader: HelloReader, data: bytes, step: int = 1 << 20) -> int:
    """Feed until the message is whole; return how many bytes that took."""
    pos = 0
    while reader.wanted and pos < len(data):
        piece = data[pos : pos + min(step, reader.wanted)]
        reader.feed(piece)
        pos += len(piece)
    return pos


CLIENT_HELLO = (
    b"\x71\xf2\x0f\x00"  # i32 magic
    b"\x09\0\0\0"  # i32 key length
    b"client:x1"
)
SERVER_OK = (
    b"\x71\xf2\x0f\x00"  # i32 code: ok
    b"\x09\0\0\0"  # i32 key length
    b"server:x1"
)
DUPLICATE = b"\x72\xf2\x0f\x00"  # i32 code; nothing behind it
MISMATCH = b"\x73\xf2\x0f\x00"


def test_literal() -> None:
    assert encode_hello("client:x1") == CLIENT_HELLO
    assert encode_answer(Answer.OK, "server:x1") == SERVER_OK
    assert encode_answer(Answer.DUPLICATE) == DUPLICATE
    assert encode_answer(Answer.MISMATCH) == MISMATCH


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("data", "to_server", "hello"),
    [
        (CLIENT_HELLO, True, Hello(0xFF271, "client:x1")),
        (SERVER_OK, False, Hello(Answer.OK, "server:x1")),
        (DUPLICATE, False, Hello(Answer.DUPLICATE, None)),
        (MISMATCH, False, Hello(Answer.MISMATCH, None)),
        (b"\x71\xf2\x0f\x00\0\0\0\0", True, Hello(0xFF271, "")),
    ],
)
def test_reads_no_byte_too_many(data: bytes, to_server: bool, hello: Hello, step: int) -> None:
    reader = HelloReader.for_server() if to_server else HelloReader.for_client()
    for end in range(len(data)):
        partial = HelloReader.for_server() if to_server else HelloReader.for_client()
        read(partial, data[:end], step)
        assert partial.hello is None
        assert partial.wanted
    assert read(reader, data + b"behind", step) == len(data)
    assert reader.hello == hello
    assert reader.wanted == 0


@pytest.mark.parametrize("size", [-1, -(2**31), 4097, 2**31 - 1])
def test_a_key_of_a_bad_size_takes_no_memory(size: int) -> None:
    reader = HelloReader.for_server()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="the limit is 4096"):
            read(reader, struct.pack("<ii", 0xFF271, size) + b"x" * 100)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_the_limit_itself_is_good() -> None:
    reader = HelloReader.for_server()
    read(reader, encode_hello("k" * 4096))
    assert reader.hello == Hello(0xFF271, "k" * 4096)
    small = HelloReader.for_server(Limits(key_nbytes=3))
    with pytest.raises(ProtocolError):
        read(small, encode_hello("kkkk"))


def test_not_utf8() -> None:
    with pytest.raises(ProtocolError, match="not UTF-8"):
        read(HelloReader.for_server(), struct.pack("<ii", 0xFF271, 2) + b"\xff\xfe")


@pytest.mark.parametrize("magic", [b"GET ", b"\x71\xf2\x02\x00", b"\x72\xf2\x0f\x00", b"\0\0\0\0", b"\x16\x03\x01\x02"])
def test_another_magic(magic: bytes) -> None:
    with pytest.raises(ProtocolError, match="does not speak"):
        read(HelloReader.for_server(), magic)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("client:x1", KeyText(Side.CLIENT, "x1")),
        ("server:x1", KeyText(Side.SERVER, "x1")),
        ("client:", KeyText(Side.CLIENT, "")),
        ("client:a:b:0.25", KeyText(Side.CLIENT, "a:b:0.25")),
        ("client:x1 -timeout=30", KeyText(Side.CLIENT, "x1", 30.0)),
        ("client:x1 -timeout=2.5", KeyText(Side.CLIENT, "x1", 2.5)),
        ("  client:x1   -other   -timeout=7 ", KeyText(Side.CLIENT, "x1", 7.0)),
        ("client:x1 -timeout=0", KeyText(Side.CLIENT, "x1")),
    ],
)
def test_key_texts(text: str, key: KeyText) -> None:
    assert KeyText.parse(text) == key


def test_key_texts_are_written_as_stock_writes_them() -> None:
    assert str(KeyText(Side.CLIENT, "x1", 30)) == "client:x1 -timeout=30"
    assert str(KeyText(Side.CLIENT, "x1", 2.5)) == "client:x1 -timeout=2.5"
    assert str(KeyText(Side.CLIENT, "x1", 0)) == "client:x1"
    assert str(KeyText(Side.SERVER, "x1")) == "server:x1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "x1",
        "nobody:x1",
        "Client:x1",
        " -timeout=3",
        "client:x1 -timeout=",
        "client:x1 -timeout=soon",
        "client:x1 -timeout=-1",
        "client:x1 -timeout=nan",
        "client:x1 -timeout=inf",
        "client:x1 -timeout=1e999",
    ],
)
def test_no_key_text(text: str) -> None:
    with pytest.raises(ProtocolError):
        KeyText.parse(text)


@given(wire.key_texts)
def test_key_texts_there_and_back(key: KeyText) -> None:
    assert KeyText.parse(str(key)) == key


@given(st.text(max_size=100))
def test_any_text_is_a_key_text_or_a_protocol_error(text: str) -> None:
    try:
        key = KeyText.parse(text)
    except ProtocolError:
        return
    assert KeyText.parse(str(key)) == key


@given(st.text(max_size=100), st.integers(1, 9))
def test_hellos_there_and_back(text: str, step: int) -> None:
    for reader, data in (
        (HelloReader.for_server(), encode_hello(text)),
        (HelloReader.for_client(), encode_answer(Answer.OK, text)),
    ):
        assert read(reader, data, step) == len(data)
        assert reader.hello == Hello(0xFF271, text)
