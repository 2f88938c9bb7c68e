"""Every kind of value there and back, in every form that stock peers put on the line."""

from __future__ import annotations

import math
from typing import Any

import pytest

from .peers import Link

pytestmark = pytest.mark.interop

VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "false": False,
    "int-0": 0,
    "int-1": 1,
    "int-negative": -2,
    "int-max": 2**63 - 1,
    "int-min": -(2**63),
    "float": 1.5,
    "float-tiny": 5e-324,
    "float-max": 1.7976931348623157e308,
    "float-inf": math.inf,
    "float-minus-inf": -math.inf,
    "float-integral": 2.0,
    "str-empty": "",
    "str-7": "abcdefg",
    "str-8": "abcdefgh",
    "str-unicode": "αβγ é 🦀",
    "str-blank": " \n\t",
    "str-2000": "x" * 2000,
    "str-200000": "é" * 100_000,
    "bytes-empty": b"",
    "bytes-3": b"123",
    "bytes-7": b"abcdefg",
    "bytes-8": b"abcdefgh",
    "bytes-nul": b"\0a\0b" * 4,
    "bytes-only-nul": b"\0" * 7,
    "bytes-2000": bytes(range(250)) * 8,
    "bytes-not-utf8": b"\xff\xfe\x80",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_echo(link: Link, value: Any) -> None:
    echoed = link.call("testing.echo", value)
    assert echoed == value
    if value is None or isinstance(value, bool | int | float):
        assert type(echoed) is type(value)
    else:
        assert isinstance(echoed, type(value))


def test_echo_nan(link: Link) -> None:
    assert math.isnan(link.call("testing.echo", math.nan))


def test_echo_minus_zero(link: Link) -> None:
    assert math.copysign(1.0, link.call("testing.echo", -0.0)) == -1.0


@pytest.mark.parametrize("size", [0, 3, 7, 8, 2000])
def test_echo_bytearray(link: Link, size: int) -> None:
    assert bytes(link.call("testing.echo", bytearray(b"\0z" * size))) == b"\0z" * size


def test_echo_str_with_nul(link: Link) -> None:
    # Stock peers cut a str at its first NUL, both ways; between two rpcflow ends nothing may get lost,
    # and where one end is stock no more than that.
    echoed = link.call("testing.echo", "ab\0cd")
    if link.client.name == "stock" or link.server == "stock":
        assert echoed in ("ab", "ab\0cd")
    else:
        assert echoed == "ab\0cd"


def test_returned_str_with_nul(link: Link) -> None:
    returned = link.call("wire.ret_str_nul")
    assert returned == ("ab" if link.server == "stock" else "ab\0cd")


DTYPES = [
    "bool", "int8", "int64", "uint8", "uint16", "float16", "float32", "float64", "bfloat16", "bfloat16x4",
    "float32x4", "float8_e4m3fn", "float8_e5m2", "int4", "float4_e2m1fn", "float4_e2m1fnx2", "int1",
]  # fmt: skip


@pytest.mark.parametrize("text", DTYPES)
def test_echo_dtype(link: Link, text: str) -> None:
    assert str(link.call("testing.echo", link.client.dtype(text))) == text


def test_returned_dtype(link: Link) -> None:
    assert str(link.call("wire.ret_dtype")) == "float16"


@pytest.mark.parametrize(("kind", "number"), [(1, 0), (1, 3), (2, 0), (4, 1), (7, 0), (10, 2), (12, 0), (16, 0)])
def test_echo_device(link: Link, kind: int, number: int) -> None:
    device = link.session.device(kind, number)
    assert link.client.device_numbers(device) == (kind, number)
    assert link.client.device_numbers(link.call("testing.echo", device)) == (kind, number)


@pytest.mark.parametrize(
    ("maker", "kind"),
    [
        ("cpu", 1), ("cuda", 2), ("cl", 4), ("vulkan", 7), ("metal", 8), ("rocm", 10), ("ext_dev", 12),
        ("hexagon", 16), ("webgpu", 15),
    ],
)  # fmt: skip
def test_device_makers(link: Link, maker: str, kind: int) -> None:
    make = getattr(link.session, maker)
    assert link.client.device_numbers(make()) == (kind, 0)
    assert link.client.device_numbers(make(2)) == (kind, 2)


@pytest.mark.parametrize(("name", "kind"), [("cpu", 1), ("cuda", 2), ("opencl", 4), ("vulkan", 7)])
def test_device_by_name(link: Link, name: str, kind: int) -> None:
    assert link.client.device_numbers(link.session.device(name, 1)) == (kind, 1)


def test_returned_device(link: Link) -> None:
    assert link.client.device_numbers(link.call("wire.ret_device")) == (1, 0)


def test_no_arguments(link: Link) -> None:
    assert link.call("testing.nop") is None
    assert link.call("interop.number_of_args") == 0


def test_many_arguments(link: Link) -> None:
    assert link.call("testing.echo", 1, 2.5, "a", None, True, b"zz") == 1
    shown = link.call("interop.show", 1, 2.5, "a", None, True, b"zz", -7, "longer than seven", b"0123456789")
    assert shown == "1|2.5|a|None|True|7a7a|-7|longer than seven|30313233343536373839"
    assert link.call("interop.number_of_args", *range(100)) == 100


@pytest.mark.parametrize("size", [0, 5, 7, 8, 100, 100_000])
def test_returned_bytes(link: Link, size: int) -> None:
    returned = link.call("wire.ret_bytes", size)
    assert isinstance(returned, bytes | bytearray)
    assert bytes(returned) == bytes(i % 256 for i in range(size))


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, object(), {1: 2}, lambda: 0])
def test_refused_before_sending(link: Link, value: Any) -> None:
    """A value that cannot travel is refused by the client, and the session stays usable."""
    echo = link.fn("testing.echo")
    with pytest.raises((TypeError, ValueError, OverflowError, RuntimeError)):
        echo(value)
    assert echo(5) == 5
