# SPDX-License-Identifier: Apache-2.0
"""What `time_evaluator` adds to a function that does nothing: the server's own, and an uploaded kernel."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench, Settings, Take
from benchmarks.result import Row, Series, Target

SIDES = ("rpcflow", "tvm.rpc")
NUMBER = 10000
# TVM-FFI's calling convention: handle, arguments, how many, the result (None to begin with)
SOURCE = "int __tvm_ffi_empty(void *self, const void *args, int count, void *result) { return 0; }\n"


def compile_kernel(folder: str) -> Path:
    source, library = Path(folder, "empty.c"), Path(folder, "empty.so")
    source.write_text(SOURCE)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
    return library


def rows(settings: Settings) -> Iterator[Row]:
    rounds = settings.pick(15, 5)
    limit = Target("<=", 0.5, "difference")
    with tempfile.TemporaryDirectory() as folder, Bench() as bench:
        bench.open(*SIDES)
        there = Take("global_kernel", ("testing.nop", NUMBER))
        found = bench.interleave(dict.fromkeys(SIDES, there), rounds)
        ours, stock = found["rpcflow"], found["tvm.rpc"]
        yield Row("kernel", "empty function of the server, one run", "us", ours, "tvm.rpc", stock, limit)
        name = "empty kernel of a library, one run"
        try:
            library = compile_kernel(folder)
        except (OSError, subprocess.CalledProcessError) as error:
            yield Row("kernel", name, "us", Series(error=f"no kernel could be compiled: {error}"))
            return
        for side in SIDES:
            try:
                bench.call(side, "load", str(library))
            except Exception as error:
                bench.errors.setdefault(side, str(error))
        found = bench.interleave(dict.fromkeys(SIDES, Take("kernel", ("empty", NUMBER))), rounds)
        yield Row("kernel", name, "us", found["rpcflow"], "tvm.rpc", found["tvm.rpc"], limit)
