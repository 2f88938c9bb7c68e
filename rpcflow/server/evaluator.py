# SPDX-License-Identifier: Apache-2.0
"""The time evaluator: runs a function again and again and says how long one run takes.

The rules (one run that does not count, ``number`` grown by the golden ratio or by what is missing) are TVM's, from
``src/runtime/rpc/rpc_module.cc``, so that figures can be compared.
"""

import math
import struct
import time
from collections.abc import Callable
from itertools import repeat as times
from typing import Any, Final

import attrs

from rpcflow.backends import Timer
from rpcflow.backends.kernels import KernelFunction
from rpcflow.protocol.values import Device

_GROWTH: Final = 1.618


@attrs.frozen
class Settings:
    """What ``runtime.RPCTimeEvaluator`` is told; times are in milliseconds, sizes in bytes."""

    number: int
    repeat: int
    min_repeat_ms: int = 0
    limit_zero_time_iterations: int = 100
    cooldown_interval_ms: int = 0
    repeats_to_cooldown: int = 1
    cache_flush_bytes: int = 0

    def __attrs_post_init__(self) -> None:
        if self.number < 1 or self.repeat < 1:
            raise ValueError(f"number={self.number} and repeat={self.repeat} must be 1 or more")
        if self.cooldown_interval_ms > 0 and self.repeats_to_cooldown < 1:
            raise ValueError(f"repeats_to_cooldown={self.repeats_to_cooldown} must be 1 or more")
        if min(self.min_repeat_ms, self.cooldown_interval_ms, self.cache_flush_bytes) < 0:
            raise ValueError("times and sizes must not be negative")


def evaluate(
    function: Callable[..., Any],
    args: list[Any],
    settings: Settings,
    preprocess: Callable[..., Any] | None = None,
    synchronize: Callable[[], None] = lambda: None,
    timer: Timer | None = None,
    device: Device | None = None,
) -> bytes:
    """Measure ``function(*args)``: one little-endian f64 for each repeat, seconds per run. ``timer``: the device's own,
    where it has one. ``device``: that both are for."""
    given = args
    if isinstance(function, KernelFunction):  # what it is given is checked once
        function, args = function.ready(args, device), []
    function(*args)
    synchronize()
    flush = bytearray(settings.cache_flush_bytes)
    number = settings.number
    results: list[float] = []
    for i in range(settings.repeat):
        if preprocess is not None:
            preprocess(*given)
        if flush:
            flush[:] = bytes(len(flush))
        zero_readings = 0
        elapsed = 0.0
        while True:
            if elapsed > 0.0:
                per_run_ms = elapsed * 1e3 / number
                number = int(max(settings.min_repeat_ms / per_run_ms + 1, number * _GROWTH))
            elif zero_readings:
                number = math.ceil(number * _GROWTH)
            synchronize()
            if timer is not None:
                timer.start()
            began = time.perf_counter()
            found: float | None = None
            try:
                for _ in times(None, number):
                    function(*args)
            finally:
                if timer is not None:
                    found = timer.stop()
            if found is None:
                synchronize()
                found = time.perf_counter() - began
            elapsed = found
            zero_readings += elapsed == 0.0
            if elapsed * 1e3 >= settings.min_repeat_ms:
                break
            if zero_readings > settings.limit_zero_time_iterations:
                break
        results.append(elapsed / number)
        if settings.cooldown_interval_ms > 0 and i % settings.repeats_to_cooldown == 0:
            time.sleep(settings.cooldown_interval_ms / 1e3)
    return struct.pack(f"<{len(results)}d", *results)
