# SPDX-License-Identifier: Apache-2.0
"""Whose handshake gets processor time next, and how much of it there is for handshakes at all.

A handshake costs its maker nothing to begin and us milliseconds. So addresses take turns, however many each has
waiting; those that have come in properly before have every other turn to themselves; and all together get no more
than a share of the time. Pure, but for the clock that is given.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from .ranking import Ranking

Item = TypeVar("Item", bound=Hashable)
_Ring = OrderedDict[str, OrderedDict[Item, None]]

FAVOURED: Final = 1024
"""Addresses that are remembered as having come in properly; the one that did so longest ago is forgotten first."""
BURST_SECONDS: Final = 0.05
LONGEST_SECONDS: Final = 1.0


class FairTurns(Generic[Item]):
    """What waits for its turn. Each operation takes constant time.

    Args:
        most: how many items may wait.
        per_address: how many of one address.
        favoured: how many addresses are remembered as favoured.
        drop: given what has to go for another; it adds nothing here, and raises nothing.
    """

    def __init__(
        self,
        most: int = 4096,
        per_address: int = 256,
        favoured: int = FAVOURED,
        drop: Callable[[Item], object] | None = None,
    ) -> None:
        self._most = most
        self._per_address = per_address
        self._kept = favoured
        self._drop = drop
        self._favoured: OrderedDict[str, None] = OrderedDict()
        self._first: _Ring[Item] = OrderedDict()
        self._rest: _Ring[Item] = OrderedDict()
        self._addresses: dict[Item, str] = {}
        self._ranking: Ranking[str] = Ranking()
        self._favour_next = True

    def __len__(self) -> int:
        return len(self._addresses)

    def add(self, address: str, item: Item) -> bool:
        """It waits from now on, behind the others of its address. Where there is no room, the last one of the address
        that has the most goes.

        Args:
            address: whose it is, as :attr:`.admission.Ticket.address` has it.
            item: one that does not wait yet.

        Returns:
            Whether it waits; False if there is no room for it.
        """
        assert item not in self._addresses
        own = self._ranking[address]
        if own >= self._per_address:
            return False
        if len(self._addresses) >= self._most:
            if own + 1 >= self._ranking.most:
                return False
            worst = self._ranking.first()
            last = next(reversed(self._ring(worst)[worst]))
            self.discard(last)
            if self._drop is not None:
                self._drop(last)
        self._ring(address).setdefault(address, OrderedDict())[item] = None
        self._addresses[item] = address
        self._ranking.add(address)
        return True

    def next(self) -> Item | None:
        """Whose turn it is; it waits no more. None if nobody waits."""
        if not self._addresses:
            return None
        favour = self._favour_next if self._first and self._rest else bool(self._first)
        self._favour_next = not favour
        ring = self._first if favour else self._rest
        address, items = next(iter(ring.items()))
        item = next(iter(items))
        ring.move_to_end(address)
        self.discard(item)
        return item

    def discard(self, item: Item) -> bool:
        """It has gone; whether it was waiting."""
        address = self._addresses.pop(item, None)
        if address is None:
            return False
        ring = self._ring(address)
        del ring[address][item]
        if not ring[address]:
            del ring[address]
        self._ranking.remove(address)
        return True

    def favour(self, address: str) -> None:
        """It has come in properly just now."""
        if address in self._favoured:
            self._favoured.move_to_end(address)
            return
        if len(self._favoured) >= self._kept:
            # Its place in the ring is told by whether it is favoured: so it moves before that changes.
            oldest = next(iter(self._favoured))
            self._move(oldest, self._first, self._rest)
            del self._favoured[oldest]
        self._move(address, self._rest, self._first)
        self._favoured[address] = None

    def _ring(self, address: str) -> _Ring[Item]:
        return self._first if address in self._favoured else self._rest

    def _move(self, address: str, source: _Ring[Item], target: _Ring[Item]) -> None:
        items = source.pop(address, None)
        if items is not None:
            target[address] = items


class Budget:
    """How much time may go into something expensive: of any stretch of time at most ``share``, and a little more at
    its beginning.

    Args:
        share: of 1. It may be changed at any time: 1 where nothing else is to be done.
        clock: seconds since whenever.
        burst: seconds that may be spent at once after a pause.

    Raises:
        ValueError: a share that is not more than 0 and at most 1.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic, burst: float = BURST_SECONDS) -> None:
        self._share = _share(share)
        self._clock = clock
        self._burst = burst
        self._left = burst
        self._at = clock()

    @property
    def share(self) -> float:
        """What it is now."""
        return self._share

    @share.setter
    def share(self, share: float) -> None:
        share = _share(share)
        self._refill()
        self._share = share

    def spent(self, seconds: float) -> None:
        """A step has taken so long, of the processor's time where that is known. One that took very long (the machine
        slept) is not held against others for more than :data:`LONGEST_SECONDS`."""
        self._refill()
        self._left = max(self._left - seconds, -LONGEST_SECONDS * self._share)

    def ready_in(self) -> float:
        """Seconds until the next step may begin; 0 for now."""
        self._refill()
        return max(0.0, -self._left / self._share)

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._share)
        self._at = now


def _share(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must be more than 0 and at most 1")
    return share
