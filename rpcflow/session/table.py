# SPDX-License-Identifier: Apache-2.0
"""Transition tables: which event is legal in which state, and where it leads.

Whatever changes a machine's state is one of these rows; the diagrams of the docs and the rules of the
stateful tests are made from the same rows.
"""

import enum
from collections.abc import Mapping
from typing import Generic, TypeVar


class Row(enum.Enum):
    """Base of states and events. Members are unique, so identity is their hash: Enum's own is several times slower,
    and tables are looked into for each packet."""

    __hash__ = object.__hash__


S = TypeVar("S", bound=enum.Enum)
E = TypeVar("E", bound=enum.Enum)


class IllegalEventError(Exception):
    """An event that the table has no row for; machines turn it into an error in their user's terms."""

    def __init__(self, state: enum.Enum, event: enum.Enum) -> None:
        super().__init__(f"{event.value} is not legal in the state '{state.value}'")
        self.state = state
        self.event = event


class Automaton(Generic[S, E]):
    """A state, and the only way to change it.

    Args:
        table: (state, event) -> next state.
        initial: where it starts.
    """

    __slots__ = ("state", "table")

    def __init__(self, table: Mapping[tuple[S, E], S], initial: S) -> None:
        self.table = table
        self.state = initial

    def can(self, event: E) -> bool:
        """Whether ``event`` is legal now."""
        return (self.state, event) in self.table

    def on(self, event: E) -> None:
        """Follow ``event``.

        Raises:
            IllegalEventError: there is no such row; the state stays.
        """
        try:
            self.state = self.table[self.state, event]
        except KeyError:
            raise IllegalEventError(self.state, event) from None
