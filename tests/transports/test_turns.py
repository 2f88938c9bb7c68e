# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is, and how much time there is for turns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from rpcflow.transports.turns import LONGEST_SECONDS, Budget, FairTurns

MOST, EACH, KEPT = 8, 4, 2
ADDRESSES = st.sampled_from("abcd")


class TurnsMachine(RuleBasedStateMachine):
    """Beside plain lists, with how long each address has been passed over."""

    items: Bundle[int] = Bundle("items")

    def __init__(self) -> None:
        super().__init__()
        self.dropped: list[int] = []
        self.turns: FairTurns[int] = FairTurns(MOST, EACH, KEPT, self.dropped.append)
        self.waiting: dict[str, list[int]] = {}
        self.favoured: list[str] = []
        self.passed: dict[str, int] = {}
        self.numbers = 0

    def remove(self, item: int) -> bool:
        for address, items in list(self.waiting.items()):
            if item in items:
                items.remove(item)
                if not items:
                    del self.waiting[address]
                    self.passed.pop(address, None)
                return True
        return False

    @rule(target=items, address=ADDRESSES)
    def add(self, address: str) -> int:
        self.numbers += 1
        item = self.numbers
        own = len(self.waiting.get(address, ()))
        in_all = sum(map(len, self.waiting.values()))
        most = max(map(len, self.waiting.values()), default=0)
        room = own < EACH and (in_all < MOST or own + 1 < most)
        newest = {items[-1] for items in self.waiting.values() if len(items) == most}
        assert self.turns.add(address, item) is room
        if room:
            if in_all == MOST:
                (gone,) = self.dropped
                assert gone in newest, "the last one of an address that has the most goes"
                self.remove(gone)
            self.waiting.setdefault(address, []).append(item)
        assert len(self.dropped) == (room and in_all == MOST)
        self.dropped.clear()
        return item

    @rule()
    def next(self) -> None:
        item = self.turns.next()
        if item is None:
            assert not self.waiting
            return
        (address,) = [address for address, items in self.waiting.items() if item in items]
        assert self.waiting[address][0] == item, "the oldest of its address"
        for other in self.waiting:
            self.passed[other] = self.passed.get(other, 0) + 1
        self.passed[address] = 0
        self.remove(item)
        # Favour changes who shares turns with whom; at the worst an address waits for all others, each other turn.
        for other, turns in self.passed.items():
            assert turns <= 2 * 2 * len("abcd"), f"{other} is passed over"

    @rule(item=consumes(items))
    def discard(self, item: int) -> None:
        assert self.turns.discard(item) is self.remove(item)
        assert not self.turns.discard(item)

    @rule(address=ADDRESSES)
    def favour(self, address: str) -> None:
        self.turns.favour(address)
        if address in self.favoured:
            self.favoured.remove(address)
        self.favoured = [*self.favoured, address][-KEPT:]
        self.passed.clear()

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.turns) == sum(map(len, self.waiting.values()))
        assert set(self.turns._first) == self.waiting.keys() & set(self.favoured)
        assert set(self.turns._rest) == self.waiting.keys() - set(self.favoured)

    def teardown(self) -> None:
        """Everybody gets a turn in the end."""
        while self.waiting:
            self.next()
        assert self.turns.next() is None
        assert not self.turns._addresses
        assert len(self.turns._ranking) == 0


TestTurnsMachine = TurnsMachine.TestCase
TestTurnsMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_addresses_take_turns() -> None:
    turns: FairTurns[str] = FairTurns()
    for address, count in [("a", 5), ("b", 2), ("c", 1)]:
        for number in range(count):
            assert turns.add(address, f"{address}{number}")
    assert [turns.next() for _ in range(9)] == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4", None]


def test_who_came_in_properly_has_every_other_turn() -> None:
    turns: FairTurns[str] = FairTurns()
    turns.favour("friend")
    for number in range(50):
        for attacker in range(20):
            assert turns.add(f"10.0.0.{attacker}", f"{attacker}-{number}")
    for number in range(3):
        assert turns.add("friend", f"friend{number}")
    served = [turns.next() for _ in range(12)]
    assert [served[0], served[2], served[4]] == ["friend0", "friend1", "friend2"]
    assert len({item.split("-")[0] for item in [*served[1:5:2], *served[5:]] if item}) == 9, "others have theirs"


def test_one_who_comes_late_is_next_but_few() -> None:
    """However many items wait, who comes with one waits for no more than one of each address."""
    turns: FairTurns[int] = FairTurns(10_000, 1000)
    for number in range(5000):
        turns.add(str(number % 5), number)
    turns.add("late", -1)
    assert -1 in [turns.next() for _ in range(6)]


def test_a_favour_that_is_forgotten() -> None:
    turns: FairTurns[str] = FairTurns(favoured=1)
    turns.favour("a")
    turns.add("a", "a0")
    turns.add("b", "b0")
    turns.favour("b")
    turns.favour("b")
    assert [turns.next() for _ in range(3)] == ["b0", "a0", None]


def test_too_many_go_quietly_where_nobody_wants_to_know() -> None:
    turns: FairTurns[int] = FairTurns(3, 3)
    assert all(turns.add("a", number) for number in range(3))
    assert not turns.add("a", 3)
    assert turns.add("b", 4)
    assert [turns.next() for _ in range(4)] == [0, 4, 1, None]


# ---- the budget


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_budget() -> None:
    clock = Clock()
    budget = Budget(0.25, clock, burst=0.1)
    assert budget.ready_in() == 0
    budget.spent(0.1)
    assert budget.ready_in() == 0
    budget.spent(0.05)
    assert budget.ready_in() == pytest.approx(0.2)
    clock.now += 0.15
    assert budget.ready_in() == pytest.approx(0.05)
    clock.now += 100
    budget.spent(0.1)
    assert budget.ready_in() == 0, "a pause is good for the burst, and for no more"
    budget.spent(0.01)
    assert budget.ready_in() == pytest.approx(0.04)
    budget.share = 1
    assert budget.share == 1
    assert budget.ready_in() == pytest.approx(0.01)
    clock.now -= 10  # a clock that goes back gives nothing
    assert budget.ready_in() == pytest.approx(0.01)


def test_one_step_that_took_an_hour() -> None:
    budget = Budget(0.1, Clock())
    budget.spent(3600)
    assert budget.ready_in() == pytest.approx(LONGEST_SECONDS)


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_impossible_shares(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Budget(share)
    budget = Budget(0.5)
    with pytest.raises(ValueError, match="share"):
        budget.share = share
    assert budget.share == 0.5


@settings(deadline=None)
@given(
    st.sampled_from([0.1, 0.3, 0.5, 1.0]),
    st.lists(st.tuples(st.floats(0, 0.02), st.floats(0, 0.5)), min_size=1, max_size=60),
)
def test_no_more_than_the_share_is_spent(share: float, steps: list[tuple[float, float]]) -> None:
    """Of every stretch of time, but for the burst and the step that ends it."""
    clock = Clock()
    budget = Budget(share, clock)
    spent: list[tuple[float, float]] = []
    for seconds, pause in steps:
        clock.now += pause
        clock.now += budget.ready_in()
        assert budget.ready_in() == pytest.approx(0, abs=1e-9)
        clock.now += seconds
        budget.spent(seconds)
        spent.append((clock.now, seconds))
    for begin in range(len(spent)):
        for end in range(begin, len(spent)):
            time = spent[end][0] - (spent[begin][0] - spent[begin][1])
            assert sum(seconds for _, seconds in spent[begin : end + 1]) <= share * time + 0.05 + 0.02 + 1e-6
