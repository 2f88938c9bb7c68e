# SPDX-License-Identifier: Apache-2.0
"""Modules that tvm-ffi's builder compiled: uploaded, loaded, called, imported, timed."""

import os
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rpcflow

from .conftest import Connect, call

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.xdist_group("client-modules"),  # compiled once
    pytest.mark.skipif(not shutil.which("c++") or not shutil.which("ninja"), reason="no C++ compiler with ninja"),
]

SOURCE = """
#include <cstring>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

static int64_t calls = 0;

void add_one(tvm::ffi::TensorView x, tvm::ffi::TensorView y) {
  TVM_FFI_ICHECK(x.numel() == y.numel()) << "one size, please";
  const float* from = static_cast<const float*>(x.data_ptr());
  float* to = static_cast<float*>(y.data_ptr());
  for (int64_t i = 0; i < x.numel(); ++i) to[i] = from[i] + 1;
}

int64_t count() { return ++calls; }
int64_t called() { return calls; }
void pause() { for (volatile int64_t i = 0; i < 2000000; ++i) {} }
double main_entry(double x) { return 2 * x; }

TVM_FFI_DLL_EXPORT_TYPED_FUNC(add_one, add_one);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(count, count);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(called, called);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(pause, pause);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(main, main_entry);
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `kernel.so`, `kernel.o` and `kernel.tar`."""
    from tvm_ffi import cpp

    folder = tmp_path_factory.mktemp("kernels")
    source = folder / "kernel.cc"
    source.write_text(SOURCE)
    build: Callable[..., Any] = cpp.build
    library = Path(build(name="kernel", cpp_files=[str(source)], build_directory=str(folder / "build")))
    shutil.copy(library, folder / "kernel.so")
    (compiled,) = (folder / "build").glob("*.o")
    shutil.copy(compiled, folder / "kernel.o")
    with tarfile.open(folder / "kernel.tar", "w") as archive:
        archive.add(compiled, "../somewhere/lib0.o")
    return folder


@pytest.fixture
def load(session: Any, kernels: Path) -> Any:
    async def loaded(name: str = "kernel.so") -> Any:
        await session.upload(kernels / name)
        return await session.load_module(name)

    return loaded


async def run(session: Any, function: Any, n: int = 10) -> None:
    source = await session.cpu().tensor(np.arange(n, dtype="float32"))
    target = await session.cpu().empty((n,))
    assert await function(source, target) is None
    np.testing.assert_array_equal(await target.numpy(), np.arange(n, dtype="float32") + 1)


@pytest.mark.parametrize("name", ["kernel.so", "kernel.o", "kernel.tar"])
async def test_load_and_run(session: Any, load: Any, name: str) -> None:
    module = await load(name)
    await run(session, module["add_one"])
    await run(session, await module.get_function("add_one"), 1000)
    assert await (await module.get_function("count"))() == 1
    assert await module["count"]() == 2


@pytest.mark.parametrize("name", ["kernel.o", "kernel.tar", "kernel.so"])
async def test_download_linked(session: Any, kernels: Path, name: str) -> None:
    await session.upload(kernels / name)
    library = await session.download_linked_module(name)
    assert type(library) is bytearray
    assert library[:4] == b"\x7fELF"
    await session.upload(library, "again.so")
    module = await session.load_module("again.so")
    await run(session, module["add_one"])


async def test_entry(load: Any, api: str) -> None:
    module = await load()
    assert module.entry_name == "main"
    assert await module(4.0) == 8.0
    assert await module.entry_func(1.5) == 3.0


async def test_errors_of_compiled_code(session: Any, load: Any) -> None:
    module = await load()
    with pytest.raises(rpcflow.RemoteError, match="one size, please"):
        await module["add_one"](await session.cpu().empty((1,)), await session.cpu().empty((2,)))
    with pytest.raises(rpcflow.RemoteError):
        await module["count"](1, 2, 3)
    assert await module["called"]() == 0


async def test_no_such_function(load: Any, api: str) -> None:
    module = await load()
    with pytest.raises(rpcflow.FunctionNotFoundError) as caught:
        await module.get_function("no_such")
    assert caught.value.function == "no_such"
    if api == "sync":
        with pytest.raises(rpcflow.FunctionNotFoundError):
            module["no_such"]  # at lookup
    else:
        function = module["no_such"]  # nothing is asked yet
        assert "no_such" in repr(function)
        for _ in range(2):
            with pytest.raises(rpcflow.FunctionNotFoundError):
                await function()


async def test_a_function_of_a_module_as_an_argument(session: Any, load: Any, api: str) -> None:
    module = await load()
    found = await module.get_function("count")
    assert await call(session, "call", found) == 1
    function = module["count"]
    assert await function() == 2
    assert await call(session, "call", function) == 3
    if api != "sync":
        with pytest.raises(TypeError, match="get_function"):
            await call(session, "call", module["called"])


