# SPDX-License-Identifier: Apache-2.0
"""Who gets in, who gives way, and what is said of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from rpcflow.transports import admission, descriptors
from rpcflow.transports.admission import LOCAL, Admission, Shed, Ticket, network

GRACE = 2.0
ADDRESSES = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", ""]


@attrs.define(eq=False)
class Visit:
    """A connection, as its owner has it."""

    address: str
    since: float = 0.0
    stranger: bool = True
    inside: bool = False
    drops: int = 0
    ticket: Ticket | None = None

    def drop(self) -> None:
        self.drops += 1
        assert self.ticket is not None
        self.ticket.leave()  # as whoever closes a socket does


class AdmissionMachine(RuleBasedStateMachine):
    """Beside a model that looks at everybody each time."""

    visits: Bundle[Visit] = Bundle("visits")

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.admission = Admission(9, 6, 5, 4, grace=GRACE, clock=lambda: self.now)
        self.inside: list[Visit] = []
        self.shed: Counter[Shed] = Counter()

    def of(self, address: str, strangers: bool = False) -> list[Visit]:
        return [visit for visit in self.inside if visit.address == address and (visit.stranger or not strangers)]

    @property
    def strangers(self) -> list[Visit]:
        return [visit for visit in self.inside if visit.stranger]

    def cause(self, address: str) -> Shed | None:
        if address and len(self.of(address)) >= 5:
            return Shed.ADDRESS
        if address and len(self.of(address, True)) >= 4:
            return Shed.ADDRESS_STRANGERS
        if len(self.strangers) >= 6:
            return Shed.STRANGERS
        return Shed.FULL if len(self.inside) >= 9 else None

    @rule(target=visits, address=st.sampled_from(ADDRESSES))
    def enter(self, address: str) -> Visit:
        visit = Visit(address, self.now)
        before = list(self.inside)
        own = len(self.of(address, True))
        counts = Counter(stranger.address for stranger in self.strangers)
        most = max(counts.values(), default=0)
        cause = self.cause(address)
        visit.ticket = self.admission.enter(address, visit.drop)
        dropped = [other for other in before if other.drops]
        self.inside = [other for other in before if not other.drops]
        for other in dropped:
            assert other.stranger, "who is known is never dropped for a stranger"
            other.inside = False
        if visit.ticket is not None:
            visit.inside = True
            self.inside.append(visit)
        if cause is None:
            assert visit.ticket is not None
            assert not dropped
            return visit
        assert len(dropped) == (visit.ticket is not None), "one gives way, and only for who gets in"
        if dropped:
            (victim,) = dropped
            self.shed[Shed.GAVE_WAY] += 1
            same = [other for other in before if other.stranger and other.address == victim.address]
            assert victim is same[0], "the oldest of its address"
            if cause in (Shed.ADDRESS, Shed.ADDRESS_STRANGERS):
                assert victim.address == address
                assert self.now - victim.since >= GRACE
            elif most > own + 1:
                assert counts[victim.address] == most
            else:
                assert self.now - victim.since >= GRACE
                assert victim.since == min(other.since for other in before if other.stranger)
        else:
            self.shed[cause] += 1
            if cause in (Shed.STRANGERS, Shed.FULL):
                assert most <= own + 1, "an address with few gets in while another has many"
        return visit

    @rule(visit=visits)
    def known(self, visit: Visit) -> None:
        if visit.ticket is not None:
            assert visit.ticket.known() is visit.inside
            visit.stranger = visit.stranger and not visit.inside

    @rule(visit=consumes(visits), times=st.integers(1, 3))
    def leave(self, visit: Visit, times: int) -> None:
        for _ in range(times):
            if visit.ticket is not None:
                visit.ticket.leave()
        if visit.inside:
            self.inside.remove(visit)
            visit.inside = False

    @rule(visit=visits)
    def leave_and_stay_around(self, visit: Visit) -> None:
        self.leave(visit, 1)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def report(self) -> None:
        report = self.admission.report()
        assert (report is None) == (not self.shed)
        for cause, number in self.shed.items():
            assert report is not None
            assert cause in report
            assert f"{number} connection" in report
        self.shed.clear()
        assert self.admission.report() is None

    @invariant()
    def counts_are_right(self) -> None:
        assert len(self.admission) == len(self.inside) <= 9
        assert self.admission.strangers == len(self.strangers) <= 6
        for address in ADDRESSES[:-1]:
            assert len(self.of(address)) <= 5
            assert len(self.of(address, True)) <= 4
        assert self.admission.shed == self.shed
        assert all(visit.drops <= 1 for visit in self.inside)

    def teardown(self) -> None:
        for visit in self.inside:
            assert visit.ticket is not None
            visit.ticket.leave()
        left = self.admission
        assert (len(left), left.strangers) == (0, 0)
        assert not left._of
        assert not left._strangers
        assert len(left._ranking) == 0


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def nothing() -> None:
    pass


def full(addresses: int, each: int, clock: Callable[[], float] = lambda: 0.0) -> tuple[Admission, list[str]]:
    """Strangers' places, all taken; whoever gives way is entered in the list."""
    made = Admission(1000, addresses * each, 500, 400, clock=clock)
    dropped: list[str] = []
    for number in range(addresses * each):
        address = f"127.1.0.{number % addresses}"

        def drop(address: str = address) -> None:
            dropped.append(address)

        assert made.enter(address, drop) is not None
    return made, dropped


