# SPDX-License-Identifier: Apache-2.0
"""The device's link in C and the host's in Python, joined by a bad line, in time that is only counted."""

import heapq
import random
import struct
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.link import HostLink, Sizes, State
from tests.protocol.linked import SPEED, Direction, Faults

from .clink import GREETING, CLink, library

STEP = 0.005
"""Seconds between two ticks of the device."""


class World:
    """A host that makes calls, one after another; a device whose program answers each with what it was sent.

    Args:
        calls: sizes of the calls' data.
        seed: of the line's faults and of the data.
        sizes: of the device: payload, frames to receive, frames to send.
    """

    def __init__(self, calls: list[int], seed: int, sizes: tuple[int, int, int]) -> None:
        self.now = 0.0
        self.ways = Direction(seed), Direction(seed + 1)
        self.device = CLink(library(*sizes), self.wait)
        numbers = count(1)
        self.host = HostLink(lambda: next(numbers), 0.0, Sizes(byte_seconds=1 / SPEED))
        self.answered = self.served = self._begun = 0
        self.error: Exception | None = None
        data = random.Random(seed + 2)
        self._calls = [struct.pack("<I", size) + data.randbytes(size) for size in calls]
        self._sending = memoryview(b"")
        self._answer = bytearray()
        self._arriving: list[tuple[float, int, int, bytes]] = []
        self._order = count()
        self._tick = 0.0

    def run(self) -> None:
        """The device's program: serves one session."""
        self.device.accept()
        while (head := self.device.read(4)) is not None:
            (nbytes,) = struct.unpack("<I", head)
            body = self.device.read(nbytes) if nbytes else b""
            if body is None:
                break
            self.served += 1
            if not self.device.write(head + body):
                break

    def wait(self) -> None:
        """The program waits: the next thing happens."""
        if self.over:
            self.device.receive(GREETING)  # lets the program end
            return
        assert self.now < 3600, "this takes for ever"
        due = [self._tick, *(entry[0] for entry in self._arriving[:1])]
        if (deadline := self.host.deadline()) is not None:
            due.append(deadline)
        self.now = max(min(due), self.now)
        while self._arriving and self._arriving[0][0] <= self.now:
            _, _, way, data = heapq.heappop(self._arriving)
            if way == 0:
                self.device.receive(data)
            else:
                self.host.receive(data, self.now)
        if self.now >= self._tick:
            self.device.tick(int(self.now * 1000))
            self._tick = self.now + STEP
        self.host.tick(self.now)
        self._work()
        self._transmit()

    @property
    def over(self) -> bool:
        return self.error is not None or self.answered == len(self._calls)

    def _work(self) -> None:
        """The host's program."""
        if self.host.error is not None:
            self.error = self.host.error
        if self.over or self.host.state is not State.OPEN:
            return
        if self._begun == self.answered:
            self._sending = memoryview(self._calls[self._begun])
            self._begun += 1
        while self._sending and (taken := self.host.send(self._sending)):
            self._sending = self._sending[taken:]
        if not self._sending:
            self.host.flush()
        buffer = memoryview(bytearray(4096))
        while nbytes := self.host.read_into(buffer):
            self._answer += buffer[:nbytes]
        call = self._calls[self.answered]
        assert call.startswith(self._answer), "an answer is not what was sent"
        if len(self._answer) == len(call):
            self._answer.clear()
            self.answered += 1

    def _transmit(self) -> None:
        self._carry(0, self.host.take_outgoing(self.now))
        # What the device sends until it is looked at next, as a UART would ask for it.
        self._carry(1, self.device.transmit(int(STEP * SPEED)))

    def _carry(self, way: int, data: bytes) -> None:
        for at, piece in self.ways[way].carry(data, self.now):
            heapq.heappush(self._arriving, (at, next(self._order), way, piece))


faults = st.builds(
    Faults,
    lose=st.sampled_from([0, 0, 1e-4, 2e-3]),
    change=st.sampled_from([0, 0, 1e-3, 3e-3]),
    double=st.sampled_from([0, 0, 2e-3]),
    add=st.sampled_from([0, 0, 2e-3]),
    pieces=st.sampled_from([0, 0, 0.01, 0.1]),
    delay=st.sampled_from([0, 0, 0.02]),
)
device_sizes = st.sampled_from([(256, 4, 4), (32, 1, 1), (64, 2, 3), (1024, 3, 2), (100, 64, 64)])


@settings(max_examples=80, deadline=None)
@given(
    calls=st.lists(st.one_of(st.integers(0, 100), st.integers(0, 3000)), min_size=1, max_size=12),
    seed=st.integers(0, 1 << 30),
    sizes=device_sizes,
    forth=faults,
    back=faults,
)
def test_calls_run_once_and_get_their_answers(
    calls: list[int], seed: int, sizes: tuple[int, int, int], forth: Faults, back: Faults
) -> None:
    world = World(calls, seed, sizes)
    world.ways[0].faults, world.ways[1].faults = forth, back
    world.run()
    if world.error is None:
        assert world.answered == world.served == len(calls)
    else:
        assert isinstance(world.error, ConnectionLostError)
        assert world.served <= world.answered + 1
    world.device.check()


def test_a_clean_line_loses_no_time() -> None:
    world = World([20_000], 1, (256, 4, 4))
    world.run()
    assert world.answered == 1
    assert world.now < 2 * 20_000 / SPEED * 1.15


def test_half_the_speed_on_a_bad_line() -> None:
    """One byte in 1,000 changed, one piece in 100 lost."""
    clean, bad = World([1500] * 40, 5, (256, 4, 4)), World([1500] * 40, 5, (256, 4, 4))
    for way in bad.ways:
        way.faults = Faults(change=1e-3, pieces=0.01)
    clean.run()
    bad.run()
    assert bad.error is None
    assert bad.answered == bad.served == 40
    assert bad.now < 2 * clean.now


def test_many_calls_on_a_very_bad_line() -> None:
    world = World([random.Random(3).randrange(200) for _ in range(1000)], 9, (256, 4, 4))
    for way in world.ways:
        way.faults = Faults(lose=1e-3, change=3e-3, double=1e-3, add=1e-3, pieces=0.03, delay=0.01)
    world.run()
    assert world.error is None
    assert world.answered == world.served == 1000
