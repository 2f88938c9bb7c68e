# SPDX-License-Identifier: Apache-2.0
"""What encryption costs: bulk beside two plain processes that move the same bytes through Python's ssl, small calls
beside the same server on plain TCP."""

from collections.abc import Iterator

from benchmarks.bench import Bench, Placement, Settings, Take
from benchmarks.proc import MIB
from benchmarks.result import Row, Series, Target

CALLS = {"rpcflow by TLS": "rpcflow", "rpcflow by TLS, no polling": "rpcflow, no polling"}
"""Each with its peer on TCP."""
JUDGED = "rpcflow by TLS, no polling"
RAW = "raw TLS"


def rows(settings: Settings) -> Iterator[Row]:
    places: tuple[tuple[Placement, str], ...] = (("apart", "TLS, calls"), ("free", "TLS, calls, any core"))
    for placement, group in places:
        found = calls(placement, settings)
        for name, peer in CALLS.items():
            target = Target("<=", 1.6) if placement == "apart" and name == JUDGED else None
            yield Row(group, name, "us", found[name], "TCP", found[peer], target)
    yield from bulk(settings)
    yield from connecting(settings)


def calls(placement: Placement, settings: Settings) -> dict[str, Series]:
    take = Take("calls", (settings.pick(3000, 500), settings.pick(300, 100)))
    names = (*CALLS, *CALLS.values())
    with Bench(placement) as bench:
        bench.open(*names)
        return bench.interleave(dict.fromkeys(names, take), settings.pick(9, 3))


def bulk(settings: Settings) -> Iterator[Row]:
    size = settings.pick(256, 32) * MIB
    names = ("rpcflow by TLS", "rpcflow trio by TLS", RAW)
    with Bench() as bench:
        bench.open(*names, size=size)
        for way, args in (("up", ()), ("down", (True,))):
            found = bench.interleave(dict.fromkeys(names, Take(way, args)), settings.pick(9, 5))
            rate = {key: series.map(lambda seconds: size / seconds / 1e9) for key, series in found.items()}
            for name in names[:-1]:
                label = f"{name}, {size // MIB} MiB {way}"
                yield Row("TLS, bulk", label, "GB/s", rate[name], RAW, rate[RAW], Target(">=", 0.75))


def connecting(settings: Settings) -> Iterator[Row]:
    names = ("rpcflow sessions by TLS", "rpcflow sessions")
    with Bench() as bench:
        bench.open(*names)
        found = bench.interleave(dict.fromkeys(names, Take("single", (0.1,))), settings.pick(30, 10))
        yield Row("TLS, connect", "connect, first call, close", "ms", found[names[0]], "TCP", found[names[1]])
