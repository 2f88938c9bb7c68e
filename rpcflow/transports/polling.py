# SPDX-License-Identifier: Apache-2.0
"""When to look again before going to sleep.

Waking a sleeping process costs tens of microseconds, several times what a small call costs otherwise. So a receiver
first looks for a short while, but only where that pays off: not after it has failed to (a long call, an idle
session), not where something else wants the processor.
"""

import os
import time
from typing import Final

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

BUDGET: Final = 50e-6
"""Seconds to look before sleeping: about what waking up costs."""
_FIRST_SKIPS: Final = 4
_MAX_SKIPS: Final = 256
_CHECK_EVERY: Final = 64
_MAX_PREEMPTIONS: Final = 8
"""Times the kernel took the processor from us within _CHECK_EVERY receives; more means that it is wanted."""
_PAUSE: Final = 0.1


class AdaptivePolling:
    """Decides for one channel. ``enabled`` None: by itself; False: never."""

    __slots__ = ("_checks", "_enabled", "_paused_until", "_preemptions", "_skips", "_to_skip")

    def __init__(self, enabled: bool | None = None) -> None:
        self._enabled = enabled is not False and (os.cpu_count() or 1) > 1
        self._skips = 0
        self._to_skip = 0
        self._checks = 0
        self._preemptions = _preemptions()
        self._paused_until = 0.0

    def worthwhile(self) -> bool:
        """Whether the next receive should look for up to :data:`BUDGET` seconds before it sleeps."""
        if not self._enabled:
            return False
        if self._to_skip:
            self._to_skip -= 1
            return False
        self._checks += 1
        if self._checks >= _CHECK_EVERY:
            self._checks = 0
            count = _preemptions()
            crowded, self._preemptions = count - self._preemptions > _MAX_PREEMPTIONS, count
            if crowded:
                self._paused_until = time.monotonic() + _PAUSE
        return not self._paused_until or self._pause_is_over()

    def hit(self) -> None:
        """Something came while looking. After failures trust comes back by halves: looking pays where it finds
        something two times in three."""
        if self._skips:
            self._skips //= 2
            self._to_skip = self._skips

    def miss(self) -> None:
        """Nothing came, or it came too late: then something else has had the processor meanwhile, perhaps the very
        process that we wait for. Look less often."""
        self._skips = min(4 * self._skips or _FIRST_SKIPS, _MAX_SKIPS)
        self._to_skip = self._skips

    def _pause_is_over(self) -> bool:
        if time.monotonic() < self._paused_until:
            return False
        self._paused_until = 0.0
        self._preemptions = _preemptions()
        return True


def _preemptions() -> int:
    if resource is None or not hasattr(resource, "RUSAGE_THREAD"):
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
