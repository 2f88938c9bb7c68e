# SPDX-License-Identifier: Apache-2.0
"""Who has its turn, and who waits for it in which order."""

from collections import deque

import anyio


class Waiter:
    """A place in the queue."""

    def __init__(self, queue: "TurnQueue", host: str) -> None:
        self._queue = queue
        self.host = host
        self._event = anyio.Event()
        self._over = False
        self.served = False

    async def wait(self) -> bool:
        """Wait for the turn; False if it was left meanwhile."""
        await self._event.wait()
        return self.served

    def leave(self) -> None:
        """Give the place up; does nothing once it has its turn."""
        if not self.served:
            self._queue._drop(self)
            self._event.set()

    def done(self) -> None:
        """The turn is over, or is not waited for any more; does nothing when called again."""
        if self._over:
            return
        self._over = True
        if self.served:
            self._queue._release()
        else:
            self.leave()

    def _serve(self) -> None:
        self.served = True
        self._event.set()


class TurnQueue:
    """First come, first served.

    Args:
        turns: how many may have theirs at the same time.
        limit: how many may wait.
        per_host: how many of one host; None for no such limit.
    """

    def __init__(self, turns: int, limit: int = 128, per_host: int | None = 96) -> None:
        self._free = turns
        self._limit = limit
        self._per_host = limit if per_host is None else per_host
        self._waiters: deque[Waiter] = deque()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiters)

    def full(self, host: str = "") -> bool:
        """Whether nobody more may wait, or nobody more of a host; an empty one has no limit of its own."""
        if self._free:
            return False
        own = sum(waiter.host == host for waiter in self._waiters) if host else 0
        return len(self._waiters) >= self._limit or own >= self._per_host

    def join(self, host: str = "") -> Waiter:
        """Take the next place."""
        waiter = Waiter(self, host)
        self._waiters.append(waiter)
        self._advance()
        return waiter

    def _advance(self) -> None:
        while self._free and self._waiters:
            self._free -= 1
            self._waiters.popleft()._serve()

    def _drop(self, waiter: Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def _release(self) -> None:
        self._free += 1
        self._advance()
