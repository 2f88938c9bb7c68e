# SPDX-License-Identifier: Apache-2.0
"""Sessions that come and go: connect, first call, close; alone, and one right after another."""

from collections.abc import Iterator

from benchmarks.bench import Bench, Settings, Take
from benchmarks.result import Row, Target

OURS, STOCK = "rpcflow sessions", "tvm.rpc sessions"
PAUSE = 0.1  # seconds in which a server clears up after the session before


def rows(settings: Settings) -> Iterator[Row]:
    with Bench() as bench:
        bench.open(OURS, STOCK)
        one = Take("single", (PAUSE,))
        alone = bench.interleave({OURS: one, STOCK: one}, settings.pick(31, 7))
        many = Take("back_to_back", (settings.pick(20, 8),))
        rate = bench.interleave({OURS: many, STOCK: many}, settings.pick(7, 3))
    name = "connect, first call, close"
    yield Row("connect", name, "ms", alone[OURS], "tvm.rpc", alone[STOCK], Target("<=", 2))
    name = "sessions back to back"
    yield Row("connect", name, "/s", rate[OURS], "tvm.rpc", rate[STOCK], Target(">=", 3))
