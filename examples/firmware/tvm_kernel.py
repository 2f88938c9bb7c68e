# SPDX-License-Identifier: Apache-2.0
"""A kernel compiled by TVM for each board: ``python tvm_kernel.py FOLDER`` writes ``FOLDER/tvm_kernel-BOARD.o``.

Needs ``pip install apache-tvm``. The objects need no TVM at run time: the firmware has all that they call.
"""

import sys
from pathlib import Path

import tvm
from tvm import te

TARGETS = {
    "lm3s6965evb": {"mtriple": "thumbv7m-none-eabi", "mcpu": "cortex-m3", "mfloat-abi": "soft"},
    "mps2-an386": {"mtriple": "thumbv7em-none-eabihf", "mcpu": "cortex-m4", "mfloat-abi": "hard"},
    "riscv-virt": {"mtriple": "riscv32-unknown-elf", "mcpu": "generic-rv32", "mattr": ["+m", "+a", "+c"]},
    "posix": {},  # this machine
}


def normalize() -> tvm.IRModule:
    """``normalize(x, y)``: y is x with mean 0 and variance 1, both float32 with 256 elements."""
    n = 256
    x = te.placeholder((n,), "float32", name="x")
    axis, other = te.reduce_axis((0, n)), te.reduce_axis((0, n))
    total = te.compute((1,), lambda _: te.sum(x[axis], axis), name="total")
    centred = te.compute((n,), lambda i: x[i] - total[0] / n, name="centred")
    squares = te.compute((1,), lambda _: te.sum(centred[other] * centred[other], other), name="squares")
    y = te.compute((n,), lambda i: centred[i] / te.sqrt(squares[0] / n), name="y")
    return tvm.IRModule({"normalize": te.create_prim_func([x, y]).with_attr("global_symbol", "normalize")})


def write_objects(folder: Path) -> None:
    """Compile for each board."""
    for board, options in TARGETS.items():
        target = tvm.target.Target({"kind": "llvm", **options})
        # A system library: its functions register themselves when the firmware starts.
        module = normalize().with_attr("system_lib_prefix", "")
        library = tvm.compile(module, target=tvm.target.Target(target, host=target))
        library.mod.write_to_file(str(folder / f"tvm_kernel-{board}.o"))


if __name__ == "__main__":
    write_objects(Path(sys.argv[1]))
