# SPDX-License-Identifier: Apache-2.0
"""The scheduler: order, ageing, and what happens to whatever belongs to somebody who goes."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.tracker.scheduler import AGEING_SECONDS, Match, Request, Resource, Scheduler


def resource(name: str, owner: str = "server", key: str = "k") -> Resource:
    return Resource(owner, key, f"{key}:{name}", name)


def request(name: str, priority: float = 1, requester: str | None = None, key: str = "k") -> Request:
    return Request(requester or name, key, priority, name)


def pair(match: Match | None) -> tuple[Any, Any] | None:
    return match and (match.request.value, match.resource.value)


def served(scheduler: Scheduler, count: int, key: str = "k") -> list[Any]:
    """Who gets the next so many resources."""
    matches = [scheduler.put(resource(f"later{n}", key=key)) for n in range(count)]
    return [match.request.value for match in matches if match]


def queues(scheduler: Scheduler) -> dict[str, tuple[int, int]]:
    return {key: (free, waiting) for key, free, waiting in scheduler.status()}


def test_resources_go_first_in_first_out() -> None:
    scheduler = Scheduler()
    for name in "abc":
        assert scheduler.put(resource(name)) is None
    got = [pair(scheduler.request(request(f"r{n}"), 0)) for n in range(4)]
    assert got == [("r0", "a"), ("r1", "b"), ("r2", "c"), None]


def test_priority_first_then_arrival() -> None:
    scheduler = Scheduler()
    for name, priority in (("low", 1), ("high1", 5), ("high2", 5), ("middle", 3), ("half", 2.5)):
        scheduler.request(request(name, priority), 0)
    assert served(scheduler, 6) == ["high1", "high2", "middle", "half", "low"]


def test_each_ten_minutes_are_a_step_of_priority() -> None:
    scheduler = Scheduler()
    scheduler.request(request("old", 1), 0)
    scheduler.request(request("newer", 2), AGEING_SECONDS - 1)
    scheduler.request(request("newest", 2), AGEING_SECONDS + 1)
    assert served(scheduler, 3) == ["newer", "old", "newest"]


def test_equal_after_ageing_is_first_come_first_served() -> None:
    scheduler = Scheduler()
    scheduler.request(request("old", 1), 0)
    scheduler.request(request("new", 2), AGEING_SECONDS)
    assert served(scheduler, 2) == ["old", "new"]


def test_a_low_priority_is_served_under_an_endless_stream_of_high_ones() -> None:
    """One resource every 10 s, one request of priority 10 every 5 s: the line grows for ever."""
    scheduler = Scheduler()
    scheduler.request(request("low", 0), 0)
    now = 0.0
    for n in range(100_000):
        scheduler.request(request(f"high{n}", 10), now)
        now += 5
        if n % 2 and served(scheduler, 1) == ["low"]:
            break
    else:
        pytest.fail("starved")
    # It is served before all that arrived more than ten steps of ageing after it; those before it take twice as long.
    assert now <= 10 * AGEING_SECONDS * 2 + 10


@given(
    st.floats(-10, 10),
    st.lists(st.tuples(st.floats(0, 5000), st.floats(-10, 10), st.integers(1, 3), st.integers(0, 2)), max_size=60),
)
def test_waiting_is_bounded(priority: float, stream: list[tuple[float, float, int, int]]) -> None:
    """Nobody who comes later than all the steps between them take in ageing is served before."""
    scheduler = Scheduler()
    scheduler.request(request("low", priority), 0)
    now, number = 0.0, 0
    arrivals: dict[str, tuple[float, float]] = {}
    for gap, other, requests, resources in stream:
        now += gap
        for _ in range(requests):
            number += 1
            arrivals[f"r{number}"] = (now, other)
            scheduler.request(request(f"r{number}", other), now)
        for name in served(scheduler, resources):
            if name == "low":
                return
            came, theirs = arrivals[name]
            assert came <= AGEING_SECONDS * (theirs - priority) + 1e-6


def test_time_does_not_go_back() -> None:
    scheduler = Scheduler()
    scheduler.request(request("first"), 100)
    scheduler.request(request("second"), 50)
    assert served(scheduler, 2) == ["first", "second"]


def test_keys_are_apart_and_may_hold_colons() -> None:
    scheduler = Scheduler()
    scheduler.put(resource("a", key="127.0.0.1:5555"))
    scheduler.request(request("r", key="127.0.0.1"), 0)
    assert queues(scheduler) == {"127.0.0.1:5555": (1, 0), "127.0.0.1": (0, 1)}
    assert pair(scheduler.request(request("s", key="127.0.0.1:5555"), 0)) == ("s", "a")


@pytest.mark.parametrize("priority", [math.nan, math.inf, -math.inf, 1e308, 10**400, "1", None, [1]])
def test_priorities_that_are_no_number(priority: Any) -> None:
    scheduler = Scheduler()
    with pytest.raises(ValueError, match="priority"):
        scheduler.request(request("r", priority), 0)
    assert scheduler.waiting == 0
    assert scheduler.outstanding("r") == 0


@pytest.mark.parametrize("priority", [True, 0, -3, 10**30, 1e300, 0.5, sys.float_info.min])
def test_priorities_that_are(priority: float) -> None:
    scheduler = Scheduler()
    for name in ("a", "b", "c"):
        scheduler.request(request(name, priority), 1000)
    assert served(scheduler, 3) == ["a", "b", "c"]


def test_cancelled_requests_are_passed_over() -> None:
    scheduler = Scheduler()
    wishes = [request(name) for name in "abc"]
    for wish in wishes:
        scheduler.request(wish, 0)
    assert scheduler.cancel(wishes[0])
    assert not scheduler.cancel(wishes[0])
    assert served(scheduler, 2) == ["b", "c"]
    assert not scheduler.cancel(wishes[1])
    assert queues(scheduler) == {"k": (0, 0)}


def test_an_owner_that_goes_takes_its_unused_resources_along() -> None:
    scheduler = Scheduler()
    for n in range(3):
        scheduler.put(resource(f"a{n}", "a"))
        scheduler.put(resource(f"b{n}", "b"))
    assert pair(scheduler.request(request("r"), 0)) == ("r", "a0")
    assert scheduler.unused("a") == ["k:a1", "k:a2"]
    scheduler.drop("a")
    assert scheduler.unused("a") == []
    assert [pair(scheduler.request(request("r"), 0)) for _ in range(4)] == [("r", "b0"), ("r", "b1"), ("r", "b2"), None]


def test_a_requester_that_goes_waits_no_more() -> None:
    scheduler = Scheduler()
    for key in ("k", "l"):
        scheduler.request(request("gone", key=key), 0)
        scheduler.request(request("stays", key=key), 0)
    scheduler.drop("gone")
    assert served(scheduler, 2) == ["stays"]
    assert served(scheduler, 2, "l") == ["stays"]


def test_a_declined_resource_goes_to_the_next_and_stays_first_in_line() -> None:
    scheduler = Scheduler()
    for name in ("gone", "next"):
        scheduler.request(request(name), 0)
    scheduler.request(request("gone's other", requester="gone", key="l"), 0)
    match = scheduler.put(resource("a"))
    assert pair(match) == ("gone", "a")
    assert match is not None
    assert pair(scheduler.decline(match)) == ("next", "a")
    assert queues(scheduler)["l"] == (0, 0)

    match = scheduler.put(resource("b"))
    assert match is None
    match = scheduler.request(request("gone"), 0)
    assert match is not None
    scheduler.put(resource("c"))
    assert scheduler.decline(match) is None
    assert scheduler.unused("server") == ["k:c", "k:b"]
    assert pair(scheduler.request(request("r"), 0)) == ("r", "b")


def test_a_request_whose_resource_is_dead_stays_first_in_line() -> None:
    scheduler = Scheduler()
    scheduler.request(request("first", 5), 0)
    scheduler.request(request("second", 100), 0)
    match = scheduler.put(resource("x", "lives"))
    assert pair(match) == ("second", "x")
    match = scheduler.put(resource("a", "dead"))
    assert pair(match) == ("first", "a")
    assert match is not None
    scheduler.put(resource("b", "dead"))
    assert scheduler.resume(match) is None
    scheduler.request(request("third", 1000), 1)
    assert pair(scheduler.put(resource("c", "lives"))) == ("first", "c")
    assert scheduler.unused("dead") == []


def test_who_offers_and_asks_at_once_may_go_too() -> None:
    scheduler = Scheduler()
    scheduler.put(resource("a", "both"))
    match = scheduler.request(request("r", requester="both"), 0)
    assert match is not None
    assert scheduler.decline(match) is None
    assert queues(scheduler) == {"k": (0, 0)}
    scheduler.put(resource("a", "both"))
    match = scheduler.request(request("r", requester="both"), 0)
    assert match is not None
    assert scheduler.resume(match) is None
    assert queues(scheduler) == {"k": (0, 0)}


def test_the_same_match_key_is_one_resource() -> None:
    scheduler = Scheduler()
    scheduler.put(resource("a"))
    assert scheduler.offers("server", "k:a")
    assert scheduler.put(resource("a")) is None
    assert queues(scheduler) == {"k": (1, 0)}
    scheduler.put(resource("a", "another"))  # whose it is matters
    assert queues(scheduler) == {"k": (2, 0)}


def test_idle_keys_are_remembered_but_not_without_end() -> None:
    scheduler = Scheduler(idle_keys=3)
    for n in range(6):
        wish = request("r", key=f"k{n}")
        scheduler.request(wish, 0)
        if n != 1:
            scheduler.cancel(wish)
    assert list(queues(scheduler)) == ["k1", "k3", "k4", "k5"]
    scheduler.request(request("r", key="k3"), 0)
    scheduler.drop("r")
    assert set(queues(scheduler)) == {"k1", "k3", "k5"}


def test_cancelled_requests_are_not_kept() -> None:
    scheduler = Scheduler()
    for n in range(1000):
        scheduler.request(request(f"stays{n}"), n)
    for n in range(20_000):
        wish = request(f"goes{n}", 0)
        scheduler.request(wish, n)
        scheduler.cancel(wish)
    queue = scheduler._queues["k"]
    assert len(queue.heap) < 2500
    for _ in range(1000):
        served(scheduler, 1)
    assert not queue.heap
    assert not scheduler._wishes
    assert not scheduler._unused


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e7)), max_size=30))
def test_whoever_waits_is_overtaken_only_by_those_of_more_priority_or_age(wishes: list[tuple[float, float]]) -> None:
    scheduler = Scheduler()
    wishes.sort(key=lambda wish: wish[1])
    for number, (priority, arrival) in enumerate(wishes):
        scheduler.request(Request(number, "k", priority, number), arrival)
    order = served(scheduler, len(wishes))
    assert sorted(order) == list(range(len(wishes)))
    for before, after in itertools.pairwise(order):
        gain = wishes[before][0] - wishes[after][0]
        lead = (wishes[after][1] - wishes[before][1]) / AGEING_SECONDS
        assert gain + lead >= -1e-3
