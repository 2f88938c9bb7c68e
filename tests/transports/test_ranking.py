# SPDX-License-Identifier: Apache-2.0
"""Who has the most, against counting anew each time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.transports.ranking import Ranking


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcd"))))
def test_first_is_one_of_those_with_the_most(steps: list[tuple[bool, str]]) -> None:
    ranking: Ranking[str] = Ranking()
    counts: Counter[str] = Counter()
    for more, member in steps:
        if more:
            ranking.add(member)
            counts[member] += 1
        elif counts[member]:
            ranking.remove(member)
            counts[member] -= 1
        counts = +counts
        assert ranking.most == max(counts.values(), default=0)
        assert len(ranking) == len(counts)
        assert all(ranking[member] == counts[member] for member in "abcd")
        if counts:
            assert counts[ranking.first()] == ranking.most
        else:
            with pytest.raises(KeyError):
                ranking.first()


def test_of_equals_who_came_there_first() -> None:
    ranking: Ranking[str] = Ranking()
    for member in "abab":
        ranking.add(member)
    assert ranking.first() == "a"
    ranking.add("b")
    assert ranking.first() == "b"
    ranking.add("a")
    assert ranking.first() == "b"
