# SPDX-License-Identifier: Apache-2.0
"""A big file up and down.

The floor sends by sendfile from a file; up it ends in a file, down in memory, as `upload` and `download` do.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench, Settings, Take
from benchmarks.groups.tensors import FAST, memory_of
from benchmarks.proc import MIB
from benchmarks.result import Row, Series, Target

PLACES = ("upload, client", "upload, worker", "download, client", "download, worker")
SLACK = 16  # MiB a side may hold beside the file


def rows(settings: Settings) -> Iterator[Row]:
    size = settings.pick(256, 32) * MIB
    text = f"{size // MIB} MiB"

    def rate(seconds: Series) -> Series:
        return seconds.map(lambda value: size / value / 1e9)

    names = ("rpcflow", "rpcflow trio", "tvm.rpc", "raw socket")
    slow = {"tvm.rpc": settings.pick(3, 1)}
    rounds = settings.pick(7, 3)
    with tempfile.TemporaryDirectory() as folder, Bench() as bench:
        file = Path(folder, "source.bin")
        with file.open("wb") as target:
            for _ in range(size // MIB):
                target.write(os.urandom(MIB))
        bench.open(*names, size=size, file=str(file))
        found = {
            what: bench.interleave({name: Take(what, (), slow.get(name)) for name in names}, rounds)
            for what in ("upload", "download")
        }
        memory = memory_of("file_memory", PLACES, size=size, file=str(file))
    for what, series in found.items():
        floor = rate(series["raw socket"])
        for name in ("rpcflow", "rpcflow trio"):
            yield Row("files", f"{name}, {what} {text}", "GB/s", rate(series[name]), "raw", floor, FAST)
        ours, stock = rate(series["rpcflow"]), rate(series["tvm.rpc"])
        yield Row("files", f"rpcflow, {what} {text}", "GB/s", ours, "tvm.rpc", stock)
        yield Row("files", f"(tvm.rpc, {what} {text})", "GB/s", stock, "raw", floor)
    lean = Target("<=", size // MIB + SLACK, "value")
    for place in PLACES:
        ours, stock = memory["rpcflow"][place], memory["tvm.rpc"][place]
        yield Row("files", f"memory with the file, {place}", "MiB", ours, "tvm.rpc", stock, lean)
