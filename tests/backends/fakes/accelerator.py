# SPDX-License-Identifier: Apache-2.0
"""A DSP in Python: functions ``rpcflow.hexagon.*`` over host memory, whose addresses mean nothing to the host."""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import rpcflow

DEVICES = 2
_ELSEWHERE = 1 << 50  # added to pointers: whoever follows one of ours faults
_MOST_BYTES = 1 << 40
_SCOPES = ("", "vtcm", "ddr")


class Accelerator:
    """All there is to it. ``calls``: what it was asked for; ``failing``: by operation, what is raised or returned in
    its stead."""

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self._begins: list[int] = []
        self.streams: set[int] = set()
        self.current = 0
        self.calls: list[tuple[Any, ...]] = []
        self.failing: dict[str, Any] = {}

    def operations(self, leave_out: Sequence[str] = ()) -> dict[str, Callable[..., Any]]:
        """The functions, by their full names."""
        found = {
            name: self._watched(name)
            for name in (
                "count",
                "allocate",
                "free",
                "write",
                "read",
                "copy",
                "attribute",
                "create_stream",
                "free_stream",
                "synchronize",
                "set_device",
                "set_stream",
                "start_timer",
                "stop_timer",
            )
        }
        return {f"rpcflow.hexagon.{name}": function for name, function in found.items() if name not in leave_out}

    def _watched(self, name: str) -> Callable[..., Any]:
        operation = getattr(self, name)

        def function(*args: Any) -> Any:
            self.calls.append((name, *args))
            del self.calls[:-1000]
            instead = self.failing.get(name, self)
            if isinstance(instead, Exception):
                raise instead
            return operation(*args) if instead is self else instead

        return function

    def _host(self, address: int, nbytes: int) -> int:
        at = bisect.bisect_right(self._begins, address) - 1
        if at < 0 or address + nbytes > self._begins[at] + len(self.blocks[self._begins[at]]):
            raise ValueError(f"{nbytes} bytes at {address:#x} are not in the DSP's memory")
        return address - _ELSEWHERE

    def _check(self, stream: int) -> None:
        if stream and stream not in self.streams:
            raise ValueError(f"no such stream: {stream}")

    def count(self) -> int:
        return DEVICES

    def allocate(self, dev_id: int, nbytes: int, alignment: int, scope: str) -> int:
        if scope not in _SCOPES:
            raise ValueError(f"the DSP has no memory of the scope '{scope}'")
        if nbytes > _MOST_BYTES:
            return 0
        room = np.empty(nbytes + alignment, np.uint8)
        start = room.ctypes.data
        block = room[-start % alignment :][:nbytes]
        address = int(block.ctypes.data) + _ELSEWHERE
        self.blocks[address] = block
        bisect.insort(self._begins, address)
        return address

    def free(self, dev_id: int, address: int) -> None:
        del self.blocks[address]
        self._begins.remove(address)

    def write(self, dev_id: int, address: int, host: ctypes.c_void_p, nbytes: int, stream: int) -> None:
        self._check(stream)
        ctypes.memmove(self._host(address, nbytes), host, nbytes)

    def read(self, dev_id: int, address: int, host: ctypes.c_void_p, nbytes: int, stream: int) -> None:
        self._check(stream)
        ctypes.memmove(host, self._host(address, nbytes), nbytes)

    def copy(self, dev_id: int, source: int, target: int, nbytes: int, stream: int) -> None:
        self._check(stream)
        ctypes.memmove(self._host(target, nbytes), self._host(source, nbytes), nbytes)

    def attribute(self, dev_id: int, kind: int) -> int | str | None:
        return {1: 128, 5: f"DSP {dev_id}", 8: "[128, 1, 1]"}.get(kind)

    def create_stream(self, dev_id: int) -> int:
        self.streams.add(number := 1000 + len(self.calls) + len(self.streams))
        return number

    def free_stream(self, dev_id: int, stream: int) -> None:
        self._check(stream)
        if stream == self.current:
            raise ValueError("the current stream is not freed")
        self.streams.remove(stream)

    def synchronize(self, dev_id: int, stream: int) -> None:
        self._check(stream)

    def set_device(self, dev_id: int) -> None:
        pass

    def set_stream(self, dev_id: int, stream: int) -> None:
        self._check(stream)
        self.current = stream

    def start_timer(self, dev_id: int, stream: int) -> None:
        self._check(stream)

    def stop_timer(self, dev_id: int, stream: int) -> float:
        return 0.25

    def fail(self, operation: str, words: str) -> None:
        """From now on an operation raises; no words: it works again."""
        if words:
            self.failing[operation] = ValueError(words)
        else:
            self.failing.pop(operation, None)


def register(leave_out: Sequence[str] = ()) -> Accelerator:
    """Put one into the server."""
    made = Accelerator()
    for name, function in made.operations(leave_out).items():
        rpcflow.register(name, function)
    rpcflow.register("dsp.fail", made.fail)
    rpcflow.register("dsp.live", lambda: len(made.blocks))
    rpcflow.register("dsp.last", lambda operation: repr([call for call in made.calls if call[0] == operation][-1:]))
    return made
