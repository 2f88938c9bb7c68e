"""Kernels for the module tests, compiled by stock TVM for this machine's CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _elementwise(name: str, scale: float, offset: float) -> Any:
    """A serial kernel over float32 vectors of any length: out = in * scale + offset."""
    from tvm import te, tirx

    length = te.var("n", dtype="int64")
    source = te.placeholder((length,), "float32", name="source")
    factor, shift = tirx.const(scale, "float32"), tirx.const(offset, "float32")
    result = te.compute((length,), lambda i: source[i] * factor + shift, name="result")
    return te.create_prim_func([source, result]).with_attr("global_symbol", name)


def compile_kernels(folder: Path) -> None:
    import tvm

    kernels = {"add": ("add_one", 1.0, 1.0), "mul": ("times_three", 3.0, 0.0)}
    for file, (name, scale, offset) in kernels.items():
        module = tvm.IRModule({name: _elementwise(name, scale, offset)})
        built = tvm.compile(module, target="llvm")
        built.export_library(str(folder / f"{file}.so"))
        if file == "add":
            built.export_library(str(folder / "add.tar"))
            built.mod.write_to_file(str(folder / "add.o"))
