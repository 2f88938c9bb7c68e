# SPDX-License-Identifier: Apache-2.0
"""The handle table against a model."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from rpcflow.session.handles import HandleError, HandleTable, Kind


def test_a_number_dies_with_its_last_reference() -> None:
    table = HandleTable()
    thing = object()
    number = table.add(Kind.OBJECT, thing, "thing")
    table.get(number).references += 1
    assert table.release(number, Kind.OBJECT).references == 1
    assert table.get(number).obj is thing
    assert table.release(number, Kind.OBJECT).references == 0
    for use in (table.get, lambda n: table.release(n, *Kind)):
        with pytest.raises(HandleError) as error:
            use(number)
        assert error.value.handle == number
    assert len(table) == 0


def test_a_slot_used_again_gets_another_number() -> None:
    table = HandleTable()
    seen = set()
    for _ in range(100):
        number = table.add(Kind.OBJECT, None)
        assert number not in seen
        assert 0 < number < 1 << 62
        seen.add(number)
        table.release(number, Kind.OBJECT)
    for number in seen:
        with pytest.raises(HandleError):
            table.get(number)


def test_another_kind_is_refused_and_left_alone() -> None:
    table = HandleTable()
    number = table.add(Kind.MEMORY, b"")
    with pytest.raises(HandleError, match="stands for a memory, not a function or module"):
        table.release(number, Kind.FUNCTION, Kind.MODULE)
    assert table.get(number).references == 1


@given(st.integers(0, (1 << 64) - 1))
def test_forged(number: int) -> None:
    table = HandleTable()
    live = [table.add(Kind.OBJECT, i) for i in range(4)]
    table.release(live[1], Kind.OBJECT)
    if number in live and number != live[1]:
        return
    with pytest.raises(HandleError):
        table.get(number)


def test_cleared() -> None:
    table = HandleTable()
    number = table.add(Kind.OBJECT, None)
    table.clear()
    assert len(table) == 0
    with pytest.raises(HandleError):
        table.get(number)


class TableAgainstModel(RuleBasedStateMachine):
    """A dict that never forgets is the model: number -> (kind, object, references)."""

    live = Bundle("live")
    dead = Bundle("dead")

    def __init__(self) -> None:
        super().__init__()
        self.table = HandleTable()
        self.model: dict[int, list[Any]] = {}
        self.given: set[int] = set()

    @rule(target=live, kind=st.sampled_from(Kind), label=st.text(max_size=3))
    def add(self, kind: Kind, label: str) -> int:
        thing = object()
        number = self.table.add(kind, thing, label)
        assert number not in self.given
        self.given.add(number)
        self.model[number] = [kind, thing, 1]
        return number

    @rule(number=live)
    def refer(self, number: int) -> None:
        self.table.get(number).references += 1
        self.model[number][2] += 1

    @rule(number=live, kinds=st.sets(st.sampled_from(Kind), min_size=1))
    def get(self, number: int, kinds: set[Kind]) -> None:
        kind, thing, references = self.model[number]
        if kind in kinds:
            entry = self.table.get_kind(number, *kinds)
            assert entry.obj is thing
            assert entry.references == references
        else:
            with pytest.raises(HandleError):
                self.table.get_kind(number, *kinds)

    @rule(number=live, kinds=st.sets(st.sampled_from(Kind), min_size=1))
    def release_as_another_kind(self, number: int, kinds: set[Kind]) -> None:
        kinds.discard(self.model[number][0])
        with pytest.raises(HandleError):
            self.table.release(number, *kinds)

    @rule(target=dead, number=consumes(live))
    def release(self, number: int) -> Any:
        kind, thing, references = self.model.pop(number)
        for left in reversed(range(references)):
            entry = self.table.release(number, kind)
            assert entry.obj is thing
            assert entry.references == left
        return number

    @rule(number=dead)
    def use_of_the_dead(self, number: int) -> None:
        with pytest.raises(HandleError):
            self.table.release(number, *Kind)

    @rule(number=st.integers(0, (1 << 64) - 1), near=live, by=st.integers(-2, 2))
    def forge(self, number: int, near: int, by: int) -> None:
        for made in (number, near + by, near ^ 1 << 32, near & 0xFFFFFFFF, near | 1 << 63):
            if made not in self.model:
                with pytest.raises(HandleError):
                    self.table.get(made)

    @invariant()
    def counted(self) -> None:
        assert len(self.table) == len(self.model)


TestTableAgainstModel = TableAgainstModel.TestCase