async def test_import_module(session: Any, load: Any) -> None:
    await load()
    system = await session.system_lib()
    kernel = await load()
    try:
        await system.import_module(kernel)
    except rpcflow.RemoteError as error:
        pytest.fail(f"one module cannot import another: {error}")
    assert await (await system.get_function("main"))(1.0) == 2.0
    with pytest.raises(rpcflow.FunctionNotFoundError):
        await system.get_function("main", False)


async def test_a_function_keeps_its_module(session: Any, load: Any) -> None:
    import gc

    function = await (await load()).get_function("count")
    gc.collect()
    assert await call(session, "echo", 1) == 1
    assert await function() == 1


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("missing.so", None, "missing.so"),
        ("garbage.so", b"this is no library", "garbage.so"),
        ("garbage.o", b"this is no object", "linking"),
        ("garbage.tar", b"this is no archive", "tar"),
        ("other.txt", b"x", "suffixes"),
    ],
)
async def test_what_cannot_be_loaded(session: Any, name: str, data: bytes | None, words: str) -> None:
    if data is not None:
        await session.upload(data, name)
    with pytest.raises(rpcflow.RPCError, match=words):
        await session.load_module(name)
    assert await call(session, "echo", 1) == 1


class TestTimeEvaluator:
    async def test_what_it_gives(self, session: Any, load: Any) -> None:
        module = await load()
        evaluator = await module.time_evaluator("pause", session.cpu(), number=3, repeat=4)
        assert "pause" in repr(evaluator)
        result = await evaluator()
        assert len(result.results) == 4
        assert all(0 < seconds < 5 for seconds in result.results)
        assert result.min <= result.median <= result.max
        assert result.min <= result.mean <= result.max
        assert result.std >= 0
        assert "mean" in str(result)
        assert isinstance(result, rpcflow.BenchmarkResult)

    async def test_how_often_it_runs(self, session: Any, load: Any) -> None:
        module = await load()
        for number, repeat in ((1, 1), (10, 1), (3, 5)):
            before = await module["called"]()
            await (await module.time_evaluator("count", session.cpu(), number, repeat))()
            assert await module["called"]() - before == 1 + number * repeat

    async def test_min_repeat_ms(self, session: Any, load: Any) -> None:
        module = await load()
        began = time.monotonic()
        evaluator = await module.time_evaluator("count", session.cpu(), number=1, repeat=2, min_repeat_ms=30)
        result = await evaluator()
        assert time.monotonic() - began >= 0.06
        assert await module["called"]() > 100
        assert len(result.results) == 2

    async def test_cooldown(self, session: Any, load: Any) -> None:
        module = await load()
        evaluator = await module.time_evaluator(
            "count", session.cpu(), number=1, repeat=3, cooldown_interval_ms=50, repeats_to_cooldown=2
        )
        began = time.monotonic()
        await evaluator()
        assert time.monotonic() - began >= 0.1  # after the first and the third

    async def test_cache_flush_and_all_parameters_by_position(self, session: Any, load: Any) -> None:
        module = await load()
        evaluator = await module.time_evaluator("count", session.cpu(), 2, 2, 0, 100, 0, 1, 1 << 20, "")
        assert len((await evaluator()).results) == 2

    async def test_f_preproc(self, session: Any, load: Any) -> None:
        module = await load()
        x = await session.cpu().tensor(np.zeros(4, "float32"))
        y = await session.cpu().tensor(np.zeros(4, "float32"))
        evaluator = await module.time_evaluator(
            "add_one", session.cpu(), number=1, repeat=2, f_preproc="cache_flush_cpu_non_first_arg"
        )
        assert len((await evaluator(x, y)).results) == 2
        with pytest.raises(rpcflow.FunctionNotFoundError, match="no_such_preproc"):
            await module.time_evaluator("add_one", session.cpu(), f_preproc="no_such_preproc")

    async def test_of_what_is_not_there(self, session: Any, load: Any) -> None:
        module = await load()
        with pytest.raises(rpcflow.FunctionNotFoundError, match="no_such"):
            await module.time_evaluator("no_such", session.cpu())
        for wrong in ({"number": 0}, {"repeat": 0}, {"min_repeat_ms": -1}):
            with pytest.raises(rpcflow.RPCError):
                await (await module.time_evaluator("count", session.cpu(), **wrong))()

    async def test_a_function_that_fails(self, session: Any, load: Any) -> None:
        module = await load()
        evaluator = await module.time_evaluator("add_one", session.cpu())
        with pytest.raises(rpcflow.RemoteError, match="one size"):
            await evaluator(await session.cpu().empty((1,)), await session.cpu().empty((2,)))
        result = await evaluator(await session.cpu().empty((2,)), await session.cpu().empty((2,)))
        assert result.mean > 0

    async def test_devices_of_other_sessions(self, load: Any, connect: Connect) -> None:
        module = await load()
        async with connect() as other:
            with pytest.raises(ValueError, match="another session"):
                await module.time_evaluator("count", other.cpu())
            with pytest.raises(TypeError):
                await module.time_evaluator("count", "cpu")


async def test_this_process_has_not_loaded_it(kernels: Path) -> None:
    with open("/proc/self/maps") as maps:
        assert os.fspath(kernels) not in maps.read()
