# SPDX-License-Identifier: Apache-2.0
"""Kernels for this machine, compiled by TVM into an object for a system library."""

from pathlib import Path
from typing import Any

TARGET = {"kind": "llvm"}
N = 37
BIG = 65536


def _functions() -> dict[str, Any]:
    from tvm import te, tirx

    def function(name: str, tensors: list[Any]) -> Any:
        return te.create_prim_func(tensors).with_attr("global_symbol", name)

    n = te.var("n", dtype="int64")
    a, b = te.placeholder((n,), "float32", name="a"), te.placeholder((n,), "float32", name="b")
    vadd = te.compute((n,), lambda i: a[i] + b[i], name="c")
    x = te.placeholder((N,), "float32", name="x")
    exponential = te.compute((N,), lambda i: te.exp(x[i]), name="y")
    p, q = te.placeholder((8, 16), "float32", name="p"), te.placeholder((16, 4), "float32", name="q")
    k = te.reduce_axis((0, 16), name="k")
    matmul = te.compute((8, 4), lambda i, j: te.sum(p[i, k] * q[k, j], axis=k), name="r")
    big = te.placeholder((BIG,), "float32", name="big")
    between = te.compute((BIG,), lambda i: big[i] + 1.0, name="between")  # too large for the stack
    reverse = te.compute((BIG,), lambda i: between[BIG - 1 - i] * 2.0, name="reversed")
    half = te.placeholder((n,), "float16", name="half")
    halved = te.compute((n,), lambda i: half[i] / tirx.const(2, "float16"), name="halved")
    return {
        "halve": function("halve", [half, halved]),
        "vadd": function("vadd", [a, b, vadd]),
        "exponential": function("exponential", [x, exponential]),
        "matmul": function("matmul", [p, q, matmul]),
        "reverse": function("reverse", [big, reverse]),
        "doubled": _parallel(function("doubled", [a, te.compute((n,), lambda i: a[i] * 2.0, name="d")])),
    }


def _parallel(function: Any) -> Any:
    import tvm

    schedule = tvm.s_tir.Schedule(tvm.IRModule({"doubled": function}))
    schedule.work_on("doubled")
    schedule.parallel(schedule.get_loops(schedule.get_sblock("d"))[0])
    return schedule.mod["doubled"]


def compiled(target: Any = TARGET, *names: str) -> Any:
    """The kernels, or those of these names, as TVM gives them; ``target`` is what TVM takes for one."""
    import tvm

    chosen = tvm.target.Target(target)
    functions = {name: function for name, function in _functions().items() if not names or name in names}
    module = tvm.IRModule(functions, attrs={"system_lib_prefix": ""})
    return tvm.compile(module, target=tvm.target.Target(chosen, host=chosen))


def compile_kernels(output: Path) -> None:
    """Write the object."""
    compiled().mod.write_to_file(str(output))
