# SPDX-License-Identifier: Apache-2.0
"""An OpenCL device behind a session: copies against those to host memory, and launches against local ones."""

from collections.abc import Iterator

from benchmarks.bench import Bench, Placement, Settings, Take
from benchmarks.proc import MIB
from benchmarks.result import Row, Series, Target

HOST, DEVICE, LOCAL = "rpcflow cpu", "rpcflow opencl", "pyopencl"


def rows(settings: Settings) -> Iterator[Row]:
    size = settings.pick(256, 32) * MIB
    with Bench() as bench:
        bench.open(HOST, DEVICE, size=size)
        rounds = settings.pick(9, 5)
        up = bench.interleave(dict.fromkeys((HOST, DEVICE), Take("up")), rounds)
        down = bench.interleave(dict.fromkeys((HOST, DEVICE), Take("down", (True,))), rounds)
    for direction, found, target in (("up", up, Target(">=", 0.7)), ("down", down, None)):
        ours, host = (found[name].map(lambda value: size / value / 1e9) for name in (DEVICE, HOST))
        yield Row("devices", f"opencl, {size // MIB} MiB {direction}", "GB/s", ours, "cpu", host, target)
    placements: tuple[tuple[Placement, str], ...] = (("apart", "devices"), ("free", "devices, any core"))
    for placement, group in placements:
        yield from _launches(placement, group, settings)


def _launches(placement: Placement, group: str, settings: Settings) -> Iterator[Row]:
    """A device that is a processor takes the time of its kernels, and of being woken, from whoever shares its cores:
    the row without a launch shows what is ours."""
    count, warm = settings.pick(3000, 500), settings.pick(300, 100)
    launch, call, nothing = (Take(name, (count, warm)) for name in ("launches", "calls", "nothings"))
    with Bench(placement) as bench:
        for name in (DEVICE, LOCAL, HOST):
            bench.open(name)
        rounds = settings.pick(9, 3)
        found = bench.interleave({DEVICE: launch, LOCAL: launch, HOST: call}, rounds)
        same = bench.interleave({DEVICE: nothing, HOST: call}, rounds)
    yield Row(group, "opencl, launch", "us", found[DEVICE], LOCAL, found[LOCAL])
    more = _less(found[DEVICE], found[LOCAL])
    target = Target("<=", 1) if placement == "apart" else None
    yield Row(group, "opencl, launch less a local one", "us", more, "small call", found[HOST], target)
    yield Row(group, "a launch's arguments, no launch", "us", same[DEVICE], "small call", same[HOST])


def _less(one: Series, other: Series) -> Series:
    if one.error or other.error:
        return Series(error=one.error or other.error)
    return Series(tuple(a - b for a, b in zip(one.values, other.values, strict=True)))
