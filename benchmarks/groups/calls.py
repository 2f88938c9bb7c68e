# SPDX-License-Identifier: Apache-2.0
"""A small call: an int there and back, one after another on one session.

Where the scheduler puts the two ends decides more than their code does. On one core, waking the other end
is a switch of context and nothing else; on two it is an interrupt to a core that sleeps, several times as
dear on a virtual machine; left alone, a pair that sleeps between messages may change between the two at any
moment. So the figures are judged with the ends kept on different cores, as host and device are in earnest,
and shown for one core and for the scheduler's own choice.
"""

from collections.abc import Iterator

from benchmarks.bench import Bench, Placement, Settings, Take
from benchmarks.result import Row, Series, Target

JUDGED = {
    "rpcflow": 0.4,
    "rpcflow trio": 0.6,
    "rpcflow, no polling": 1.15,
    "rpcflow trio, no polling": 1.35,
    "rpcflow to tvm.rpc": 1.1,
    "tvm.rpc to rpcflow": 1.1,
}
SHOWN = ("rpcflow asyncio",)
PEERS = ("rpyc", "grpcio", "raw socket")
SPINNING = "raw socket, spinning"  # on two cores only: on one it would spin its whole time slice away


def rows(settings: Settings) -> Iterator[Row]:
    stock = "tvm.rpc"
    found = measure("apart", (*JUDGED, *SHOWN, stock, *PEERS, SPINNING), settings)
    for name in (*JUDGED, *SHOWN):
        target = Target("<=", JUDGED[name]) if name in JUDGED else None
        yield Row("calls", name, "us", found[name], stock, found[stock], target)
    for name in (*PEERS, SPINNING):
        yield Row("calls", "rpcflow", "us", found["rpcflow"], name, found[name])
    for name in PEERS:
        yield Row("calls", f"({name})", "us", found[name], stock, found[stock])
    others: tuple[tuple[Placement, str], ...] = (("together", "calls, one core"), ("free", "calls, any core"))
    for placement, group in others:
        found = measure(placement, (*JUDGED, stock, "raw socket"), settings)
        for name in (*JUDGED, "raw socket"):
            label = name if name in JUDGED else f"({name})"
            yield Row(group, label, "us", found[name], stock, found[stock])


def measure(placement: Placement, names: tuple[str, ...], settings: Settings) -> dict[str, Series]:
    take = Take("calls", (settings.pick(3000, 500), settings.pick(300, 100)))
    with Bench(placement) as bench:
        bench.open(*names)
        return bench.interleave(dict.fromkeys(names, take), settings.pick(9, 3))
