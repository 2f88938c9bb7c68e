# SPDX-License-Identifier: Apache-2.0
"""Every kind of argument and result, by every API; what does not travel is refused before anything is sent."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tvm_ffi

import rpcflow

from .conftest import Connect, call, core_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -1, 2**63 - 1, -(2**63), 0.0, -1.5, 1e300, math.inf),
        *("", "text", "Ωμέγα 🎉", "a\0b", "x" * 10_000, "ä" * 100_000),
        *(b"", b"\0\xff", b"x" * 7, b"x" * 8, bytes(70_000), bytes(3_000_000)),
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_plain_values_come_back_as_they_went(session: Any, value: Any) -> None:
    echoed = await call(session, "echo", value)
    assert echoed == value
    assert type(echoed) is type(value)


async def test_not_a_number(session: Any) -> None:
    assert math.isnan(await call(session, "echo", math.nan))
    assert math.isnan(await call(session, "nan"))


async def test_many_arguments_and_none(session: Any) -> None:
    assert await call(session, "count") == 0
    assert await call(session, "count", *range(200)) == 200
    assert await call(session, "none") is None


@pytest.mark.parametrize("wrap", [bytearray, memoryview, lambda data: memoryview(data * 2)[::1][: len(data)]])
@pytest.mark.parametrize("size", [0, 5, 100, 200_000])
async def test_bytes_of_all_sorts(session: Any, wrap: Any, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    assert await call(session, "echo", wrap(data)) == data


async def test_subclasses_travel_as_what_they_are(session: Any) -> None:
    import enum

    class Colour(enum.IntEnum):
        RED = 7

    class Name(str):
        pass

    for given, expected in [
        (Colour.RED, 7),
        (Name("n"), "n"),
        (np.float64(2.5), 2.5),
        (np.float32(2.5), 2.5),
        (np.int8(-3), -3),
        (np.uint16(3), 3),
        (np.bool_(True), True),
        (np.str_("s"), "s"),
        (np.bytes_(b"b"), b"b"),
        (np.array(4), 4),
        (ml_dtypes.bfloat16(1.5), 1.5),
    ]:
        echoed = await call(session, "echo", given)
        assert (echoed, type(echoed)) == (expected, type(expected))


@pytest.mark.parametrize(
    "given",
    [
        rpcflow.DataType.parse("float32"),
        np.dtype("float32"),
        np.float32,
        tvm_ffi.dtype("float32"),
    ],
    ids=["rpcflow", "numpy dtype", "numpy class", "tvm_ffi"],
)
async def test_dtypes_as_arguments(session: Any, given: Any) -> None:
    assert await call(session, "types", given) == "dtype"
    echoed = await call(session, "echo", given)
    assert isinstance(echoed, rpcflow.DataType)
    assert echoed == "float32"


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8x4", "bool", "handle", "float8_e4m3fn", "uint1"])
async def test_dtypes_as_results(session: Any, name: str) -> None:
    assert await call(session, "dtype", name) == name
    assert await call(session, "echo", rpcflow.DataType.parse(name)) == name


async def test_devices(session: Any) -> None:
    device = session.cpu(0)
    assert await call(session, "types", device) == "Device"
    for returned in (await call(session, "echo", device), await call(session, "device")):
        assert returned == device
        assert (returned.dev_type, returned.dev_id) == (1, 0)
    assert await call(session, "types", tvm_ffi.device("cpu", 0)) == "Device"


async def test_functions(session: Any) -> None:
    add = await call(session, "adder", 10)
    assert await add(5) == 15
    assert await call(session, "call", add, 7) == 17
    again = await call(session, "echo", add)
    del add
    assert await again(1) == 11
    nested = await call(session, "adder", "left ")
    assert await nested("right") == "left right"


async def test_modules(session: Any) -> None:
    module = await call(session, "module")
    with pytest.raises(rpcflow.FunctionNotFoundError, match="no_such"):
        await module["no_such"]()
    again = await call(session, "echo", module)
    assert "module" in repr(again)
    system = await session.system_lib()
    with pytest.raises(rpcflow.FunctionNotFoundError):
        await system.get_function("no_such")


async def test_tensors(session: Any) -> None:
    tensor = await call(session, "tensor", 5)
    assert (tensor.shape, str(tensor.dtype)) == ((5,), "float32")
    np.testing.assert_array_equal(await tensor.numpy(), np.arange(5, dtype="float32"))
    assert await call(session, "sum", tensor) == 10.0
    again = await call(session, "echo", await session.cpu().tensor([1.0, 2.0]))
    np.testing.assert_array_equal(await again.numpy(), [1.0, 2.0])


async def test_objects(session: Any) -> None:
    shape = await call(session, "shape", 2, 3)
    assert "object" in repr(shape)
    assert await call(session, "len", shape) == 2
    assert await call(session, "show", shape) in ("Shape(2, 3)", "(2, 3)", "[2, 3]", "ffi.Shape(2, 3)")
    again = await call(session, "echo", shape)
    del shape
    assert await call(session, "len", again) == 2


async def test_a_plain_python_object_stays_there(session: Any) -> None:
    thing = await call(session, "thing", "spoon")
    assert await call(session, "thing_name", thing) == "spoon"


class TestRefused:
    """Wrong arguments: an error of Python's own kind, nothing sent, the session as before."""

    @pytest.mark.parametrize(
        ("value", "error"),
        [
            (2**63, OverflowError),
            (-(2**63) - 1, OverflowError),
            ([1, 2], TypeError),
            ((1,), TypeError),
            ({}, TypeError),
            ({1}, TypeError),
            (1j, TypeError),
            (object(), TypeError),
            (object, TypeError),
            (len, TypeError),
            (np.zeros(3), TypeError),
            (np.zeros((1, 1)), TypeError),
            ("\ud800", ValueError),
        ],
        ids=lambda value: repr(value)[:20],
    )
    async def test_wrong_kinds(self, session: Any, value: Any, error: type[Exception]) -> None:
        echo = await session.get_function("t.echo")
        sent = Sent(session)
        for args in ([value], [1, value], [value, 1]):
            with pytest.raises(error) as caught:
                await echo(*args)
            assert not isinstance(caught.value, rpcflow.RPCError)
        assert sent.count == 0
        assert await echo(1) == 1

    async def test_a_keyword(self, session: Any) -> None:
        echo = await session.get_function("t.echo")
        with pytest.raises(TypeError):
            await echo(x=1)

    async def test_what_belongs_to_another_session(self, connect: Connect) -> None:
        async with connect() as one, connect() as other:
            echo = await one.get_function("t.echo")
            strangers = [
                await other.cpu().tensor([1.0]),
                other.cpu(),
                await other.get_function("t.echo"),
                await other.system_lib(),
                await call(other, "shape", 1),
            ]
            sent = Sent(one)
            for stranger in strangers:
                with pytest.raises(ValueError, match="another session"):
                    await echo(stranger)
            module = await one.system_lib()
            sent.reset()
            with pytest.raises(ValueError, match="another session"):
                await module.import_module(strangers[3])
            assert sent.count == 0
            assert await echo(2) == 2

    async def test_names_that_are_no_text(self, session: Any) -> None:
        with pytest.raises(TypeError):
            await session.get_function(7)
        with pytest.raises(TypeError):
            await session.load_module(7)
        with pytest.raises(TypeError):
            await session.upload(7, "x")


