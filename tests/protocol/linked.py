# SPDX-License-Identifier: Apache-2.0
"""A host's and a device's link joined by a bad line, in time that is only counted."""

import heapq
import random
from collections.abc import Iterator
from itertools import count

import attrs

from rpcflow.protocol.link import DeviceLink, HostLink, Link, Sizes, State
from tests.line import ByteFaults, spoilt_byte

SPEED = 11_520.0
"""Bytes a second of the line."""
_STEP = 16
"""Bytes that arrive at once."""


@attrs.define
class Faults(ByteFaults):
    """And for all that is given to the line at once: that it is lost, or arrives twice."""

    pieces: float = 0.0
    repeat: float = 0.0


class Direction:
    """One way of the line; keeps the order."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.faults = Faults()
        self.given = 0  # bytes
        self._free = 0.0
        self._last = 0.0

    def carry(self, data: bytes, now: float) -> Iterator[tuple[float, bytes]]:
        """When it arrives, and as what."""
        self.given += len(data)
        self._free = max(self._free, now)
        delay = self.random.random() * self.faults.delay
        lost = self.random.random() < self.faults.pieces
        if self.random.random() < self.faults.repeat:
            data += data
        for at in range(0, len(data), _STEP):
            piece = data[at : at + _STEP]
            self._free += len(piece) / SPEED
            self._last = max(self._last, self._free + delay)
            if not lost:
                yield self._last, b"".join(spoilt_byte(self.random, self.faults, byte) for byte in piece)


class World:
    """Both ends, what their programs sent and got, and the line between."""

    def __init__(self, seed: int = 0, host: Sizes | None = None, device: Sizes | None = None) -> None:
        self.now = 0.0
        self.sizes = host or Sizes(byte_seconds=1 / SPEED), device or Sizes(payload=64, window=3, room=2)
        self.ways = Direction(seed), Direction(seed + 1)
        self.reading = True
        self.powered = True
        self.sent: dict[tuple[object, ...], bytearray] = {}
        self.got: dict[tuple[object, ...], bytearray] = {}
        self.devices = 0
        self._order = count()
        self._arriving: list[tuple[float, int, int, bytes]] = []
        self._numbers = count(1)
        self._bytes = random.Random(seed + 2)
        self.device = DeviceLink(self.sizes[1])
        self.host = self._new_host()
        self._settle()

    def _new_host(self) -> HostLink:
        return HostLink(lambda: next(self._numbers), self.now, sizes=self.sizes[0])

    # ---- what happens

    def reset_host(self) -> None:
        """Another program takes the line, without a word from the old one."""
        self.host = self._new_host()
        self._settle()

    def reset_device(self) -> None:
        self.device = DeviceLink(self.sizes[1])
        self.devices += 1
        self.powered = True
        self._settle()

    def send(self, end: str, nbytes: int, flush: bool = True) -> int:
        """Let a program send; how much was taken. What does not fill a frame goes out by a flush."""
        link = self._link(end)
        data = self._bytes.randbytes(nbytes)
        taken = link.send(memoryview(data))
        if flush:
            link.flush()
        if taken:
            self.sent.setdefault(self._key(end), bytearray()).extend(data[:taken])
        self._settle()
        return taken

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            due = [end]
            due += [entry[0] for entry in self._arriving[:1]]
            ends = ("host", "device") if self.powered else ("host",)
            due += [at for name in ends if (at := self._link(name).deadline()) is not None]
            self.now = max(min(due), self.now)
            while self._arriving and self._arriving[0][0] <= self.now:
                _, _, way, data = heapq.heappop(self._arriving)
                if way == 0 and self.powered:
                    self.device.receive(data, self.now)
                elif way == 1:
                    self.host.receive(data, self.now)
                self._settle()
            for name in ends:
                self._link(name).tick(self.now)
            self._settle()
            if self.now >= end:
                return

    def run_until_idle(self, most: float) -> bool:
        """Let time pass until all that was sent has arrived; False if it has not after ``most`` seconds."""
        end = self.now + most
        while self.now < end:
            self.run(0.01)
            if self.host.error or (self.opened and self.host.empty and self.device.empty):
                return True
        return False

    @property
    def opened(self) -> bool:
        """Whether both are in one session."""
        return self.host.state is self.device.state is State.OPEN and self.host.session == self.device.session

    # ---- inside

    def _link(self, end: str) -> Link:
        return self.host if end == "host" else self.device

    def _settle(self) -> None:
        """Read what can be read, and give the line what it is to have."""
        buffer = memoryview(bytearray(4096))
        for way, link in enumerate((self.host, self.device)):
            if way and not self.powered:
                continue
            while self.reading and (nbytes := link.read_into(buffer)):
                self.got.setdefault(self._key(("host", "device")[way]), bytearray()).extend(buffer[:nbytes])
            if data := link.take_outgoing(self.now):
                for at, piece in self.ways[way].carry(data, self.now):
                    heapq.heappush(self._arriving, (at, next(self._order), way, piece))
        self.check()

    def _key(self, end: str) -> tuple[object, ...]:
        return (self._link(end).session, end, *([self.devices] if end == "device" else []))

    def check(self) -> None:
        """What must hold at every moment: what came is the beginning of what was sent, in the same session. A device
        that is reset before anything has passed in a session may begin that again."""
        for key, data in self.got.items():
            other = "host" if key[1] == "device" else "device"
            sent = [stream for name, stream in self.sent.items() if name[:2] == (key[0], other)]
            assert any(stream[: len(data)] == data for stream in sent), f"{key}: other bytes than were sent"

    def whole(self) -> bool:
        """Whether both ends of the present session have got all that was sent."""
        ends = self._key("host"), self._key("device")
        return all(self.got.get(ends[i]) == self.sent.get(ends[1 - i]) for i in (0, 1))
