# SPDX-License-Identifier: Apache-2.0
"""A program of the C runtime on a pipe: small calls against a server on TCP, bulk against a raw pipe between two
processes. As in the group "calls", small calls are judged with the two ends on different cores."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench, Placement, Settings, Take, cores
from benchmarks.proc import MIB
from benchmarks.result import Row, Series, Target

PIPED = {"rpcflow on a pipe": "rpcflow", "rpcflow on a pipe, no polling": "rpcflow, no polling"}
"""Each with its peer on TCP."""
RAW, LARGE = "raw pipe", "raw pipe of 1 MiB"
PROGRAM = Path(__file__).resolve().parent.parent / "programs" / "echo.c"


def rows(settings: Settings) -> Iterator[Row]:
    from rpcflow.minrpc.building import build

    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder, "echo"))
        build("posix", program, [PROGRAM])
        places: tuple[tuple[Placement, str], ...] = (("apart", "pipe, calls"), ("free", "pipe, calls, any core"))
        for placement, group in places:
            found = calls(placement, program, settings)
            target = Target("<=", 1.1) if placement == "apart" else None
            for name, peer in PIPED.items():
                yield Row(group, name, "us", found[name], "TCP", found[peer], target)
        yield from bulk(program, settings)


def calls(placement: Placement, program: str, settings: Settings) -> dict[str, Series]:
    take = Take("calls", (settings.pick(3000, 500), settings.pick(300, 100)))
    with Bench(placement) as bench:
        bench.open(*PIPED, program=program, cores=list(cores(placement)[0]))
        bench.open(*PIPED.values())
        return bench.interleave(dict.fromkeys((*PIPED, *PIPED.values()), take), settings.pick(9, 3))


def bulk(program: str, settings: Settings) -> Iterator[Row]:
    size = settings.pick(256, 32) * MIB
    name = next(iter(PIPED))
    with Bench() as bench:
        bench.open(name, program=program, size=size)
        bench.open(RAW, LARGE, size=size)
        for way, args in (("up", ()), ("down", (True,))):
            found = bench.interleave(dict.fromkeys((name, RAW, LARGE), Take(way, args)), settings.pick(9, 5))
            rate = {key: series.map(lambda seconds: size / seconds / 1e9) for key, series in found.items()}
            label = f"{name}, {size // MIB} MiB {way}"
            yield Row("pipe, bulk", label, "GB/s", rate[name], RAW, rate[RAW], Target(">=", 0.75))
            yield Row("pipe, bulk", label, "GB/s", rate[name], LARGE, rate[LARGE])
