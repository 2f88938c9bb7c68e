# SPDX-License-Identifier: Apache-2.0
"""Who gets which resource, and in which order. Pure: no I/O, and time is passed in.

Resources of a key go out first in, first out. Requests are served by priority, first come first served within one,
and gain one step of priority for each :data:`AGEING_SECONDS` they wait. All age at the same rate, so which of two
comes first never changes while they wait: it is the order of ``arrival - AGEING_SECONDS * priority``, and a heap holds
it. Every operation costs O(log n) at most, amortised.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any, Final

import attrs

AGEING_SECONDS: Final = 600.0
"""A request that has waited for this long is served as if its priority were one higher."""
_IDLE_KEYS: Final = 10_000
"""Keys with neither resources nor requests that are remembered; the one idle for longest is forgotten first."""
_FEW: Final = 32
"""Cancelled requests that may lie in a heap before it is cleared of them, if they are also the greater part."""


@attrs.define(eq=False)
class Resource:
    """One right to use a device once.

    Args:
        owner: the connection that offers it.
        key: the kind of device.
        match_key: the secret that its server will accept.
        value: whatever else belongs to it.
    """

    owner: Hashable
    key: str
    match_key: str
    value: Any = None


@attrs.define(eq=False)
class Request:
    """Somebody's wish for one resource.

    Args:
        requester: the connection that waits.
        key: the kind of device.
        priority: higher goes first.
        value: whatever else belongs to it.
    """

    requester: Hashable
    key: str
    priority: float = 1
    value: Any = None
    waits: bool = attrs.field(default=False, init=False)


@attrs.frozen
class Match:
    """A resource and who is to have it. From here on neither is the scheduler's, unless the match is declined."""

    request: Request
    resource: Resource


@attrs.define(eq=False)
class _Queue:
    free: OrderedDict[Resource, None] = attrs.field(factory=OrderedDict)
    heap: list[tuple[float, int, Request]] = attrs.field(factory=list)
    waiting: int = 0


