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
    assert gaps == [1, 2, 4, 8, 16, 32, 64, 64, 64]


def test_a_hit_brings_it_back(machine: Machine) -> None:
    adaptive = AdaptivePolling()
    for _ in range(5):
        adaptive.miss()
        skipped(adaptive)
    adaptive.hit()
    assert adaptive.worthwhile()
    adaptive.miss()
    assert skipped(adaptive) == 1


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