class Sent:
    """Counts the bytes that a session sends."""

    def __init__(self, session: Any) -> None:
        from rpcflow.transports.testing import AsyncFaultyChannel, FaultyChannel

        core = core_of(session)
        wrap = FaultyChannel if hasattr(core, "close") else AsyncFaultyChannel
        core._channel = self._channel = wrap(core._channel)
        self._before = 0

    @property
    def count(self) -> int:
        return int(self._channel.sent) - self._before

    def reset(self) -> None:
        self._before = self._channel.sent


class TestErrors:
    async def test_of_the_function(self, session: Any) -> None:
        fail = await session.get_function("t.fail")
        for kind in ("ValueError", "KeyError"):
            with pytest.raises(rpcflow.RemoteError, match="so sorry") as caught:
                await fail(kind, "so sorry")
            assert caught.value.remote_type == kind
            assert "so sorry" in caught.value.remote_message
            assert "in fail" in caught.value.remote_traceback
        assert await call(session, "echo", 1) == 1

    async def test_a_long_text_and_an_odd_one(self, session: Any) -> None:
        for text in ("", "Ωμέγα " * 500, "line\nline"):
            with pytest.raises(rpcflow.RemoteError) as caught:
                await call(session, "fail", "ValueError", text)
            assert text.strip() in str(caught.value)

    async def test_no_such_function(self, session: Any) -> None:
        with pytest.raises(rpcflow.FunctionNotFoundError) as caught:
            await session.get_function("no.such.function")
        assert caught.value.function == "no.such.function"
        assert isinstance(caught.value, AttributeError)
        with pytest.raises(rpcflow.FunctionNotFoundError):
            await session.get_function("")
        assert await call(session, "echo", 1) == 1

    async def test_all_are_rpc_errors_and_runtime_errors(self, session: Any) -> None:
        with pytest.raises(RuntimeError) as caught:
            await call(session, "fail", "OSError", "x")
        assert isinstance(caught.value, rpcflow.RPCError)

    async def test_too_few_arguments(self, session: Any) -> None:
        with pytest.raises(rpcflow.RemoteError):
            await call(session, "add", 1)

    async def test_the_process_that_ends(self, connect: Connect) -> None:
        async with connect() as session:
            with pytest.raises(rpcflow.SessionCrashedError, match=r"t\.exit") as caught:
                await call(session, "exit", 3)
            assert (caught.value.status, caught.value.signal) == (3, None)
            with pytest.raises(rpcflow.RPCError):
                await session.get_function("t.echo")
        async with connect() as session:
            with pytest.raises(rpcflow.SessionCrashedError) as caught:
                await call(session, "crash")
            assert caught.value.signal == 6
            assert "t.crash" in str(caught.value.call)
