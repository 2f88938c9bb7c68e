# SPDX-License-Identifier: Apache-2.0
"""``rpcflow demo``: the whole of the main job on one machine."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Final

import anyio
import click
import numpy as np

_KERNEL: Final = """
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

static void check_same(tvm::ffi::TensorView x, tvm::ffi::TensorView y) {
  TVM_FFI_ICHECK(x.dtype() == (DLDataType{kDLFloat, 32, 1}) && y.dtype() == x.dtype()) << "float32 wanted";
  TVM_FFI_ICHECK(x.numel() == y.numel()) << "tensors of one size wanted";
}

void saxpy(double a, tvm::ffi::TensorView x, tvm::ffi::TensorView y) {
  check_same(x, y);
  const float* px = static_cast<const float*>(x.data_ptr());
  float* py = static_cast<float*>(y.data_ptr());
  const int64_t n = x.numel();
  for (int64_t i = 0; i < n; ++i) py[i] += static_cast<float>(a) * px[i];
}

double total(tvm::ffi::TensorView x) {
  check_same(x, x);
  const float* px = static_cast<const float*>(x.data_ptr());
  double sum = 0;
  for (int64_t i = 0; i < x.numel(); ++i) sum += px[i];
  return sum;
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(saxpy, saxpy);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(total, total);
"""
_ELEMENTS: Final = 1 << 20
_SEED: Final = 20260101


@click.command()
def demo() -> None:
    """Compile a kernel, run it on a (local) device server, check it, time it."""
    missing = _missing()
    if missing:
        raise click.ClickException(missing)
    report = _Report()
    anyio.run(_run, report, backend="trio")
    report.finish()
    sys.exit(0 if report.good else 1)


def _missing() -> str | None:
    try:
        import tvm_ffi.cpp  # noqa: F401
    except ModuleNotFoundError:
        return "the demo compiles with apache-tvm-ffi: pip install 'rpcflow[server]'"
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "the demo needs a C++ compiler; on Debian: apt-get install g++"
    if not shutil.which("ninja"):
        return "the demo needs ninja; on Debian: apt-get install ninja-build, elsewhere: pip install ninja"
    return None


class _Report:
    """A line for each step, as it is done."""

    def __init__(self) -> None:
        self.good = True
        self._began = time.perf_counter()

    def line(self, what: str, seconds: float, note: str, held: bool = True) -> None:
        """A step that is done."""
        self.good &= held
        click.echo(f"  {'ok ' if held else 'BAD'} {what:<30} {seconds * 1e3:9.2f} ms   {note}")

    def finish(self) -> None:
        """The last line."""
        seconds = time.perf_counter() - self._began
        click.echo(f"{'Every check held' if self.good else 'A check FAILED'} ({seconds:.1f} s).")


class _Timer:
    def __init__(self) -> None:
        self._began = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        return seconds


async def _run(report: _Report) -> None:
    import rpcflow

    click.echo("rpcflow: compile here, run there")
    timer = _Timer()
    with tempfile.TemporaryDirectory(prefix="rpcflow-demo-") as folder:
        library = await anyio.to_thread.run_sync(_compile, folder)
        report.line("compile a C++ kernel (host)", timer.lap(), "as a shared library")
        async with rpcflow.Server(key="demo", silent=True) as server:
            report.line("start a server (device)", timer.lap(), str(server.url))
            async with rpcflow.connect("127.0.0.1", server.port, key="demo", session_timeout=60) as session:
                report.line("open a session", timer.lap(), "a process of its own")
                await session.upload(library, "kernel.so")
                module = await session.load_module("kernel.so")
                report.line("upload and load it", timer.lap(), await session.listdir("."))
                await _compute(report, session, module)


async def _compute(report: _Report, session: Any, module: Any) -> None:
    generator = np.random.default_rng(_SEED)
    x = generator.standard_normal(_ELEMENTS, dtype=np.float32)
    y = generator.standard_normal(_ELEMENTS, dtype=np.float32)
    timer = _Timer()
    device = session.cpu(0)
    remote_x, remote_y = await device.tensor(x), await device.tensor(y)
    seconds = timer.lap()
    report.line("copy two tensors there", seconds, f"{(x.nbytes + y.nbytes) / seconds / 1e9:.2f} GB/s")
    await module["saxpy"](2.0, remote_x, remote_y)
    report.line("run saxpy on 1 Mi floats", timer.lap(), "y += 2 x")
    result = await remote_y.numpy()
    seconds = timer.lap()
    report.line("copy the result back", seconds, f"{result.nbytes / seconds / 1e9:.2f} GB/s")
    error = float(np.abs(result - (y + np.float32(2) * x)).max())
    report.line("check against NumPy", timer.lap(), f"largest difference {error:.1e}", error < 1e-5)
    total = await module["total"](remote_x)
    expected = float(x.sum(dtype=np.float64))
    report.line("run total", timer.lap(), f"{total:.4f}", abs(total - expected) < 1e-3)
    await _check_errors(report, module, remote_x)
    timer.lap()
    evaluator = await module.time_evaluator("saxpy", device, number=20, repeat=5)
    measured = await evaluator(0.0, remote_x, remote_y)
    rate = 3 * x.nbytes / measured.median / 1e9
    report.line("time saxpy on the device", timer.lap(), f"median {measured.median * 1e3:.3f} ms, {rate:.1f} GB/s")
    echo = await session.get_function("testing.echo")
    held = True
    laps = []
    for i in range(500):
        timer.lap()
        held &= await echo(i) == i
        laps.append(timer.lap())
    report.line("500 small calls", sum(laps), f"median {np.median(laps) * 1e6:.0f} us each", held)


async def _check_errors(report: _Report, module: Any, tensor: Any) -> None:
    import rpcflow

    timer = _Timer()
    words, held = "no error came", False
    try:
        await module["saxpy"](2.0, tensor, tensor.view((10,)))
    except rpcflow.RemoteError as error:
        words = error.remote_message.strip().splitlines()[-1]
        held = "one size" in error.remote_message
    report.line("an error comes in words", timer.lap(), words[-60:], held)


def _compile(folder: str) -> str:
    from tvm_ffi import cpp

    source = os.path.join(folder, "kernel.cc")
    with open(source, "w", encoding="utf-8") as file:
        file.write(_KERNEL)
    build: Callable[..., Any] = cpp.build
    return str(build(name="kernel", cpp_files=[source], build_directory=os.path.join(folder, "build")))
