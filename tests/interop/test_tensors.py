"""Tensors: every dtype, every shape that is odd, copies in, out and among, views, memory scopes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from .peers import Link

pytestmark = pytest.mark.interop

PLAIN = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
    "float64",
]  # fmt: skip
SPECIAL = [
    "bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz",
    "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
]  # fmt: skip
SHAPES = [(), (0,), (1,), (5,), (2, 3), (2, 0, 3), (1, 1, 1, 1, 1), (3, 1, 4), (100,)]


def make(dtype: str, shape: tuple[int, ...] = (2, 5)) -> Any:
    """An array with many different bit patterns, none of them a NaN that could change on its way."""
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype in SPECIAL else np.dtype(dtype)
    size = int(np.prod(shape, dtype="int64"))
    if dtype == "bool":
        return (np.arange(size) % 3 == 0).reshape(shape)
    if kind.itemsize == 1 and dtype in SPECIAL:
        return (np.arange(size) % 60 + 1).astype("uint8").view(kind).reshape(shape)
    return (np.arange(size) % 100).astype(kind).reshape(shape)


def same(left: Any, right: Any) -> bool:
    left, right = np.asarray(left), np.asarray(right)
    return bool(left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes())


@pytest.mark.parametrize("dtype", PLAIN + SPECIAL)
def test_dtypes(link: Link, dtype: str) -> None:
    array = make(dtype)
    tensor = link.tensor(array)
    assert tuple(tensor.shape) == (2, 5)
    assert str(tensor.dtype) == dtype
    assert same(tensor.numpy(), array)
    assert bytes(link.call("interop.raw_bytes", tensor)) == array.tobytes()
    assert link.call("wire.describe_tensor", tensor) == f"(2, 5) {dtype} cpu:0"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_shapes(link: Link, shape: tuple[int, ...], dtype: str) -> None:
    array = make(dtype, shape)
    tensor = link.tensor(array)
    assert tuple(tensor.shape) == shape
    assert same(tensor.numpy(), array)
    assert link.call("wire.describe_tensor", tensor) == f"{shape} {dtype} cpu:0"


def test_vector_lanes(link: Link) -> None:
    tensor = link.empty((3,), "float32x4")
    array = np.arange(12, dtype="float32").reshape(3, 4)
    tensor.copyfrom(array)
    assert np.array_equal(np.asarray(tensor.numpy()).reshape(3, 4), array)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_large(link: Link, dtype: str) -> None:
    count = (8 << 20) // np.dtype(dtype).itemsize
    array = (np.arange(count, dtype="uint32") * 2654435761 >> 7).astype(dtype)
    tensor = link.tensor(array)
    assert same(tensor.numpy(), array)


def test_odd_sizes(link: Link) -> None:
    for size in (1, 3, 63, 64, 65, 4095, 4096, 4097, 65537, 1_000_003):
        array = (np.arange(size) % 251).astype("uint8")
        assert same(link.tensor(array).numpy(), array)


def test_strided_array(link: Link) -> None:
    whole = np.arange(48, dtype="int32").reshape(6, 8)
    for array in (whole.T, whole[::2, 1::3], whole[::-1], np.broadcast_to(whole[0], (4, 8))):
        assert same(link.tensor(array).numpy(), np.ascontiguousarray(array))


def test_copyfrom_and_copyto(link: Link) -> None:
    first, second = link.empty((4, 2), "float64"), link.empty((4, 2), "float64")
    array = np.linspace(0, 1, 8).reshape(4, 2)
    first.copyfrom(array)
    first.copyto(second)
    assert same(second.numpy(), array)
    second.copyfrom(array * 2)
    assert same(first.numpy(), array)
    assert same(second.numpy(), array * 2)


@pytest.mark.parametrize("shape", [(), (1,), (1000,), (300_000,)], ids=str)
def test_copy_among_remote(link: Link, shape: tuple[int, ...]) -> None:
    array = make("int32", shape)
    source, target = link.tensor(array), link.empty(shape, "int32")
    source.copyto(target)
    assert same(target.numpy(), array)


def test_copy_among_empty(link: Link) -> None:
    source, target = link.empty((0,), "int32"), link.empty((0,), "int32")
    source.copyto(target)
    assert target.numpy().shape == (0,)


def test_copy_to_device(link: Link) -> None:
    array = make("float32", (7,))
    source = link.tensor(array)
    copy = source.copyto(link.cpu)
    link.call("wire.add_one_inplace", source)
    assert same(copy.numpy(), array)
    assert same(source.numpy(), array + 1)


def test_copy_between_returned_and_allocated(link: Link) -> None:
    source, target = link.call("wire.make_tensor", 9), link.empty((9,), "float32")
    source.copyto(target)
    assert same(target.numpy(), np.arange(9, dtype="float32"))
    target.copyfrom(np.full(9, 4, "float32"))
    target.copyto(source)
    assert link.call("wire.tensor_sum", source) == 36.0


def test_argument_changed_in_place(link: Link) -> None:
    tensor = link.tensor(np.array([1, 2, 3, 4], "float32"))
    add_one, total = link.fn("wire.add_one_inplace"), link.fn("wire.tensor_sum")
    for step in range(5):
        assert total(tensor) == 10 + 4 * step
        assert add_one(tensor) is None


def test_several_tensors_in_one_call(link: Link) -> None:
    tensors = [link.tensor(np.full(3, n, "float32")) for n in range(5)]
    assert link.call("interop.number_of_args", *tensors, 1, "x") == 7
    assert [link.call("wire.tensor_sum", tensor) for tensor in tensors] == [0, 3, 6, 9, 12]


def test_memory_scope_global(link: Link) -> None:
    tensor = link.empty((3,), "int8", mem_scope="global")
    tensor.copyfrom(np.array([1, -2, 3], "int8"))
    assert same(tensor.numpy(), np.array([1, -2, 3], "int8"))


def test_memory_scope_unknown(link: Link) -> None:
    with pytest.raises(link.client.RPCError):
        link.empty((3,), "int8", mem_scope="texture")
    assert link.call("testing.echo", 1) == 1


@pytest.mark.parametrize("power", [46, 60])
def test_allocation_too_large(link: Link, power: int) -> None:
    refused = () if link.client.name == "stock" else (ValueError,)  # a client may see it before the server
    with pytest.raises((link.client.RPCError, MemoryError, *refused)):
        link.empty((2**power,), "int8")
    assert link.call("testing.echo", 1) == 1


@pytest.mark.parametrize("offset", [0, 4, 8, 20])
def test_view_as_argument(link: Link, offset: int) -> None:
    array = np.arange(8, dtype="float32")
    tensor = link.tensor(array)
    view = link.client.view(tensor, (3,), byte_offset=offset)
    assert tuple(view.shape) == (3,)
    assert link.call("wire.tensor_sum", view) == float(array[offset // 4 : offset // 4 + 3].sum())
    link.call("wire.add_one_inplace", view)
    array[offset // 4 : offset // 4 + 3] += 1
    assert same(tensor.numpy(), array)


def test_view_of_other_shape_and_dtype(link: Link) -> None:
    tensor = link.tensor(np.arange(12, dtype="int32"))
    assert link.call("wire.describe_tensor", link.client.view(tensor, (3, 4))) == "(3, 4) int32 cpu:0"
    narrow = link.client.view(tensor, (48,), "uint8")
    assert link.call("wire.describe_tensor", narrow) == "(48,) uint8 cpu:0"
    assert same(narrow.numpy(), np.arange(12, dtype="int32").view("uint8"))


def test_view_copied(link: Link) -> None:
    """The stock client overwrites the offset of a view when it copies, and so reads the wrong place."""
    array = np.arange(8, dtype="float32")
    tensor = link.tensor(array)
    view = link.client.view(tensor, (3,), byte_offset=8)
    if link.client.name == "stock":
        assert same(view.numpy(), array[0:3])
        return
    assert same(view.numpy(), array[2:5])
    view.copyfrom(np.array([50, 60, 70], "float32"))
    array[2:5] = 50, 60, 70
    assert same(tensor.numpy(), array)
    inner = link.client.view(view, (1,), byte_offset=4)
    assert same(inner.numpy(), array[3:4])


def test_view_copied_among(link: Link) -> None:
    array = np.arange(8, dtype="float32")
    source, target = link.tensor(array), link.tensor(np.zeros(8, "float32"))
    part = link.client.view(source, (3,), byte_offset=8)
    place = link.client.view(target, (3,), byte_offset=20)
    part.copyto(place)
    assert same(target.numpy(), np.array([0, 0, 0, 0, 0, 2, 3, 4], "float32"))


def test_missing_device(link: Link) -> None:
    with pytest.raises(link.client.RPCError):
        link.client.empty(link.session.device("cuda", 0), (3,), "float32")
    assert link.call("testing.echo", 1) == 1
