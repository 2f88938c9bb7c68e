# SPDX-License-Identifier: Apache-2.0
"""A big tensor up and down: how fast, and what memory it takes beside the tensor itself."""

from collections.abc import Iterator
from typing import Any

from benchmarks.bench import Bench, Settings, Take
from benchmarks.proc import MIB
from benchmarks.result import Row, Series, Target

FAST = Target(">=", 0.75)
LEAN = Target("<=", 16, "value")
PLACES = ("up, client", "up, worker", "down, client", "down, worker")


def rows(settings: Settings) -> Iterator[Row]:
    size = settings.pick(256, 32) * MIB
    text = f"{size // MIB} MiB"

    def rate(seconds: Series) -> Series:
        return seconds.map(lambda value: size / value / 1e9)

    names = ("rpcflow", "rpcflow trio", "rpcflow asyncio", "grpcio", "tvm.rpc", "raw socket")
    slow = {"tvm.rpc": settings.pick(3, 1), "grpcio": settings.pick(5, 3)}
    with Bench() as bench:
        bench.open(*names, size=size)
        rounds = settings.pick(9, 5)
        up = bench.interleave({name: Take("up", (), slow.get(name)) for name in names}, rounds)
        down = bench.interleave({name: Take("down", (True,), slow.get(name)) for name in names}, rounds)
        ready = bench.interleave({"rpcflow": Take("down", (True,)), "raw socket": Take("down", (False,))}, rounds)
    memory = memory_of("tensor_memory", PLACES, size=size)
    for direction, found in (("up", up), ("down", down)):
        floor, stock = rate(found["raw socket"]), rate(found["tvm.rpc"])
        for name in ("rpcflow", "rpcflow trio", "rpcflow asyncio"):
            target = None if name == "rpcflow asyncio" else FAST
            yield Row("tensors", f"{name}, {text} {direction}", "GB/s", rate(found[name]), "raw", floor, target)
        ours = rate(found["rpcflow"])
        yield Row("tensors", f"rpcflow, {text} {direction}", "GB/s", ours, "tvm.rpc", stock)
        yield Row("tensors", f"rpcflow, {text} {direction}", "GB/s", ours, "grpcio", rate(found["grpcio"]))
        yield Row("tensors", f"(tvm.rpc, {text} {direction})", "GB/s", stock, "raw", floor)
    floor = rate(ready["raw socket"])
    label = f"rpcflow, {text} down, raw into ready memory"
    yield Row("tensors", label, "GB/s", rate(ready["rpcflow"]), "raw", floor)
    for place in PLACES:
        ours, stock = memory["rpcflow"][place], memory["tvm.rpc"][place]
        yield Row("tensors", f"extra memory, {text} {place}", "MiB", ours, "tvm.rpc", stock, LEAN)


def memory_of(method: str, places: tuple[str, ...], **options: Any) -> dict[str, dict[str, Series]]:
    """What new sessions of both sides report of both ends, in MiB."""
    found: dict[str, dict[str, Series]] = {}
    with Bench() as bench:
        bench.open("rpcflow", "tvm.rpc", **options)
        for name in ("rpcflow", "tvm.rpc"):
            try:
                taken = bench.call(name, method)
                found[name] = {place: Series((taken[place] / MIB,)) for place in places}
            except Exception as error:
                found[name] = {place: Series(error=str(error) or repr(error)) for place in places}
    return found
