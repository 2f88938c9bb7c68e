"""Kernels for devices, compiled by stock TVM: their host functions and device code in one library."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _vector_add(length: int) -> Any:
    """c = a + b, in blocks of 64 threads."""
    import tvm
    from tvm import s_tir, te

    a, b = (te.placeholder((length,), "float32", name=name) for name in "ab")
    c = te.compute((length,), lambda i: a[i] + b[i], name="c")
    function = te.create_prim_func([a, b, c]).with_attr("global_symbol", "vadd")
    schedule = s_tir.Schedule(tvm.IRModule({"vadd": function}))
    (loop,) = schedule.get_loops(schedule.get_sblock("c", func_name="vadd"))
    block, thread = schedule.split(loop, [None, 64])
    schedule.bind(block, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    return schedule.mod


def _scale() -> Any:
    """out = a * factor, of any length, with scalars as arguments: the length and the factor."""
    import tvm
    from tvm import s_tir, te

    length = te.var("n", dtype="int32")
    factor = te.var("factor", dtype="float32")
    a = te.placeholder((length,), "float32", name="a")
    out = te.compute((length,), lambda i: a[i] * factor, name="out")
    function = te.create_prim_func([a, factor, out]).with_attr("global_symbol", "scale")
    schedule = s_tir.Schedule(tvm.IRModule({"scale": function}))
    (loop,) = schedule.get_loops(schedule.get_sblock("out", func_name="scale"))
    block, thread = schedule.split(loop, [None, 64])
    schedule.bind(block, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    return schedule.mod


def compile_device_kernels(folder: Path) -> None:
    """``vadd-KIND.so`` of 1024 elements and ``scale-KIND.so`` for opencl and webgpu, and the same as ``.tar``; the
    former for cuda too, or ``no-cuda``, which says why not."""
    import tvm

    folder.mkdir(exist_ok=True)
    try:
        cuda = tvm.compile(_vector_add(1024), target=tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host="llvm"))
        cuda.export_library(str(folder / "vadd-cuda.so"))
    except Exception as error:  # TVM compiles CUDA by nvcc or NVRTC, where it finds one
        (folder / "no-cuda").write_text(str(error))
    for kind in ("opencl", "webgpu"):
        for name, module in (("vadd", _vector_add(1024)), ("scale", _scale())):
            built = tvm.compile(module, target=tvm.target.Target(kind, host="llvm"))
            built.export_library(str(folder / f"{name}-{kind}.so"))
            built.export_library(str(folder / f"{name}-{kind}.tar"))
