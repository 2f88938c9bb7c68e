# SPDX-License-Identifier: Apache-2.0
"""Tensors: what they are made of, how they are copied, what of them travels."""

import array
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tvm_ffi

import rpcflow

from .conftest import Connect, call

pytestmark = pytest.mark.anyio

PLAIN = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
PLAIN += ["float16", "float32", "float64", "complex64", "complex128", "bool"]
SMALL = [name for name in ("bfloat16", *dir(ml_dtypes)) if name.startswith(("bfloat16", "float8_"))]
PACKED = [
    name
    for name in ("int1", "int2", "int4", "uint1", "uint2", "uint4", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn")
    if hasattr(ml_dtypes, name)
]


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name)) if name in SMALL + PACKED else np.dtype(name)


def sample(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Every bit pattern there is, or nearly."""
    dtype = dtype_of(name)
    count = int(np.prod(shape))
    if name == "bool":
        return (np.arange(count) % 3 == 0).reshape(shape)
    bits = next((int(name[i]) for i in range(len(name)) if name[i] in "1246"), 8) if name in PACKED else 8
    raw = np.arange(count * dtype.itemsize) * 37 % (1 << bits)
    return raw.astype(np.uint8).view(dtype).reshape(shape)


def same(got: Any, expected: Any) -> None:
    """Bit for bit: NaNs too."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    assert np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("name", sorted({*PLAIN, *SMALL}))
@pytest.mark.parametrize("shape", [(7, 5), (), (0,), (3, 0, 2), (1, 1, 1, 1)], ids=str)
async def test_dtypes_and_shapes(session: Any, name: str, shape: tuple[int, ...]) -> None:
    host = sample(name, shape)
    tensor = await session.cpu().tensor(host)
    assert tensor.dtype == name
    assert (tensor.shape, tensor.ndim, tensor.size, tensor.nbytes) == (shape, len(shape), host.size, host.nbytes)
    same(await tensor.numpy(), host)
    made = await session.cpu().empty(shape, name)
    assert (made.shape, made.dtype) == (shape, name)
    assert await made.copyfrom(host) is not None
    same(await made.numpy(), host)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("shape", [(16,), (3, 5), (1,), (), (0,)], ids=str)
async def test_packed_dtypes(session: Any, name: str, shape: tuple[int, ...]) -> None:
    host = sample(name, shape)
    tensor = await session.cpu().tensor(host)
    assert tensor.dtype == name
    bits = tensor.dtype.bits
    assert tensor.nbytes == (host.size * bits + 7) // 8
    back = await tensor.numpy()
    assert back.dtype == host.dtype
    np.testing.assert_array_equal(back.astype("float32"), host.astype("float32"))


async def test_packed_dtypes_lie_low_bits_first(session: Any) -> None:
    tensor = await session.cpu().tensor(np.array([1, -2, 3], ml_dtypes.int4))
    assert (await tensor.view((2,), "uint8").numpy()).tolist() == [0xE1, 0x03]


@pytest.mark.parametrize("name", ["float32x4", "int8x3", "bfloat16x2", "boolx2"])
async def test_lanes(session: Any, name: str) -> None:
    base, _, lanes = name.rpartition("x")
    host = sample(base, (3, int(lanes)))
    tensor = await session.cpu().empty((3,), name)
    assert (tensor.dtype, tensor.nbytes) == (name, host.nbytes)
    await tensor.copyfrom(host)
    same(await tensor.numpy(), host)


def inputs() -> dict[str, tuple[Any, Any]]:
    base = np.arange(24, dtype="int32").reshape(4, 6)
    return {
        "strided": (base[::2, 1::2], base[::2, 1::2]),
        "negative strides": (base[::-1, ::-1], base[::-1, ::-1]),
        "transposed": (base.T, base.T),
        "fortran": (np.asfortranarray(base), base),
        "broadcast": (np.broadcast_to(base[0], (3, 6)), np.broadcast_to(base[0], (3, 6))),
        "big endian": (base.astype(">i4"), base),
        "big endian, strided": (base.astype(">i4")[:, ::2], base[:, ::2]),
        "read only": (np.frombuffer(base.tobytes(), "int32"), base.reshape(-1)),
        "unaligned": (np.frombuffer(b"x" + base.tobytes(), "int32", offset=1), base.reshape(-1)),
        "list of ints": ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        "list of floats": ([[1.5], [2.5]], np.array([[1.5], [2.5]])),
        "list of bools": ([True, False], np.array([True, False])),
        "tuple": ((1, 2), np.array([1, 2])),
        "number": (2.5, np.array(2.5)),
        "numpy scalar": (np.float16(2.5), np.array(2.5, "float16")),
        "empty list": ([], np.array([])),
        "bytes": (bytearray(b"abc"), np.frombuffer(b"abc", "uint8")),
        "memoryview": (memoryview(b"abc"), np.frombuffer(b"abc", "uint8")),
        "array": (array.array("d", [1, 2]), np.array([1.0, 2.0])),
        "dlpack": (tvm_ffi.from_dlpack(base.copy()), base),
        "ml_dtypes": (np.array([1.5], ml_dtypes.bfloat16), np.array([1.5], ml_dtypes.bfloat16)),
        "masked": (np.ma.masked_array([1, 2]), np.array([1, 2])),
        "matrix of one column": (base[:, :1], base[:, :1]),
    }


@pytest.mark.parametrize("name", inputs())
async def test_whatever_holds_an_array(session: Any, name: str) -> None:
    given, expected = inputs()[name]
    tensor = await session.cpu().tensor(given)
    same(await tensor.numpy(), np.ascontiguousarray(expected).reshape(np.shape(expected)))
    other = await session.cpu().empty(np.shape(expected), expected.dtype)
    await other.copyfrom(given)
    same(await other.numpy(), np.ascontiguousarray(expected).reshape(np.shape(expected)))


@pytest.mark.parametrize("wrong", ["text", b"text", None, object(), [[1, 2], [3]], ["a"], np.array(["a"]), {}, {1}])
async def test_what_holds_none(session: Any, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        await session.cpu().tensor(wrong)
    assert not isinstance(caught.value, rpcflow.RPCError)
    assert await call(session, "echo", 1) == 1


@pytest.mark.parametrize("dtype", ["float16", np.float16, np.dtype("float16"), tvm_ffi.dtype("float16"), "<f2"])
async def test_dtypes_in_all_spellings(session: Any, dtype: Any) -> None:
    assert (await session.cpu().empty((2,), dtype)).dtype == "float16"


async def test_empty_defaults(session: Any) -> None:
    tensor = await session.cpu().empty((2, 3))
    assert tensor.dtype == "float32"
    assert (await session.cpu().empty(5)).shape == (5,)
    assert (await session.cpu().empty([np.int64(2)])).shape == (2,)
    assert (await session.cpu().empty((2,), "int8", mem_scope="global")).shape == (2,)
    with pytest.raises(rpcflow.RemoteError, match="scope"):
        await session.cpu().empty((2,), "int8", mem_scope="texture")


@pytest.mark.parametrize("shape", [(-1,), (2**61,), (2**32, 2**32)])
async def test_shapes_that_cannot_be(session: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        await session.cpu().empty(shape)
    with pytest.raises(TypeError):
        await session.cpu().empty((1.5,))
    with pytest.raises(TypeError):
        await session.cpu().empty((1,), "float31x")


async def test_more_than_there_is(session: Any) -> None:
    with pytest.raises(rpcflow.RemoteError, match="memory"):
        await session.cpu().empty((2**50,), "uint8")
    assert await call(session, "echo", 1) == 1


async def test_a_length(session: Any) -> None:
    tensor = await session.cpu().empty((3, 2))
    assert len(tensor) == 3
    scalar = await session.cpu().empty(())
    with pytest.raises(TypeError):
        len(scalar)


async def test_functions_see_the_tensor(session: Any) -> None:
    host = np.arange(6, dtype="float32").reshape(2, 3)
    tensor = await session.cpu().tensor(host)
    assert await call(session, "describe", tensor) == "(2, 3) float32 0"
    assert await call(session, "sum", tensor) == 15.0
    await call(session, "fill", tensor, 2.0)
    assert (await tensor.numpy()).tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "bool", "float16"])
async def test_functions_see_rare_dtypes(session: Any, name: str) -> None:
    tensor = await session.cpu().tensor(sample(name, (8,)))
    assert await call(session, "describe", tensor) == f"(8,) {name} 0"
    scalar = await session.cpu().tensor(sample(name, ()))
    assert (await call(session, "describe", scalar)).startswith(f"() {name}")
    nothing = await session.cpu().tensor(sample(name, (0, 4)))
    assert (await call(session, "describe", nothing)).startswith(f"(0, 4) {name}")


class TestCopyfrom:
    async def test_converts(self, session: Any) -> None:
        tensor = await session.cpu().empty((3,), "float16")
        await tensor.copyfrom([1, 2, 3])
        assert (await tensor.numpy()).tolist() == [1.0, 2.0, 3.0]
        await tensor.copyfrom(np.array([1, 2, 3], ">i8"))
        assert (await tensor.numpy()).tolist() == [1.0, 2.0, 3.0]

    async def test_gives_itself(self, session: Any) -> None:
        tensor = await session.cpu().empty((1,))
        again = await tensor.copyfrom([4.0])
        assert (await again.numpy()).tolist() == [4.0]

    @pytest.mark.parametrize("shape", [(3,), (2, 2), (4, 1), (), (1, 4), (0,)])
    async def test_another_shape_is_refused(self, session: Any, shape: tuple[int, ...]) -> None:
        tensor = await session.cpu().tensor(np.ones(4, "float32"))
        with pytest.raises(ValueError, match="shape"):
            await tensor.copyfrom(np.zeros(shape, "float32"))
        assert (await tensor.numpy()).tolist() == [1.0] * 4


class TestViews:
    async def test_shape_dtype_offset(self, session: Any) -> None:
        host = np.arange(12, dtype="int32")
        tensor = await session.cpu().tensor(host)
        view = tensor.view((2, 3), byte_offset=8)
        assert (view.shape, view.dtype) == ((2, 3), "int32")
        assert (await view.numpy()).tolist() == host[2:8].reshape(2, 3).tolist()
        same(await tensor.view((48,), "uint8").numpy(), host.view("uint8"))
        deeper = view.view((2,), byte_offset=4)
        assert (await deeper.numpy()).tolist() == [3, 4]

    async def test_writing_through_one(self, session: Any) -> None:
        tensor = await session.cpu().tensor(np.zeros(6, "int32"))
        await tensor.view((2,), byte_offset=12).copyfrom([7, 8])
        assert (await tensor.numpy()).tolist() == [0, 0, 0, 7, 8, 0]

    async def test_as_an_argument(self, session: Any) -> None:
        tensor = await session.cpu().tensor(np.arange(6, dtype="float32"))
        view = tensor.view((2,), byte_offset=12)
        assert await call(session, "sum", view) == 7.0
        await call(session, "fill", view, 9.0)
        assert (await tensor.numpy()).tolist() == [0.0, 1.0, 2.0, 9.0, 9.0, 5.0]
        returned = await call(session, "echo", view)
        assert (await returned.numpy()).tolist() == [9.0, 9.0]

    async def test_of_a_returned_tensor(self, session: Any) -> None:
        tensor = await call(session, "tensor", 10)
        view = tensor.view((2,), byte_offset=32)
        assert (await view.numpy()).tolist() == [8.0, 9.0]
        assert await call(session, "sum", view) == 17.0

    async def test_keeps_its_tensor(self, session: Any) -> None:
        view = (await call(session, "tensor", 4)).view((2,))
        for _ in range(3):
            assert await call(session, "live", "tensor") == 1
        assert (await view.numpy()).tolist() == [0.0, 1.0]

    @pytest.mark.parametrize(
        ("shape", "dtype", "offset"), [((7,), None, 0), ((6,), None, 4), ((1,), None, -4), ((4,), "int64", 0)]
    )
    async def test_outside_is_refused(self, session: Any, shape: Any, dtype: Any, offset: int) -> None:
        tensor = await session.cpu().empty((6,), "int32")
        with pytest.raises(ValueError, match="lie within"):
            tensor.view(shape, dtype, offset)


class TestCopyto:
    async def test_a_device(self, session: Any) -> None:
        tensor = await session.cpu().tensor(np.arange(4, dtype="int16"))
        made = await tensor.copyto(session.cpu(0))
        await tensor.copyfrom(np.zeros(4, "int16"))
        assert made.dtype == "int16"
        assert (await made.numpy()).tolist() == [0, 1, 2, 3]

    async def test_another_tensor_and_a_part_of_one(self, session: Any) -> None:
        source = await session.cpu().tensor(np.arange(8, dtype="int32"))
        target = await session.cpu().tensor(np.zeros(8, "int32"))
        again = await source.copyto(target)
        assert (await again.numpy()).tolist() == list(range(8))
        part = await session.cpu().tensor(np.array([70, 80], "int32"))
        await part.copyto(target.view((2,), byte_offset=8))
        assert (await target.numpy()).tolist() == [0, 1, 70, 80, 4, 5, 6, 7]
        await target.view((2,), byte_offset=8).copyto(part)
        await source.view((2,), byte_offset=24).copyto(part)
        assert (await part.numpy()).tolist() == [6, 7]

    async def test_nothing(self, session: Any) -> None:
        empty = await session.cpu().empty((0,), "int32")
        made = await empty.copyto(session.cpu())
        assert made.shape == (0,)

    async def test_another_size_is_refused(self, session: Any) -> None:
        source, target = await session.cpu().empty((4,)), await session.cpu().empty((5,))
        with pytest.raises(ValueError, match="fit"):
            await source.copyto(target)

    @pytest.mark.parametrize("target", [None, 1, "cpu"])
    async def test_anything_else_is_refused(self, session: Any, target: Any) -> None:
        tensor = await session.cpu().empty((1,))
        with pytest.raises(TypeError):
            await tensor.copyto(target)

    async def test_a_host_array_is_no_target(self, session: Any) -> None:
        tensor = await session.cpu().empty((1,))
        with pytest.raises(TypeError):
            await tensor.copyto(np.zeros(1, "float32"))

    async def test_across_sessions(self, connect: Connect) -> None:
        async with connect() as one, connect() as other:
            tensor = await one.cpu().tensor(np.arange(3, dtype="int32"))
            made = await tensor.copyto(other.cpu())
            assert await call(other, "sum", made) == 3.0
            target = await other.cpu().empty((3,), "int32")
            await tensor.copyto(target)
            assert (await target.numpy()).tolist() == [0, 1, 2]


async def test_large_both_ways(session: Any) -> None:
    host = np.random.default_rng(1).integers(0, 256, 48 << 20, np.uint8)
    tensor = await session.cpu().tensor(host)
    assert np.array_equal(await tensor.numpy(), host)
    assert await call(session, "describe", tensor) == f"({48 << 20},) uint8 0"


async def test_large_ones_are_received_in_place(session: Any) -> None:
    import tracemalloc

    host = np.zeros(32 << 20, np.uint8)
    tensor = await session.cpu().tensor(host)
    await (await session.cpu().tensor([1.0])).numpy()
    tracemalloc.start()
    try:
        await tensor.copyfrom(host)
        _, up = tracemalloc.get_traced_memory()
        back = await tensor.numpy()
        _, down = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert up < 1 << 20
    assert down < back.nbytes + (1 << 20)


async def test_devices_that_are_not_there(session: Any) -> None:
    with pytest.raises(rpcflow.RemoteError, match="cuda"):
        await session.cuda().empty((1,))
    assert await call(session, "echo", 1) == 1
