# SPDX-License-Identifier: Apache-2.0
"""Nothing lost, nothing granted twice, nobody overtaken, under any order of put, request, cancel, drop and time.

The scheduler runs beside a model that keeps plain lists and looks through all of them each time.
"""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from rpcflow.tracker.scheduler import AGEING_SECONDS, Match, Request, Resource, Scheduler

PARTIES = st.integers(0, 5)
KEYS = st.sampled_from(["a", "a:1", "b"])
PRIORITIES = st.sampled_from([-1, 0, 0.5, 1, 2, 7, True])


@attrs.define(eq=False)
class Wish:
    request: Request
    arrival: float
    front: int = 0


class Model:
    """What should be there, in plain lists."""

    def __init__(self) -> None:
        self.free: list[Resource] = []
        self.wishes: list[Wish] = []

    def best(self, key: str) -> tuple[Wish, Resource] | None:
        wishes = [wish for wish in self.wishes if wish.request.key == key]
        free = [resource for resource in self.free if resource.key == key]
        if not wishes or not free:
            return None
        return min(wishes, key=lambda w: (-w.front, w.arrival - AGEING_SECONDS * float(w.request.priority))), free[0]

    def drop(self, party: int) -> None:
        self.free = [resource for resource in self.free if resource.owner != party]
        self.wishes = [wish for wish in self.wishes if wish.request.requester != party]


class SchedulerMachine(RuleBasedStateMachine):
    requests: Bundle[Request] = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.model = Model()
        self.now = 0.0
        self.numbers = 0
        self.fronts = 0
        self.given: set[int] = set()
        self.asked: set[int] = set()
        self.kept: list[tuple[Resource, Request]] = []

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def check(self, match: Match | None, key: str, then: str) -> None:
        """The match is the model's, and it is brought about, declined or resumed."""
        expected = self.model.best(key)
        if expected is None:
            assert match is None
            return
        assert match is not None
        wish, resource = expected
        assert match.resource is resource
        assert match.request is wish.request
        self.model.free.remove(resource)
        self.model.wishes.remove(wish)
        if then == "decline":
            self.model.free.insert(0, resource)
            self.model.drop(match.request.requester)
            self.check(self.scheduler.decline(match), key, "grant")
        elif then == "resume":
            self.fronts += 1
            wish.front = self.fronts
            self.model.wishes.append(wish)
            self.model.drop(match.resource.owner)
            self.check(self.scheduler.resume(match), key, "grant")
        else:
            assert id(resource) not in self.given, "granted twice"
            assert id(wish.request) not in self.asked, "served twice"
            self.given.add(id(resource))
            self.asked.add(id(wish.request))
            self.kept.append((resource, wish.request))  # so that their ids stay theirs

    @rule(owner=PARTIES, key=KEYS, then=st.sampled_from(["grant", "decline", "resume"]))
    def put(self, owner: int, key: str, then: str) -> None:
        resource = Resource(owner, key, f"{key}:{self.number()}")
        self.model.free.append(resource)
        self.check(self.scheduler.put(resource), key, then)

    @precondition(lambda self: self.model.free)
    @rule(data=st.data())
    def put_again(self, data: Any) -> None:
        old = data.draw(st.sampled_from(self.model.free))
        assert self.scheduler.put(Resource(old.owner, old.key, old.match_key)) is None

    @rule(
        target=requests,
        requester=PARTIES,
        key=KEYS,
        priority=PRIORITIES,
        then=st.sampled_from(["grant", "decline", "resume"]),
    )
    def request(self, requester: int, key: str, priority: float, then: str) -> Request:
        request = Request(requester, key, priority)
        self.model.wishes.append(Wish(request, self.now))
        self.check(self.scheduler.request(request, self.now), key, then)
        return request

    @rule(request=consumes(requests))
    def cancel(self, request: Request) -> None:
        before = len(self.model.wishes)
        self.model.wishes = [wish for wish in self.model.wishes if wish.request is not request]
        assert self.scheduler.cancel(request) == (len(self.model.wishes) < before)

    @rule(party=PARTIES)
    def drop(self, party: int) -> None:
        self.model.drop(party)
        self.scheduler.drop(party)

    @rule(seconds=st.sampled_from([0.0, 1.0, 299.0, 600.0, 601.0, 10_000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_lost(self) -> None:
        for key, free, waiting in self.scheduler.status():
            assert free == sum(resource.key == key for resource in self.model.free)
            assert waiting == sum(wish.request.key == key for wish in self.model.wishes)
            assert not (free and waiting), "somebody waits for what is there"
        for party in range(6):
            unused = {resource.match_key for resource in self.model.free if resource.owner == party}
            assert set(self.scheduler.unused(party)) == unused
            wishes = sum(wish.request.requester == party for wish in self.model.wishes)
            assert self.scheduler.outstanding(party) == wishes
        assert self.scheduler.waiting == len(self.model.wishes)

    def teardown(self) -> None:
        """Whoever waits is served in the end, with no matter what: as many resources as requests are enough."""
        for key in ("a", "a:1", "b"):
            while any(wish.request.key == key for wish in self.model.wishes):
                resource = Resource(99, key, f"{key}:{self.number()}")
                self.model.free.append(resource)
                self.check(self.scheduler.put(resource), key, "grant")
        assert self.scheduler.waiting == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
