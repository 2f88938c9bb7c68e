# SPDX-License-Identifier: Apache-2.0
"""A tracker: round trips with one server registered, and ten thousand registered with a thousand waiting."""

from collections.abc import Iterator

from benchmarks.bench import Bench, Settings, Take
from benchmarks.proc import MIB, resident
from benchmarks.result import Row, Series, Target

OURS, STOCK, MIXED = "rpcflow fleet", "tvm.rpc fleet", "tvm.rpc client, rpcflow tracker"
CROWD = "rpcflow crowd"
PEER = "tvm.rpc"
WAITING = 1000


def rows(settings: Settings) -> Iterator[Row]:
    with Bench() as bench:
        bench.open(OURS, MIXED, STOCK)
        quick, slow = Take("summary", (200,)), Take("summary", (10,), 5)
        found = bench.interleave({OURS: quick, MIXED: quick, STOCK: slow}, settings.pick(15, 3))
        for name in (OURS, MIXED):
            yield Row("tracker", f"summary, {name}", "ms", found[name], PEER, found[STOCK], Target("<=", 0.01))
        one = Take("session")
        found = bench.interleave({OURS: one, MIXED: one, STOCK: one}, settings.pick(15, 3))
        limit = Target("<=", 20, "value")
        yield Row("tracker", "request to working session", "ms", found[OURS], PEER, found[STOCK], limit)
        yield Row("tracker", f"the same, {MIXED}", "ms", found[MIXED], PEER, found[STOCK])
    yield from crowd(settings)


def crowd(settings: Settings) -> Iterator[Row]:
    sizes = (100, 1000, 10_000) if not settings.quick else (100, 1000)
    with Bench() as bench:
        bench.open(CROWD)
        there = 0
        for size in sizes:
            most = size == 10_000
            seconds = one(bench, "register", size - there)
            there = size
            name = f"register up to {size} servers"
            yield Row("tracker", name, "s", seconds, target=Target("<=", 20, "value") if most else None)
            if size == sizes[0]:
                one(bench, "wait", WAITING)  # they wait all the time
            rounds = settings.pick(7, 3)
            cost = bench.interleave({CROWD: Take("request", (200,))}, rounds)[CROWD]
            yield Row("tracker", f"request, {size} registered, {WAITING} waiting", "us", cost)
        name = f"tracker's memory, {there} registered, {WAITING} waiting"
        yield Row("tracker", name, "MiB", memory(bench), target=Target("<=", 150, "value"))
        grants = one(bench, "serve")
        yield Row("tracker", f"grants to {WAITING} who wait", "/s", grants, target=Target(">=", 1000, "value"))


def one(bench: Bench, method: str, *args: object) -> Series:
    """A single sample: it changes what is there."""
    try:
        return Series((float(bench.call(CROWD, method, *args) or 0),))
    except Exception as error:
        return Series(error=str(error) or repr(error))


def memory(bench: Bench) -> Series:
    try:
        return Series((resident(bench.side(CROWD).server.call("tracker_pid")) / MIB,))
    except Exception as error:
        return Series(error=str(error) or repr(error))
