# SPDX-License-Identifier: Apache-2.0
"""Values: their bytes, spelled out, and there and back for any of each kind."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.errors import ProtocolError
from rpcflow.protocol import values as v
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.values import (
    BulkBytes,
    Device,
    FilePayload,
    FunctionRef,
    ModuleRef,
    ObjectBytes,
    ObjectRef,
    ObjectText,
    Pointer,
    TensorView,
    Writer,
    decode_values,
    encode_values,
)
from tests import strategies as wire
from tests.strategies import same


def encoded(values: list[Any]) -> bytes:
    writer = Writer()
    encode_values(writer, values)
    out = bytearray()
    for part in writer.finish():
        assert not isinstance(part, FilePayload)
        out += part
    assert writer.nbytes == len(out)
    return bytes(out)


def decoded(data: bytes) -> list[Any]:
    return decode_values(memoryview(data))


def _outer(made: Any, outer: int) -> Any:
    made.outer = outer
    return made


LITERAL: list[tuple[str, Any, bytes]] = [
    ("none", None, b"\x00\0\0\0"),  # index 0, nothing behind it
    (
        "int",
        -2,
        b"\x01\0\0\0"  # index
        b"\xfe\xff\xff\xff\xff\xff\xff\xff",  # i64
    ),
    (
        "bool",
        True,
        b"\x02\0\0\0"  # index
        b"\x01\0\0\0\0\0\0\0",  # i64, 0 or 1
    ),
    (
        "float",
        1.5,
        b"\x03\0\0\0"  # index
        b"\0\0\0\0\0\0\xf8\x3f",  # f64
    ),
    (
        "pointer",
        Pointer(2**63 + 1),
        b"\x04\0\0\0"  # index
        b"\x01\0\0\0\0\0\0\x80",  # u64
    ),
    (
        "dtype",
        DataType(4, 16, 4),
        b"\x05\0\0\0"  # index
        b"\x04"  # u8 code: bfloat
        b"\x10"  # u8 bits
        b"\x04\0"  # u16 lanes
        b"\0\0\0\0",  # padding
    ),
    (
        "device",
        Device(2, 1),
        b"\x06\0\0\0"  # index
        b"\x02\0\0\0"  # i32 type: cuda
        b"\x01\0\0\0",  # i32 id
    ),
    (
        "tensor",
        TensorView(0x10, Device(1, 0), DataType(2, 32), (2, 3), 8),
        b"\x07\0\0\0"  # index
        b"\x10\0\0\0\0\0\0\0"  # u64 data
        b"\x01\0\0\0\0\0\0\0"  # i32 device type, i32 device id
        b"\x02\0\0\0"  # i32 ndim
        b"\x02\x20\x01\0"  # u8 code, u8 bits, u16 lanes
        b"\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0"  # i64 for each dimension
        b"\x08\0\0\0\0\0\0\0",  # u64 byte offset
    ),
    (
        "scalar tensor",
        TensorView(0, Device(1, 0), DataType(6, 8), (), 0),
        b"\x07\0\0\0"  # index
        b"\0\0\0\0\0\0\0\0"  # u64 data
        b"\x01\0\0\0\0\0\0\0"  # device
        b"\0\0\0\0"  # i32 ndim: none, so no shape
        b"\x06\x08\x01\0"  # dtype: bool
        b"\0\0\0\0\0\0\0\0",  # u64 byte offset
    ),
    (
        "raw text",
        "xÿ",
        b"\x08\0\0\0"  # index
        b"\x03\0\0\0\0\0\0\0"  # u64 length, in bytes
        b"x\xc3\xbf",  # UTF-8
    ),
    (
        "raw bytes",
        b"\0\xff",
        b"\x09\0\0\0"  # index
        b"\x02\0\0\0\0\0\0\0"  # u64 length
        b"\0\xff",
    ),
    (
        "small text",
        ObjectText.of("a\0b"),
        b"\x0b\0\0\0"  # index: small string
        b"\x41\0\0\0"  # u32 inner index: string object
        b"\x03\0\0\0\0\0\0\0"  # u64 length
        b"a\0b",
    ),
    (
        "text object",
        ObjectText.of("12345678"),
        b"\x41\0\0\0"  # index: string object
        b"\x41\0\0\0"  # u32 inner index
        b"\x08\0\0\0\0\0\0\0"  # u64 length
        b"12345678",
    ),
    (
        "small bytes",
        _outer(ObjectBytes(b"123"), 12),
        b"\x0c\0\0\0"  # index: small bytes
        b"\x42\0\0\0"  # u32 inner index: bytes object
        b"\x03\0\0\0\0\0\0\0"  # u64 length
        b"123",
    ),
    (
        "bytes object",
        ObjectBytes(b""),
        b"\x42\0\0\0"  # index: bytes object
        b"\x42\0\0\0"  # u32 inner index
        b"\0\0\0\0\0\0\0\0",  # u64 length
    ),
    (
        "text under any object's index",
        _outer(ObjectText("z"), 200),
        b"\xc8\0\0\0"  # index: given out at run time
        b"\x41\0\0\0"  # u32 inner index
        b"\x01\0\0\0\0\0\0\0"  # u64 length
        b"z",
    ),
    (
        "function",
        FunctionRef(9),
        b"\x44\0\0\0"  # index
        b"\x09\0\0\0\0\0\0\0",  # u64 handle
    ),
    (
        "module",
        ModuleRef(9),
        b"\x49\0\0\0"  # index
        b"\x09\0\0\0\0\0\0\0",  # u64 handle
    ),
    (
        "object",
        ObjectRef(9),
        b"\x73\0\0\0"  # index: 115
        b"\x73\0\0\0"  # u32 inner index
        b"\x09\0\0\0\0\0\0\0",  # u64 handle
    ),
]


@pytest.mark.parametrize(("value", "data"), [row[1:] for row in LITERAL], ids=[row[0] for row in LITERAL])
def test_literal(value: Any, data: bytes) -> None:
    data = b"\x01\0\0\0" + data  # i32 count
    assert encoded([value]) == data
    (again,) = decoded(data)
    assert same(again, value)
    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            decoded(data[:end])
    with pytest.raises(ProtocolError):
        decoded(data + b"\0")


def test_every_kind_has_a_literal_case() -> None:
    kinds = {type(row[1]) for row in LITERAL} | {BulkBytes, FilePayload}
    assert kinds == set(v._WRITERS)


def test_a_sequence() -> None:
    data = (
        b"\x02\0\0\0"  # i32 count
        b"\x01\0\0\0\x05\0\0\0\0\0\0\0"  # int 5
        b"\0\0\0\0"  # None
    )
    assert encoded([5, None]) == data
    assert decoded(data) == [5, None]
    assert decoded(b"\0\0\0\0") == []


@pytest.mark.parametrize("kind", wire.value_kinds)
def test_there_and_back(kind: str) -> None:
    @given(wire.value_kinds[kind])
    def check(value: Any) -> None:
        data = encoded([value])
        (again,) = decoded(data)
        assert same(again, value)
        assert encoded([again]) == data

    check()


@given(wire.sequences)
def test_sequences_there_and_back(values: list[Any]) -> None:
    assert same(decoded(encoded(values)), values)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x01\0\0\0\x0a\0\0\0" + bytes(8), "10 is not the index"),  # an r-value reference
        (b"\x01\0\0\0\x0d\0\0\0" + bytes(12), "13 is not the index"),
        (b"\x01\0\0\0\xff\xff\xff\xff" + bytes(12), "-1 is not the index"),
        (b"\x01\0\0\0\x41\0\0\0\x47\0\0\0" + bytes(8), "71 is not the index of an object"),  # an array inside
        (b"\x01\0\0\0\x02\0\0\0\x02\0\0\0\0\0\0\0", "a bool of value 2"),
        (b"\xff\xff\xff\xff", "cannot hold -1 values"),
        (b"\xff\xff\xff\x7f\0\0\0\0", "cannot hold 2147483647 values"),
        (b"\x01\0\0\0\x08\0\0\0\x02\0\0\0\0\0\0\0\xc3\x28", "not UTF-8"),
        (b"\x01\0\0\0\x08\0\0\0\x03\0\0\0\0\0\0\0\xed\xa0\x80", "not UTF-8"),  # a lone surrogate
        (b"\x01\0\0\0\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", "middle of a text"),
        (b"\x01\0\0\0\x09\0\0\0\0\0\0\0\0\0\0\x80", "middle of a bytes value"),
    ],
)
def test_refused(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        decoded(data)


@pytest.mark.parametrize(
    ("shape", "bits", "good"),
    [
        ((2**62,), 1, True),
        ((2**62,), 2, True),
        ((2**62,), 16, False),
        ((2**62,), 0, True),
        ((2**62, 2), 0, False),  # elements of no size are counted all the same
        ((2**32, 2**32), 8, False),
        ((2**62, 0), 8, True),
        ((-1,), 8, False),
        ((-(2**63), -(2**63)), 8, False),
    ],
)
def test_shapes(shape: tuple[int, ...], bits: int, good: bool) -> None:
    data = encoded([TensorView(0, Device(1, 0), DataType(2, bits), shape)])
    if good:
        assert decoded(data)[0].shape == shape
    else:
        with pytest.raises(ProtocolError, match="a tensor with the shape"):
            decoded(data)


@pytest.mark.parametrize("ndim", [-1, 65, 2**31 - 1])
def test_numbers_of_dimensions(ndim: int) -> None:
    data = struct.pack("<iiQiiiBBH", 1, 7, 0, 1, 0, ndim, 2, 32, 1) + bytes(8 * 70)
    with pytest.raises(ProtocolError, match="dimensions"):
        decoded(data)


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        -(2**63) - 1,
        10**5000,
        Pointer(-1),
        Pointer(1 << 64),
        FunctionRef(10**5000),
        Device(2**31, 0),
        DataType(256, 8),
        DataType(0, 8, 65536),
        TensorView(0, Device(1, 0), DataType(2, 32), (2**63,)),
        TensorView(0, Device(1, 0), DataType(2, 32), (1,), -1),
        TensorView(-1, Device(1, 0), DataType(2, 32), (1,)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_that_do_not_fit(value: Any) -> None:
    with pytest.raises(OverflowError, match="does not fit"):
        encoded([value])


def test_what_does_not_travel() -> None:
    class Own(str):
        pass

    for value in ([], {}, object(), Own("x"), bytearray(b"x"), memoryview(b"x")):
        with pytest.raises(TypeError, match="does not travel"):
            encoded([value])
    with pytest.raises(UnicodeEncodeError):
        encoded(["\ud800"])


def test_long_buffers_are_not_copied() -> None:
    data = bytes(v.BULK_NBYTES)
    writer = Writer()
    encode_values(writer, [data, BulkBytes(memoryview(data)), BulkBytes(memoryview(data), None), b"short"])
    parts = writer.finish()
    assert [part for part in parts if part is data] == [data]
    assert sum(isinstance(part, memoryview) and part.obj is data for part in parts) == 2
    assert writer.nbytes == sum(len(part) for part in parts)  # type: ignore[arg-type]


@given(st.binary(max_size=100), st.sampled_from([66, 12, None]))
def test_bulk_bytes_look_like_bytes(data: bytes, outer: int | None) -> None:
    expected: Any = data if outer is None else _outer(ObjectBytes(data), outer)
    assert encoded([BulkBytes(memoryview(data), outer)]) == encoded([expected])


def test_plain() -> None:
    made = v.plain([ObjectText("a"), ObjectBytes(b"b"), 1, "c"])
    assert [type(value) for value in made] == [str, bytes, int, str]
