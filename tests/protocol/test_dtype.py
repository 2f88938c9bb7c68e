# SPDX-License-Identifier: Apache-2.0
"""Names of element types."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.protocol.dtype import DataType, DTypeCode
from tests import strategies as wire


@pytest.mark.parametrize(
    ("name", "code", "bits", "lanes"),
    [
        ("int8", 0, 8, 1),
        ("uint16", 1, 16, 1),
        ("float32", 2, 32, 1),
        ("float32x4", 2, 32, 4),
        ("bfloat16x2", 4, 16, 2),
        ("complex64", 5, 64, 1),
        ("bool", 6, 8, 1),
        ("boolx8", 6, 8, 8),
        ("bool1", 6, 1, 1),
        ("handle", 3, 64, 1),
        ("handle32", 3, 32, 1),
        ("float8_e3m4", 7, 8, 1),
        ("float8_e4m3b11fnuz", 9, 8, 1),
        ("float8_e4m3fnx4", 10, 8, 4),
        ("float6_e3m2fn", 16, 6, 1),
        ("float4_e2m1fnx2", 17, 4, 2),
    ],
)
def test_names(name: str, code: int, bits: int, lanes: int) -> None:
    made = DataType.parse(name)
    assert (made.code, made.bits, made.lanes) == (code, bits, lanes)
    assert str(made) == name
    assert made == name
    assert repr(made) == f"DataType({name!r})"


def test_every_code_has_a_name() -> None:
    for code in DTypeCode:
        bits = int(code.name[5]) if code.name[5:6].isdecimal() else 16
        made = DataType(code, bits)
        assert DataType.parse(str(made)) == made


@given(wire.named_dtypes)
def test_there_and_back(dtype: DataType) -> None:
    assert DataType.parse(str(dtype)) == dtype
    assert DataType.parse(dtype) is dtype


@given(wire.dtypes, wire.dtypes)
def test_equal_means_equal_names(one: DataType, other: DataType) -> None:
    assert (one == other) == (str(one) == str(other))
    assert one != other or hash(one) == hash(other)
    assert hash(one) == hash(str(one))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        "int0",
        "int256",
        "int8x0",
        "int8x65536",
        "float99999999",
        "floaty",
        "8",
        "int-8",
        "int8x",
        "int٣",
        "float8_e4m3x0",
        "float8_nothing",
        "customfoo",
        "boolx",
        "int8x" + "9" * 5000,
        "int8 ",
        "int8\n",
    ],
)
def test_no_such_name(name: str) -> None:
    with pytest.raises(ValueError):
        DataType.parse(name)


@given(st.text(max_size=30))
def test_any_text_is_a_name_or_a_value_error(text: str) -> None:
    try:
        made = DataType.parse(text)
    except ValueError:
        return
    assert DataType.parse(str(made)) == made


def test_sizes() -> None:
    assert DataType.parse("int4").nbytes(3) == 2  # whole bytes for all, not for each
    assert DataType.parse("int4").itemsize == 1
    assert DataType.parse("float32x4").itemsize == 16
    assert DataType.parse("float32").nbytes(0) == 0


def test_equality_with_others() -> None:
    numpy = pytest.importorskip("numpy")
    assert DataType.parse("float32") == numpy.dtype("float32")
    assert DataType.parse("float32") != numpy.dtype("float64")
    assert DataType.parse("float32") != 3