class Scheduler:
    """Matches requests with resources.

    Args:
        idle_keys: how many keys that have neither are remembered for :meth:`keys`.
    """

    def __init__(self, idle_keys: int = _IDLE_KEYS) -> None:
        self._queues: dict[str, _Queue] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._idle_keys = idle_keys
        self._unused: dict[Hashable, dict[str, Resource]] = {}
        self._wishes: dict[Hashable, dict[Request, None]] = {}
        self._count = 0
        self._now = -math.inf
        self.waiting = 0
        """How many requests wait."""

    # ---- what comes in

    def put(self, resource: Resource) -> Match | None:
        """Take a resource in; a match if somebody waits for it.

        A match key that its owner has offered already and nobody took is the same resource, and not taken in again.
        """
        unused = self._unused.setdefault(resource.owner, {})
        if resource.match_key in unused:
            return None
        unused[resource.match_key] = resource
        queue = self._queue(resource.key)
        queue.free[resource] = None
        return self._next(resource.key, queue)

    def request(self, request: Request, now: float) -> Match | None:
        """Take a request in; a match if there is something for it.

        Args:
            now: the time, in seconds since whenever; one that is before the last one given counts as that one.

        Raises:
            ValueError: the priority is not a finite number.
        """
        priority = finite(request.priority)
        self._now = max(now, self._now)
        queue = self._queue(request.key)
        self._count += 1
        heapq.heappush(queue.heap, (self._now - AGEING_SECONDS * priority, self._count, request))
        queue.waiting += 1
        self.waiting += 1
        request.waits = True
        self._wishes.setdefault(request.requester, {})[request] = None
        return self._next(request.key, queue)

    # ---- what goes

    def cancel(self, request: Request) -> bool:
        """A request is no longer wanted; whether it was still waiting."""
        if not request.waits:
            return False
        queue = self._queues[request.key]
        self._forget_request(queue, request)
        self._tidy(request.key, queue)
        return True

    def drop(self, party: Hashable) -> None:
        """A connection has gone: withdraw what it offers and nobody took, and cancel what it waits for."""
        for request in list(self._wishes.get(party, ())):
            self.cancel(request)
        for resource in list(self._unused.get(party, {}).values()):
            queue = self._queues[resource.key]
            self._forget_resource(queue, resource)
            self._tidy(resource.key, queue)

    def decline(self, match: Match) -> Match | None:
        """Whoever should have had it has gone. Its requester is dropped and the resource, first in line again, offered
        to the next; a match if there is one.

        The owner must not have been dropped since the match was made: then the resource has gone with it.
        """
        resource = match.resource
        queue = self._queue(resource.key)
        queue.free[resource] = None
        queue.free.move_to_end(resource, last=False)
        self._unused.setdefault(resource.owner, {})[resource.match_key] = resource
        self.drop(match.request.requester)
        return self._next(resource.key, self._queue(resource.key))

    def resume(self, match: Match) -> Match | None:
        """The resource's owner has gone. It is dropped, and the request, first in line again, waits for the next; a
        match if there is one already."""
        request = match.request
        queue = self._queue(request.key)
        heapq.heappush(queue.heap, (-math.inf, -self._count, request))
        self._count += 1
        queue.waiting += 1
        self.waiting += 1
        request.waits = True
        self._wishes.setdefault(request.requester, {})[request] = None
        self.drop(match.resource.owner)
        return self._next(request.key, self._queue(request.key))

    # ---- what there is

    def unused(self, owner: Hashable) -> list[str]:
        """The match keys of an owner that nobody took."""
        return list(self._unused.get(owner, ()))

    def offers(self, owner: Hashable, match_key: str) -> bool:
        """Whether an owner has offered this match key, and nobody took it yet."""
        return match_key in self._unused.get(owner, ())

    def outstanding(self, requester: Hashable) -> int:
        """How many requests of a requester wait."""
        return len(self._wishes.get(requester, ()))

    def status(self) -> Iterator[tuple[str, int, int]]:
        """Each key with the number of its free resources and waiting requests, also those that had some once."""
        for key, queue in self._queues.items():
            yield key, len(queue.free), queue.waiting

    # ---- inside

    def _queue(self, key: str) -> _Queue:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue()
        self._idle.pop(key, None)
        return queue

    def _next(self, key: str, queue: _Queue) -> Match | None:
        match = None
        if queue.free and queue.waiting:
            request = heapq.heappop(queue.heap)[2]
            while not request.waits:
                request = heapq.heappop(queue.heap)[2]
            resource = next(iter(queue.free))
            self._forget_request(queue, request)
            self._forget_resource(queue, resource)
            match = Match(request, resource)
        self._tidy(key, queue)
        return match

    def _forget_request(self, queue: _Queue, request: Request) -> None:
        request.waits = False
        queue.waiting -= 1
        self.waiting -= 1
        _take(self._wishes, request.requester, request)

    def _forget_resource(self, queue: _Queue, resource: Resource) -> None:
        del queue.free[resource]
        _take(self._unused, resource.owner, resource.match_key)

    def _tidy(self, key: str, queue: _Queue) -> None:
        if len(queue.heap) > 2 * queue.waiting + _FEW:
            # More than half are cancelled, and each pays for its own removal: O(1) a request.
            queue.heap = [entry for entry in queue.heap if entry[2].waits]
            heapq.heapify(queue.heap)
        if queue.free or queue.waiting:
            return
        queue.heap.clear()
        self._idle[key] = None
        self._idle.move_to_end(key)
        if len(self._idle) > self._idle_keys:
            del self._queues[self._idle.popitem(last=False)[0]]


def finite(priority: Any) -> float:
    """A priority as a number to reckon with.

    Raises:
        ValueError: it is not a finite number.
    """
    if not isinstance(priority, int | float):
        raise ValueError(f"a priority is a number, not {priority!r}")
    try:
        number = float(priority)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number * AGEING_SECONDS):
        raise ValueError("a priority is a finite number")
    return number


def _take(sets: dict[Hashable, dict[Any, Any]], party: Hashable, member: Any) -> None:
    members = sets[party]
    del members[member]
    if not members:
        del sets[party]
