# SPDX-License-Identifier: Apache-2.0
"""How long to wait before the next try of something that many may be trying at the same time."""

import random
from typing import Final

FIRST_SECONDS: Final = 0.1
MOST_SECONDS: Final = 2.0
"""Few enough that whoever waits for a tracker or proxy to come back is there within 5 s."""
STEADY_SECONDS: Final = 5.0
"""What has held that long was a success: the next failure is the first again."""


class Backoff:
    """Waiting times that grow to a limit, each drawn from the upper half of its range.

    Args:
        first, most: the longest first wait and the longest of all, in seconds.
        factor: how they grow.
    """

    def __init__(self, first: float = FIRST_SECONDS, most: float = MOST_SECONDS, factor: float = 2.0) -> None:
        self._first = first
        self._most = most
        self._factor = factor
        self._next = first

    def seconds(self) -> float:
        """How long to wait now."""
        longest = self._next
        self._next = min(self._most, longest * self._factor)
        return longest * (0.5 + random.random() / 2)

    def ended_after(self, seconds: float) -> None:
        """What was tried has held for so long."""
        if seconds >= STEADY_SECONDS:
            self._next = self._first
