# SPDX-License-Identifier: Apache-2.0
"""What sessions cost the machine: an idle one's own memory, and what many leave behind."""

import time
from collections.abc import Iterator

from benchmarks.bench import Bench, Settings
from benchmarks.proc import MIB, Household, own_memory
from benchmarks.result import Row, Series, Target

IDLE = 0.5  # seconds before an idle worker is looked at
CALM = 5.0  # seconds a server gets at most to clear up after the last session
STOCK_SESSIONS = 60  # fewer: each takes stock some 30 ms

GROWTH = {"processes": "", "descriptors": "", "temp files": "", "memory": "MiB"}


def rows(settings: Settings) -> Iterator[Row]:
    with Bench() as bench:
        bench.open("rpcflow", "tvm.rpc")
        ours, stock = idle_worker(bench, "rpcflow"), idle_worker(bench, "tvm.rpc")
        limit = Target("<=", 10, "value")
        yield Row("footprint", "idle session's worker, own memory", "MiB", ours, "tvm.rpc", stock, limit)
    many, few = settings.pick(500, 100), settings.pick(STOCK_SESSIONS, 20)
    with Bench() as bench:
        bench.open("rpcflow sessions", "tvm.rpc sessions")
        left = growth(bench, "rpcflow sessions", many)
        stock_left = growth(bench, "tvm.rpc sessions", few)
        for what, unit in GROWTH.items():
            target = Target("<=", 5 if what == "memory" else 0, "value")
            row = Row("footprint", f"growth in {what}, {many} sessions", unit, left[what], target=target)
            row.peer_name, row.peer = f"tvm.rpc, {few}", stock_left[what]
            yield row


def idle_worker(bench: Bench, name: str) -> Series:
    """Memory only this worker has: what it shares with the process it was forked from is not its own."""
    try:
        worker = bench.call(name, "worker")
        time.sleep(IDLE)
        return Series((own_memory(worker) / MIB,))
    except Exception as error:
        return Series(error=str(error) or repr(error))


def growth(bench: Bench, name: str, count: int) -> dict[str, Series]:
    """What the server's processes and folder hold after `count` sessions beyond what they held before."""
    try:
        bench.call(name, "back_to_back", 10)  # what is set up once is not growth
        before = settled(bench, name)
        bench.call(name, "back_to_back", count)
        after = settled(bench, name, before)
    except Exception as error:
        return {what: Series(error=str(error) or repr(error)) for what in GROWTH}
    return {
        "processes": Series((after.processes - before.processes,)),
        "descriptors": Series((after.descriptors - before.descriptors,)),
        "temp files": Series((after.files - before.files,)),
        "memory": Series(((after.resident - before.resident) / MIB,)),
    }


def settled(bench: Bench, name: str, goal: Household | None = None) -> Household:
    """The server's household once it is calm: no more than the goal, or the same twice running."""
    side = bench.side(name)
    end = time.monotonic() + CALM
    last = Household.of(side.server.pid, side.folder)
    while time.monotonic() < end:
        time.sleep(0.5)
        now = Household.of(side.server.pid, side.folder)
        counts = (now.processes, now.descriptors, now.files)
        if goal is None and now == last:
            return now
        if goal is not None and counts <= (goal.processes, goal.descriptors, goal.files):
            return now
        last = now
    return last
