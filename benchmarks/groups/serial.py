# SPDX-License-Identifier: Apache-2.0
"""The C runtime on serial lines: a process behind pseudo-terminals paced at two speeds, a line that spoils what it
carries, and an emulated Cortex-M3.

A line of B baud carries B / 10 bytes a second. "Its bytes" of a small call are those of its two packets (76), without
what frames add. The raw figures are taken on the same kind of line, at both ends of which somebody reads and writes.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from benchmarks.agent import Agent
from benchmarks.bench import Settings
from benchmarks.result import Row, Series, Target

KIB = 1 << 10
CALL_NBYTES = 36 + 40  # CallFunc with an int, Return of an int
NOISE = {"change": 1e-3, "lose_frames": 1e-2}
SERVERS, CLIENTS = "benchmarks.servers.serial", "benchmarks.clients.serial"


def rows(settings: Settings) -> Iterator[Row]:
    for baud in (115200, 921600):
        yield from paced(baud, settings)
    for baud in (115200, 921600):
        yield from noisy(baud, settings)
    yield from board(settings)


def opened(stack: ExitStack, server: str, client: str, **options: Any) -> tuple[Agent, Agent]:
    """A device and its host, in a process each. ``client_``: options of the client."""
    mine = {name.removeprefix("client_"): value for name, value in options.items() if name.startswith("client_")}
    theirs = {name: value for name, value in options.items() if not name.startswith("client_")}
    far = stack.enter_context(Agent(f"{SERVERS}:{server}", theirs))
    near = stack.enter_context(Agent(f"{CLIENTS}:{client}", {"port": far.call("port"), **mine}))
    return far, near


def paced(baud: int, settings: Settings) -> Iterator[Row]:
    size = settings.pick(64, 16) * KIB
    rounds, calls = settings.pick(3, 2), settings.pick(200, 50)
    raw_up, raw_down, up, down, call = _lists(5)
    with ExitStack() as stack:
        far, near = opened(stack, "PacedDevice", "RawClient", baud=baud, raw=True, client_size=size)
        _, host = opened(stack, "PacedDevice", "SerialClient", baud=baud, client_baud=baud, client_size=size)
        for _ in range(rounds):
            began = near.call("give")
            raw_up.append(size / (far.call("take", size) - began))
            began = far.call("give", size)
            raw_down.append(size / (near.call("take") - began))
            up.append(host.call("up"))
            down.append(host.call("down"))
            call.append(host.call("call", calls) * 1e3)
    group, label = f"serial, {baud} baud", f"{size // KIB} KiB"
    yield _rate(group, f"{label} up", up, "raw bytes", raw_up, 0.85)
    yield _rate(group, f"{label} down", down, "raw bytes", raw_down, 0.85)
    limit = 1.3 * CALL_NBYTES * 10 / baud * 1e3 + 2.0
    yield Row(group, "small call", "ms", Series(call), "1.3 x its bytes + 2 ms", Series((limit,)), Target("<=", 1.0))


def noisy(baud: int, settings: Settings) -> Iterator[Row]:
    """One byte in 1,000 changed, one frame in 100 lost, in both directions."""
    count = settings.pick(1000, 200)
    group = f"serial, bad line, {baud} baud"
    with ExitStack() as stack:
        options: dict[str, Any] = {"baud": baud, "client_baud": baud, "client_size": KIB}
        _, clean = opened(stack, "PacedDevice", "SerialClient", **options)
        _, bad = opened(stack, "PacedDevice", "SerialClient", faults=NOISE, **options)
        expected, found = clean.call("exact", count), bad.call("exact", count)
    yield _rate(group, f"{count} calls", [found["rate"]], "a clean line", [expected["rate"]], 0.5, "calls/s")
    for name in ("wrong", "twice"):
        yield Row(group, f"of them {name}", "", Series((found[name],)), target=Target("<=", 0, "value"))
    yield Row(group, "of them ended in an error", "", Series((found["errors"],)))


def board(settings: Settings) -> Iterator[Row]:
    size, rounds = 16 * KIB, settings.pick(5, 2)
    echo, up, down = _lists(3)
    with ExitStack() as stack:
        _, raw = opened(stack, "Board", "RawClient", echo=True, client_size=size)
        _, host = opened(stack, "Board", "SerialClient", client_size=size)
        for _ in range(rounds):
            echo.append(raw.call("echo"))
            up.append(host.call("up"))
            down.append(host.call("down"))
    group = "serial, emulated Cortex-M3"
    yield _rate(group, "16 KiB up", up, "raw echo", echo, 0.7)
    yield _rate(group, "16 KiB down", down, "raw echo", echo, 0.7)


def _lists(count: int) -> list[list[float]]:
    return [[] for _ in range(count)]


def _rate(
    group: str, name: str, ours: list[float], peer_name: str, peer: list[float], least: float, unit: str = "KB/s"
) -> Row:
    scale = 1e-3 if unit == "KB/s" else 1.0
    target = Target(">=", least)
    return Row(
        group,
        name,
        unit,
        Series(ours).map(lambda x: x * scale),
        peer_name,
        Series(peer).map(lambda x: x * scale),
        target,
    )
