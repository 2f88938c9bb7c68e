# SPDX-License-Identifier: Apache-2.0
"""Who meets whom: examples, and properties under any order of coming, going and waiting."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rpcflow.protocol.handshake import Answer, Side
from rpcflow.proxy.pairing import (
    UNUSED_SECONDS,
    Matched,
    PlainPairing,
    Refused,
    TrackedPairing,
    Waits,
    random_part,
)

SIDES = [Side.CLIENT, Side.SERVER]


def counted() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"secret{next(numbers)}"


# ---------------------------------------------------------------------------------------------- plain


@pytest.mark.parametrize("first", SIDES)
def test_whoever_comes_first_waits(first: Side) -> None:
    second = SIDES[1 - SIDES.index(first)]
    pairing: PlainPairing[str] = PlainPairing(7, 11)
    assert pairing.partner(second, "k") is None
    assert pairing.arrive("a", first, "k", 100) == Waits(107 if first is Side.CLIENT else 111)
    assert pairing.partner(second, "k") == "a"
    assert pairing.arrive("b", second, "k", 101) == Matched("a")
    assert len(pairing) == 0
    assert not pairing.leave("a")
    assert not pairing.leave("b")


def test_one_of_a_side_waits_under_a_key() -> None:
    pairing: PlainPairing[str] = PlainPairing(7, 11)
    pairing.arrive("a", Side.CLIENT, "k", 0)
    assert pairing.arrive("b", Side.CLIENT, "k", 0) == Refused(Answer.DUPLICATE)
    assert isinstance(pairing.arrive("c", Side.CLIENT, "other", 0), Waits)
    assert pairing.leave("a")
    assert isinstance(pairing.arrive("b", Side.CLIENT, "k", 0), Waits)


@pytest.mark.parametrize("key", ["", "k", "127.0.0.1:5555", "ключ"])
def test_any_key(key: str) -> None:
    pairing: PlainPairing[str] = PlainPairing(7, 11)
    pairing.arrive("a", Side.SERVER, key, 0)
    assert pairing.arrive("b", Side.CLIENT, key, 0) == Matched("a")


class Plain(RuleBasedStateMachine):
    """Compared with a list of who waits, kept in the simplest way."""

    def __init__(self) -> None:
        super().__init__()
        self.pairing: PlainPairing[int] = PlainPairing(5, 8)
        self.now = 0.0
        self.numbers = itertools.count()
        self.waiting: dict[int, tuple[Side, str, float]] = {}
        self.met: set[int] = set()

    @rule(side=st.sampled_from(SIDES), key=st.sampled_from(["", "a", "b"]))
    def arrive(self, side: Side, key: str) -> None:
        peer = next(self.numbers)
        opposite = [p for p, (s, k, _) in self.waiting.items() if k == key and s is not side]
        same = [p for p, (s, k, _) in self.waiting.items() if k == key and s is side]
        arrival = self.pairing.arrive(peer, side, key, self.now)
        if opposite:
            assert arrival == Matched(opposite[0])
            del self.waiting[opposite[0]]
            assert not {peer, opposite[0]} & self.met
            self.met |= {peer, opposite[0]}
        elif same:
            assert arrival == Refused(Answer.DUPLICATE)
        else:
            deadline = self.now + (5 if side is Side.CLIENT else 8)
            assert arrival == Waits(deadline)
            self.waiting[peer] = (side, key, deadline)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.waiting:
            peer = data.draw(st.sampled_from(sorted(self.waiting)))
            assert self.pairing.leave(peer)
            del self.waiting[peer]

    @rule(data=st.data())
    def leave_twice(self, data: st.DataObject) -> None:
        if self.met:
            assert not self.pairing.leave(data.draw(st.sampled_from(sorted(self.met))))

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        """What the service does when deadlines pass."""
        self.now += seconds
        for peer, (_, _, deadline) in list(self.waiting.items()):
            if deadline <= self.now:
                assert self.pairing.leave(peer)
                del self.waiting[peer]

    @invariant()
    def nobody_is_lost_and_none_is_too_many(self) -> None:
        assert len(self.pairing) == len(self.waiting)
        for peer, (side, key, _) in self.waiting.items():
            assert self.pairing.partner(SIDES[1 - SIDES.index(side)], key) == peer


TestPlain = Plain.TestCase


# ---------------------------------------------------------------------------------------------- with a tracker


def tracked() -> TrackedPairing[str]:
    return TrackedPairing(counted())


def test_secrets_have_no_colon_and_are_not_alike() -> None:
    made = {random_part() for _ in range(1000)}
    assert len(made) == 1000
    assert not any(":" in part or len(part) < 20 for part in made)


def test_a_server_waits_under_a_match_key() -> None:
    pairing = tracked()
    assert pairing.arrive("s", Side.SERVER, "k:1", 0) == Waits(None)
    assert pairing.puts() == [("k:1", "k:1:secret0")]
    pairing.was_put("k:1:secret0")
    assert pairing.puts() == []
    for wrong in ("k:1", "k:1:", "secret0", ""):
        assert pairing.arrive("c", Side.CLIENT, wrong, 0) == Refused(Answer.MISMATCH)
    assert pairing.arrive("c", Side.CLIENT, "k:1:secret0", 0) == Matched("s")
    assert pairing.arrive("d", Side.CLIENT, "k:1:secret0", 0) == Refused(Answer.MISMATCH)
    pairing.was_put("k:1:secret0")  # the tracker's answer is later than the client


def test_servers_of_one_key_wait_side_by_side() -> None:
    pairing = tracked()
    for name in ("s", "t"):
        assert pairing.arrive(name, Side.SERVER, "k", 0) == Waits(None)
    assert [pairing.partner(Side.CLIENT, place) for _, place in pairing.puts()] == ["s", "t"]


def test_the_name_is_told_when_it_changes() -> None:
    pairing = tracked()
    assert pairing.name() == "server:proxy[]"
    assert pairing.name() is None
    pairing.arrive("s", Side.SERVER, "a", 0)
    assert pairing.name() == "server:proxy[a]"
    pairing.arrive("t", Side.SERVER, "a", 0)
    assert pairing.name() is None
    pairing.arrive("u", Side.SERVER, "b", 0)
    assert pairing.name() == "server:proxy[a,b]"
    pairing.connected()
    assert pairing.name() == "server:proxy[a,b]"


def test_the_name_does_not_grow_for_ever() -> None:
    pairing = tracked()
    for number in range(1000):
        pairing.arrive(f"s{number}", Side.SERVER, f"k{number}", 0)
    name = pairing.name()
    assert name is not None
    assert name.count(",") == 255
    assert name.endswith(",k999]")


def test_a_key_taken_and_not_used_is_replaced() -> None:
    pairing = tracked()
    pairing.arrive("s", Side.SERVER, "k", 0)
    pairing.pending([], 1)  # not known to the tracker yet: that it does not list it means nothing
    pairing.pending([], 20)
    (old,) = [place for _, place in pairing.puts()]
    pairing.was_put(old)
    pairing.pending([old], 21)
    pairing.pending([], 22)
    pairing.pending([], 22 + UNUSED_SECONDS - 0.01)
    assert pairing.puts() == []
    pairing.pending([old], 28)  # so it had not been taken
    pairing.pending([], 30)
    pairing.pending([], 30 + UNUSED_SECONDS)
    ((key, new),) = pairing.puts()
    assert key == "k"
    assert new != old
    assert new.startswith("k:")
    assert pairing.arrive("c", Side.CLIENT, old, 40) == Refused(Answer.MISMATCH)
    assert pairing.arrive("c", Side.CLIENT, new, 40) == Matched("s")


def test_a_new_tracker_is_told_everything_under_new_keys() -> None:
    pairing = tracked()
    pairing.arrive("s", Side.SERVER, "k", 0)
    ((_, old),) = pairing.puts()
    pairing.was_put(old)
    pairing.connected()
    ((key, new),) = pairing.puts()
    assert key == "k"
    assert new != old
    assert pairing.partner(Side.CLIENT, old) is None
    assert pairing.partner(Side.CLIENT, new) == "s"
    assert pairing.leave("s")
    assert pairing.puts() == []


class Tracked(RuleBasedStateMachine):
    """With a tracker that hands out what it was told, to clients who come, or do not."""

    def __init__(self) -> None:
        super().__init__()
        self.pairing: TrackedPairing[int] = TrackedPairing(counted())
        self.now = 0.0
        self.numbers = itertools.count()
        self.waiting: dict[int, str] = {}
        self.offered: set[str] = set()
        self.handed_out: set[str] = set()

    @rule(key=st.sampled_from(["a", "a:b"]))
    def server(self, key: str) -> None:
        peer = next(self.numbers)
        assert self.pairing.arrive(peer, Side.SERVER, key, self.now) == Waits(None)
        self.waiting[peer] = key

    @rule()
    def put(self) -> None:
        for key, place in self.pairing.puts():
            assert place.rpartition(":")[0] == key
            self.offered.add(place)
            self.pairing.was_put(place)

    @rule(data=st.data())
    def request(self, data: st.DataObject) -> None:
        if self.offered:
            place = data.draw(st.sampled_from(sorted(self.offered)))
            self.offered.remove(place)
            self.handed_out.add(place)

    @rule(data=st.data())
    def client(self, data: st.DataObject) -> None:
        if self.handed_out:
            place = data.draw(st.sampled_from(sorted(self.handed_out)))
            arrival = self.pairing.arrive(next(self.numbers), Side.CLIENT, place, self.now)
            if isinstance(arrival, Matched):
                assert self.waiting.pop(arrival.peer) == place.rpartition(":")[0]
                self.handed_out.remove(place)
            else:
                assert arrival == Refused(Answer.MISMATCH)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.waiting:
            peer = data.draw(st.sampled_from(sorted(self.waiting)))
            del self.waiting[peer]
            assert self.pairing.leave(peer)

    @rule(seconds=st.floats(0, 10))
    def poll(self, seconds: float) -> None:
        self.now += seconds
        self.pairing.pending(self.offered, self.now)

    @rule()
    def tracker_dies(self) -> None:
        self.offered.clear()
        self.pairing.connected()

    @invariant()
    def nobody_is_lost(self) -> None:
        """Whatever the tracker and its clients do: after two polls, six seconds apart, all who wait are on offer."""
        assert len(self.pairing) == len(self.waiting)

    def teardown(self) -> None:
        self.put()
        for _ in range(2):
            self.pairing.pending(self.offered, self.now)
            self.now += UNUSED_SECONDS + 1
        self.pairing.pending(self.offered, self.now)
        self.put()
        on_offer = [self.pairing.partner(Side.CLIENT, place) for place in sorted(self.offered)]
        assert sorted(peer for peer in on_offer if peer is not None) == sorted(self.waiting)


TestTracked = Tracked.TestCase


def test_a_key_that_somebody_comes_with_outlives_the_tracker() -> None:
    pairing = tracked()
    pairing.arrive("s", Side.SERVER, "k", 0)
    ((_, old),) = pairing.puts()
    pairing.was_put(old)
    pairing.pending([], 1)
    pairing.connected()
    assert pairing.puts() == []
    assert pairing.partner(Side.CLIENT, old) == "s"
    pairing.pending([], 1 + UNUSED_SECONDS)
    ((_, new),) = pairing.puts()
    assert new != old


def test_what_the_tracker_offers_of_servers_that_have_left() -> None:
    pairing = tracked()
    pairing.arrive("s", Side.SERVER, "k", 0)
    ((_, key),) = pairing.puts()
    pairing.was_put(key)
    assert not pairing.stale([key])
    assert not pairing.stale([])
    pairing.leave("s")
    assert pairing.stale([key])
