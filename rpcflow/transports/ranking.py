# SPDX-License-Identifier: Apache-2.0
"""Who has the most of something, kept up to date in constant time however many there are."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Member = TypeVar("Member", bound=Hashable)


class Ranking(Generic[Member]):
    """A count for each member; one whose count is 0 is forgotten."""

    def __init__(self) -> None:
        self._counts: dict[Member, int] = {}
        self._levels: dict[int, OrderedDict[Member, None]] = {}
        self._most = 0

    def __len__(self) -> int:
        return len(self._counts)

    def __getitem__(self, member: Member) -> int:
        return self._counts.get(member, 0)

    @property
    def most(self) -> int:
        """The highest count; 0 if there is no member."""
        return self._most

    def first(self) -> Member:
        """A member with the highest count: of several, who has had it for longest.

        Raises:
            KeyError: there is no member.
        """
        return next(iter(self._levels[self._most]))

    def add(self, member: Member) -> None:
        """One more."""
        self._move(member, 1)

    def remove(self, member: Member) -> None:
        """One fewer; it must have had one."""
        assert member in self._counts
        self._move(member, -1)

    def _move(self, member: Member, step: int) -> None:
        before = self._counts.get(member, 0)
        count = before + step
        if before:
            level = self._levels[before]
            del level[member]
            if not level:
                del self._levels[before]
        if count:
            self._counts[member] = count
            self._levels.setdefault(count, OrderedDict())[member] = None
        else:
            del self._counts[member]
        # Counts change by one: where the highest level has emptied, its last member stands on the one below.
        if count > self._most or (before == self._most and before not in self._levels):
            self._most = count
