# SPDX-License-Identifier: Apache-2.0
"""Sessions with this process itself; and what can be registered in it, with apache-tvm-ffi and without."""

import gc
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import numpy as np
import pytest

import rpcflow
from rpcflow import registry, sync

from .conftest import eventually
from .lifted import Lifted

pytestmark = pytest.mark.anyio
Open = Callable[[], Any]


@pytest.fixture
def opened(api: str) -> Open:
    @asynccontextmanager
    async def open_session() -> AsyncIterator[Any]:
        if api == "sync":
            with sync.LocalSession() as blocking:
                yield Lifted(blocking)
        else:
            async with rpcflow.LocalSession() as session:
                yield session

    return open_session


@pytest.fixture(params=["tvm_ffi", "plain"])
def ffi(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """With apache-tvm-ffi, and as if it were missing."""
    if request.param == "plain":
        monkeypatch.setattr(registry, "tvm_ffi", lambda: None)
    monkeypatch.setattr(registry, "_PLAIN", {})
    yield request.param == "tvm_ffi"
    import tvm_ffi

    for name in tvm_ffi.registry.list_global_func_names():
        if name.startswith("here."):
            tvm_ffi.registry.remove_global_func(name)


class TestRegister:
    def test_plain_and_as_a_decorator(self, ffi: bool) -> None:
        def one() -> int:
            return 1

        assert rpcflow.register("here.one", one) is one

        @rpcflow.register("here.two")
        def two() -> int:
            return 2

        assert two() == 2
        assert registry.find("here.one")() == 1
        assert registry.find("here.two")() == 2
        assert registry.find("here.three") is None

    def test_a_name_that_is_taken(self, ffi: bool) -> None:
        rpcflow.register("here.one", lambda: 1)
        with pytest.raises(ValueError, match="override"):
            rpcflow.register("here.one", lambda: 2)
        with pytest.raises(ValueError, match="override"):
            rpcflow.register("here.one")(lambda: 2)
        assert registry.find("here.one")() == 1
        rpcflow.register("here.one", lambda: 3, override=True)
        assert registry.find("here.one")() == 3
        rpcflow.register("here.new", lambda: 4, override=True)
        assert registry.find("here.new")() == 4

    @pytest.mark.parametrize("name", ["", None, 7, len])
    def test_names_that_are_none(self, ffi: bool, name: Any) -> None:
        with pytest.raises(ValueError, match="name"):
            rpcflow.register(name, len)

    @pytest.mark.parametrize("function", [7, "text", object()])
    def test_what_cannot_be_called(self, ffi: bool, function: Any) -> None:
        with pytest.raises(TypeError, match="called"):
            rpcflow.register("here.x", function)

    def test_it_is_tvm_ffis_registry(self, ffi: bool) -> None:
        import tvm_ffi

        rpcflow.register("here.one", lambda: 1)
        tvm_ffi.register_global_func("here.theirs", lambda: 2)
        theirs = tvm_ffi.get_global_func("here.one", allow_missing=True)
        assert (theirs is not None) is ffi
        assert (registry.find("here.theirs") is not None) is ffi


async def test_functions_values_and_errors(opened: Open, ffi: bool) -> None:
    rpcflow.register("here.add", lambda a, b: a + b)
    rpcflow.register("here.kinds", lambda *values: ",".join(type(value).__name__ for value in values))
    rpcflow.register("here.echo", lambda x: x)
    rpcflow.register("here.adder", lambda a: lambda b: a + b)

    @rpcflow.register("here.fail")
    def fail() -> None:
        raise KeyError("lost")

    async with opened() as session:
        assert await (await session.get_function("here.add"))(1, 2) == 3
        kinds = await session.get_function("here.kinds")
        assert await kinds(None, True, 1, 1.5, "s", "nul\0", b"b") == "NoneType,bool,int,float,str,str,bytes"
        echo = await session.get_function("here.echo")
        for value in (None, True, 7, 1.5, "text", "ä" * 100_000, b"bytes", bytes(200_000), session.cpu()):
            assert await echo(value) == value
        assert await echo(rpcflow.DataType.parse("bfloat16")) == "bfloat16"
        adder = await (await session.get_function("here.adder"))(10)
        assert await adder(5) == 15
        assert await (await echo(adder))(6) == 16
        with pytest.raises(rpcflow.RemoteError, match="lost") as caught:
            await (await session.get_function("here.fail"))()
        assert caught.value.remote_type == "KeyError"
        with pytest.raises(rpcflow.FunctionNotFoundError):
            await session.get_function("here.nothing")


async def test_tensors(opened: Open, ffi: bool) -> None:
    seen: list[Any] = []

    @rpcflow.register("here.double")
    def double(x: Any) -> Any:
        seen.append(type(x))
        host = np.from_dlpack(x) if ffi else x
        host *= 2
        if ffi:
            import tvm_ffi

            return tvm_ffi.from_dlpack(host + 1)
        return host + 1

    async with opened() as session:
        tensor = await session.cpu().tensor(np.arange(4, dtype="float32"))
        result = await (await session.get_function("here.double"))(tensor)
        assert (await tensor.numpy()).tolist() == [0.0, 2.0, 4.0, 6.0]
        assert (await result.numpy()).tolist() == [1.0, 3.0, 5.0, 7.0]
        view = tensor.view((2,), byte_offset=8)
        await (await session.get_function("here.double"))(view)
        assert (await tensor.numpy()).tolist() == [0.0, 2.0, 8.0, 12.0]
        assert (await result.view((2,), byte_offset=8).numpy()).tolist() == [5.0, 7.0]
        nothing = await session.cpu().tensor(np.zeros((0, 3), "float32"))
        assert (await (await session.get_function("here.double"))(nothing)).shape == (0, 3)
    assert seen[0] is not np.ndarray if ffi else seen[0] is np.ndarray


async def test_rare_dtypes_and_scalars(opened: Open, ffi: bool) -> None:
    import ml_dtypes

    rpcflow.register("here.dtype", lambda x: str(x.dtype))
    async with opened() as session:
        dtype = await session.get_function("here.dtype")
        for name in ("bfloat16", "float8_e4m3fn", "bool", "uint64"):
            kind = getattr(ml_dtypes, name, None) or name
            assert await dtype(await session.cpu().tensor(np.zeros(3, kind))) == name
            assert await dtype(await session.cpu().tensor(np.zeros((), kind))) == name


async def test_modules_without_tvm_ffi(opened: Open, ffi: bool) -> None:
    if ffi:
        pytest.skip("this is about its absence")
    async with opened() as session:
        await session.upload(b"x", "lib.so")
        with pytest.raises(rpcflow.RPCError, match=r"rpcflow\[server\]"):
            await session.load_module("lib.so")
        with pytest.raises(rpcflow.RPCError):
            await session.system_lib()


async def test_files_in_a_folder_of_its_own(opened: Open) -> None:
    async with opened() as session:
        before = os.getcwd()
        await session.upload(b"x", "deep/f")
        await session.upload(bytes(200_000), "big")
        assert await session.download("big") == bytes(200_000)
        assert await session.listdir(".") == "big,deep"
        with pytest.raises(rpcflow.PermissionDeniedError):
            await session.download("/etc/passwd")
        workpath = await (await session.get_function("tvm.rpc.server.workpath"))("")
        assert os.path.isdir(workpath)
        assert os.getcwd() == before
    assert not os.path.exists(workpath)


async def test_handles_are_freed(opened: Open) -> None:
    import weakref

    alive: list[int] = []

    class Thing:
        pass

    def make() -> Any:
        thing = Thing()
        alive.append(1)
        weakref.finalize(thing, alive.pop)
        return thing

    rpcflow.register("here.make", make, override=True)
    rpcflow.register("here.nothing", lambda: None, override=True)
    async with opened() as session:
        thing = await (await session.get_function("here.make"))()
        assert len(alive) == 1
        del thing
        nothing = await session.get_function("here.nothing")

        async def count() -> int:
            await nothing()
            return len(alive)

        await eventually(count, 0)
        kept = await (await session.get_function("here.make"))()
    session = nothing = None
    gc.collect()
    assert "object" in repr(kept)


async def test_blocking_functions_run_in_a_worker_thread(opened: Open, api: str) -> None:
    where: list[int] = []
    gate = threading.Event()

    def wait() -> None:
        where.append(threading.get_ident())
        if api != "sync":
            assert gate.wait(20)

    rpcflow.register("here.wait", wait, override=True)
    async with opened() as session:
        function = await session.get_function("here.wait")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(function)
            for _ in range(10):
                await anyio.sleep(0.001)  # the event loop goes on
            gate.set()
    assert (where[0] == threading.get_ident()) is (api == "sync")


async def test_after_the_end(opened: Open) -> None:
    async with opened() as session:
        echo = await session.get_function("tvm.rpc.server.listdir")
    with pytest.raises(rpcflow.ConnectionLostError, match="closed"):
        await echo(".")


async def test_many_side_by_side(opened: Open) -> None:
    async with opened() as one, opened() as other:
        await one.upload(b"1", "f")
        assert await other.listdir(".") == ""
        tensor = await one.cpu().tensor([1.0])
        copied = await tensor.copyto(other.cpu())
        assert (await copied.numpy()).tolist() == [1.0]