def test_however_many_others_hold_one_with_few_gets_in() -> None:
    made, dropped = full(20, 20)
    for _ in range(18):
        assert made.enter("127.0.0.1", nothing) is not None
    assert sorted(dropped) == sorted(f"127.1.0.{number}" for number in range(18)), "each address gave one"
    assert made.strangers == 400


def test_equals_are_refused_until_their_time_is_over() -> None:
    now = 0.0
    made, dropped = full(8, 1, lambda: now)
    assert made.enter("127.0.0.1", nothing) is None
    now = admission.GRACE_SECONDS
    assert made.enter("127.0.0.1", nothing) is not None
    assert dropped == ["127.1.0.0"]


def test_one_address_cannot_be_held_by_idle_lines() -> None:
    """Whoever shares an address with somebody who opens connections and says nothing gets in after a while too."""
    now = 0.0
    made = Admission(100, 50, 50, 4, clock=lambda: now)
    dropped: list[int] = []
    for number in range(4):
        assert made.enter("10.0.0.1", lambda number=number: dropped.append(number)) is not None
    assert made.enter("10.0.0.1", nothing) is None
    now = admission.GRACE_SECONDS
    assert made.enter("10.0.0.1", nothing) is not None
    assert dropped == [0]


def test_the_known_stay() -> None:
    made = Admission(4, 2, 4, 2)
    known = []
    for number in range(4):
        ticket = made.enter(f"10.0.0.{number}", pytest.fail)
        assert ticket is not None
        assert ticket.known()
        known.append(ticket)
    assert made.enter("10.0.0.9", nothing) is None
    assert made.shed == {Shed.FULL: 1}
    known[0].leave()
    assert not known[0].known()
    assert made.enter("10.0.0.9", nothing) is not None


def test_who_was_dropped_is_told_when_it_has_finished() -> None:
    made, _ = full(1, 3)
    late = made.enter("127.1.0.0", nothing)
    assert late is None
    assert made.enter("10.0.0.1", nothing) is not None
    assert len(made) == made.strangers == 3


def test_unix_sockets_have_no_limit_of_their_own() -> None:
    made = Admission(10, 10, 2, 1)
    assert [made.enter("", nothing) is not None for _ in range(11)] == [True] * 10 + [False]
    assert made.report() == f"turned away 1 connection of {LOCAL}: {Shed.STRANGERS}"


def test_report() -> None:
    made = Admission(1000, 500, 5, 2)
    for address, times in [("127.0.0.3", 4), ("127.0.0.2", 802), ("2001:db8::1", 3), ("2001:db8::2", 4)]:
        for _ in range(times):
            made.enter(address, nothing)
    assert made.shed == {Shed.ADDRESS_STRANGERS: 2 + 800 + 5}
    assert made.report() == (f"turned away 807 connections of 127.0.0.2 and 2 more addresses: {Shed.ADDRESS_STRANGERS}")
    assert made.report() is None


def test_report_of_more_addresses_than_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_ADDRESSES", 3)
    made = Admission(1, 1, 1, 1)
    assert made.enter("10.0.0.0", nothing) is not None
    for number in range(9):
        assert made.enter(f"10.0.0.{1 + number % 5}", nothing) is None
    assert made.report() == f"turned away 9 connections of 10.0.0.1 and more than 2 more addresses: {Shed.STRANGERS}"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("fe80::2%eth0", "fe80::2%eth0"),
        ("2001:db8::5%3", "2001:db8::/64"),
        ("", LOCAL),
        ("/run/rpcflow.sock", LOCAL),
        ("a local client", LOCAL),
    ],
)
def test_what_an_address_counts_as(address: str, name: str) -> None:
    assert network(address) == name
    ticket = Admission(1, 1, 1, 1).enter(address, nothing)
    assert ticket is not None
    assert ticket.address == name


def test_limits_of_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def limit(*args: int) -> int:
        asked.append(args)
        return 800

    monkeypatch.setattr(admission, "connection_limit", limit)
    made = Admission.for_service(65_536, each=3)
    assert asked == [(65_536, 64, 3)]
    assert (made.most, made.most_strangers, made.per_address, made.strangers_per_address) == (800, 200, 400, 100)
    assert descriptors.connection_limit(8) <= 16


@pytest.mark.parametrize("limits", [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, -1)])
def test_impossible_limits(limits: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Admission(*limits)


def test_memory_is_for_who_is_in() -> None:
    """Tens of thousands of addresses come and go; nothing is left of them."""
    made = Admission(64, 32, 16, 8, clock=time.monotonic)
    for number in range(20_000):
        ticket = made.enter(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", nothing)
        if ticket is not None and number % 3:
            ticket.known()
            ticket.leave()
    assert len(made._of) == len(made) <= 64
    assert len(made._strangers) <= 32
    assert all(len(count._of) <= 1024 for count in made._shed.values())
