# SPDX-License-Identifier: Apache-2.0
"""What a proxy costs: the same server, client and machine, with and without one between them.

As in the group "calls", small calls are judged with client and server on different halves of the cores; the proxy
shares the server's, as it would if it ran on the lab's host. Shown for one core and for the scheduler's choice.
"""

from collections.abc import Iterator

from benchmarks.bench import Bench, Placement, Settings, Take
from benchmarks.proc import MIB
from benchmarks.result import Row, Series, Target

DIRECT, PROXIED = "rpcflow, no polling", "rpcflow by proxy, no polling"
POLLED = "rpcflow by proxy"
STOCK, STOCK_PROXIED = "tvm.rpc", "tvm.rpc by tvm.rpc's proxy"
CROSSED = "rpcflow by tvm.rpc's proxy, no polling"
NOISE = 1.05  # two medians of the same thing differ by as much


def rows(settings: Settings) -> Iterator[Row]:
    places: tuple[tuple[Placement, str], ...] = (
        ("apart", "proxy, calls"),
        ("together", "proxy, calls, one core"),
        ("free", "proxy, calls, any core"),
    )
    for placement, group in places:
        found = calls(placement, settings)
        judged = placement == "apart"
        limit = Target("<=", 1.5) if judged else None
        yield Row(group, PROXIED, "us", found[PROXIED], "direct", found[DIRECT], limit)
        never_slower = Target("<=", NOISE)
        yield Row(group, POLLED, "us", found[POLLED], "no polling", found[PROXIED], never_slower)
        yield Row(group, PROXIED, "us", found[PROXIED], "tvm.rpc's proxy", found[CROSSED])
        yield Row(group, f"({STOCK_PROXIED})", "us", found[STOCK_PROXIED], "direct", found[STOCK])
    yield from bulk(settings)


def calls(placement: Placement, settings: Settings) -> dict[str, Series]:
    take = Take("calls", (settings.pick(2000, 400), settings.pick(300, 100)))
    names = (DIRECT, PROXIED, POLLED, CROSSED, STOCK, STOCK_PROXIED)
    with Bench(placement) as bench:
        bench.open(*names)
        return bench.interleave(dict.fromkeys(names, take), settings.pick(9, 3))


def bulk(settings: Settings) -> Iterator[Row]:
    size = settings.pick(256, 32) * MIB
    names = ("rpcflow", POLLED, STOCK, STOCK_PROXIED)
    slow = {name: settings.pick(3, 1) for name in (STOCK, STOCK_PROXIED)}
    with Bench() as bench:
        bench.open(*names, size=size)
        rounds = settings.pick(9, 5)
        for way, args in (("up", ()), ("down", (True,))):
            found = bench.interleave({name: Take(way, args, slow.get(name)) for name in names}, rounds)
            rate = {name: series.map(lambda seconds: size / seconds / 1e9) for name, series in found.items()}
            label = f"{size // MIB} MiB {way}"
            target = Target(">=", 0.5)
            yield Row("proxy, bulk", f"{POLLED}, {label}", "GB/s", rate[POLLED], "direct", rate["rpcflow"], target)
            yield Row("proxy, bulk", f"({STOCK_PROXIED}, {label})", "GB/s", rate[STOCK_PROXIED], "direct", rate[STOCK])
            yield Row("proxy, bulk", f"{POLLED}, {label}", "GB/s", rate[POLLED], "tvm.rpc's proxy", rate[STOCK_PROXIED])
