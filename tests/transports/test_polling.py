# SPDX-License-Identifier: Apache-2.0
"""When to look again before sleeping: decided by what happened, so tested without a clock."""

import pytest

from rpcflow.transports import polling
from rpcflow.transports.polling import AdaptivePolling


class Machine:
    """The time, and how often the kernel took the processor from us."""

    now = 1000.0
    preemptions = 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(polling.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(polling, "_preemptions", lambda: made.preemptions)
    monkeypatch.setattr(polling.os, "cpu_count", lambda: 4)
    return made


def skipped(adaptive: AdaptivePolling) -> int:
    """How many receives go by before the next look."""
    count = 0
    while not adaptive.worthwhile():
        count += 1
        assert count < 1000
    return count


def test_goes_on_while_it_pays(machine: Machine) -> None:
    adaptive = AdaptivePolling()
    for _ in range(500):
        assert adaptive.worthwhile()
        adaptive.hit()


def test_misses_make_it_rarer_up_to_a_bound(machine: Machine) -> None:
    adaptive = AdaptivePolling()
    assert adaptive.worthwhile()
    gaps = []
    for _ in range(9):
        adaptive.miss()
        gaps.append(skipped(adaptive))
    assert gaps == [4, 16, 64, 256, 256, 256, 256, 256, 256]


def test_hits_bring_it_back_by_halves(machine: Machine) -> None:
    adaptive = AdaptivePolling()
    for _ in range(2):
        adaptive.miss()
        skipped(adaptive)
    gaps = []
    for _ in range(6):
        adaptive.hit()
        gaps.append(skipped(adaptive))
    assert gaps == [8, 4, 2, 1, 0, 0]
    adaptive.miss()
    assert skipped(adaptive) == 4


def test_one_miss_among_many_hits_is_soon_forgiven(machine: Machine) -> None:
    adaptive = AdaptivePolling()
    looks = 0
    for i in range(1000):
        if adaptive.worthwhile():
            looks += 1
            adaptive.miss() if i % 50 == 5 else adaptive.hit()
    assert looks > 800


def test_where_half_of_the_looks_fail_there_are_few(machine: Machine) -> None:
    adaptive = AdaptivePolling()
    looks = 0
    for _ in range(10000):
        if adaptive.worthwhile():
            looks += 1
            adaptive.miss() if looks % 2 else adaptive.hit()
    assert looks < 500


def test_turned_off(machine: Machine) -> None:
    assert not any(AdaptivePolling(False).worthwhile() for _ in range(100))


def test_off_where_there_is_one_processor(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, None):
        monkeypatch.setattr(polling.os, "cpu_count", lambda count=count: count)
        assert not AdaptivePolling().worthwhile()
        assert not AdaptivePolling(True).worthwhile()


def test_pauses_where_others_want_the_processor(machine: Machine) -> None:
    adaptive = AdaptivePolling()
    for _ in range(1000):
        machine.preemptions += 1
        if not adaptive.worthwhile():
            break
        adaptive.hit()
    else:
        pytest.fail("it never paused")
    machine.now += polling._PAUSE / 2
    assert not adaptive.worthwhile()
    machine.now += polling._PAUSE
    assert adaptive.worthwhile()  # and looks whether it is still so from here on
    for _ in range(1000):
        adaptive.hit()
        assert adaptive.worthwhile()


def test_some_preemption_is_nothing_to_mind(machine: Machine) -> None:
    adaptive = AdaptivePolling()
    for i in range(1000):
        machine.preemptions += i % 16 == 0
        assert adaptive.worthwhile()
        adaptive.hit()


def test_the_kernels_count_is_read() -> None:
    assert polling._preemptions() >= 0
