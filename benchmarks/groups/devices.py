# SPDX-License-Identifier: Apache-2.0
"""An OpenCL device behind a session: copies against those to host memory, and launches against local ones."""

from collections.abc import Iterator

from benchmarks.bench import Bench, Settings, Take
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
    count, warm = settings.pick(3000, 500), settings.pick(300, 100)
    launch = Take("launches", (count, warm))
    with Bench("apart") as bench:
        bench.open(DEVICE)
        bench.open(LOCAL)
        bench.open(HOST)
        takes = {DEVICE: launch, LOCAL: launch, HOST: Take("calls", (count, warm))}
        found = bench.interleave(takes, settings.pick(9, 3))
    yield Row("devices", "opencl, launch", "us", found[DEVICE], LOCAL, found[LOCAL])
    more = _less(found[DEVICE], found[LOCAL])
    yield Row("devices", "opencl, launch less a local one", "us", more, "small call", found[HOST], Target("<=", 1))


def _less(one: Series, other: Series) -> Series:
    if one.error or other.error:
        return Series(error=one.error or other.error)
    return Series(tuple(a - b for a, b in zip(one.values, other.values, strict=True)))
