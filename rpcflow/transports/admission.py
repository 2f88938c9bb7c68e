# SPDX-License-Identifier: Apache-2.0
"""Which connections may stay when there are too many: no address takes the places of the others.

A stranger is a connection that has not finished its handshake. Strangers cost nothing to make, so they get a part of
all places, and where that part is full, whoever has the most of them there gives way. What is counted is addresses,
because nothing else of a stranger is known; of IPv6 it is the first 64 bits, for whoever has one address of a network
there has them all.

Pure: who comes and goes is told, and sockets are closed by whoever owns them.
"""

import enum
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from .descriptors import connection_limit
from .ranking import Ranking

LOCAL: Final = "this machine"
"""What all connections by Unix sockets count as. It has no limit of its own."""
GRACE_SECONDS: Final = 2.0
"""How long a stranger is safe from others of whom nothing speaks against it but its age."""
_ADDRESSES: Final = 1024
"""Addresses that are told apart in a report."""


class Shed(enum.StrEnum):
    """Why a connection was turned away."""

    ADDRESS = "too many from there"
    ADDRESS_STRANGERS = "too many from there that do not finish the handshake"
    STRANGERS = "too many in all that do not finish the handshake"
    FULL = "too many in all"
    GAVE_WAY = "they had not finished the handshake, and gave way to others"


class Ticket:
    """A connection's place. ``address``: what it is counted under, fit for a log."""

    __slots__ = ("_admission", "_drop", "_inside", "_since", "_stranger", "address")

    def __init__(self, admission: "Admission", address: str, drop: Callable[[], None], since: float) -> None:
        self._admission = admission
        self._drop = drop
        self._inside = True
        self._stranger = True
        self._since = since
        self.address = address

    def known(self) -> bool:
        """It is no stranger any more, and from now on is not dropped; False if it has been already, or has left."""
        if self._inside and self._stranger:
            self._stranger = False
            self._admission._no_stranger(self)
        return self._inside

    def leave(self) -> None:
        """It has gone. Any number of times, also after it was dropped."""
        if self._inside:
            self._inside = False
            self._admission._gone(self)


class Admission:
    """The places of one service.

    Each operation takes constant time, and memory is taken for those who are in and little else.

    Args:
        most: how many connections there may be.
        strangers: how many of them may be strangers.
        per_address: how many one address may have.
        strangers_per_address: how many of those may be strangers.
        grace: seconds after which a stranger that is in the way of any other stranger may be dropped for it, though
            its address has no more than the other's.
        clock: seconds since whenever.

    Raises:
        ValueError: a limit below 1.
    """

    def __init__(
        self,
        most: int,
        strangers: int,
        per_address: int,
        strangers_per_address: int,
        *,
        grace: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if min(most, strangers, per_address, strangers_per_address) < 1:
            raise ValueError("each limit of an admission is 1 or more")
        self.most = most
        self.most_strangers = strangers
        self.per_address = per_address
        self.strangers_per_address = strangers_per_address
        self._grace = grace
        self._clock = clock
        self._total = 0
        self._of: dict[str, int] = {}
        self._oldest: OrderedDict[Ticket, None] = OrderedDict()
        self._strangers: dict[str, OrderedDict[Ticket, None]] = {}
        self._ranking: Ranking[str] = Ranking()
        self._shed: dict[Shed, _Count] = {}

    @classmethod
    def for_service(cls, most: int, kept: int = 64, each: int = 1) -> "Admission":
        """For a service that may hold as many connections as its descriptors allow: half of them by one address, a
        quarter of them strangers, half of those of one address. All clients of a lab may come by one address, so what
        one may have is much; that it takes nothing from others does not depend on it.

        Args:
            most, kept, each: as of :func:`~rpcflow.transports.descriptors.connection_limit`.
        """
        places = connection_limit(most, kept, each)
        strangers = max(1, places // 4)
        return cls(places, strangers, max(1, places // 2), max(1, strangers // 2))

    def __len__(self) -> int:
        return self._total

    @property
    def strangers(self) -> int:
        """How many of them are strangers."""
        return len(self._oldest)

    def enter(self, address: str, drop: Callable[[], None]) -> Ticket | None:
        """Somebody knocks.

        Args:
            address: as the system gives it; what is no IP address is a Unix socket's.
            drop: called, once at most, from another's ``enter`` if this one has to give way while it is a stranger:
                it closes the socket there and then, calls no ``enter``, and raises nothing. ``leave`` need not follow.

        Returns:
            Its place; None if it is to be closed at once.
        """
        name = network(address)
        own = self._ranking[name]
        cause = self._in_the_way(name, own)
        if cause is not None:
            victim = self._victim(name, own, cause)
            if victim is None:
                self._count(cause, name)
                return None
            victim.leave()
            self._count(Shed.GAVE_WAY, victim.address)
            victim._drop()
        ticket = Ticket(self, name, drop, self._clock())
        self._total += 1
        self._of[name] = self._of.get(name, 0) + 1
        self._oldest[ticket] = None
        self._strangers.setdefault(name, OrderedDict())[ticket] = None
        self._ranking.add(name)
        return ticket

    # ---- what was turned away

    @property
    def shed(self) -> dict[Shed, int]:
        """How many connections were turned away since the last report, by cause."""
        return {cause: count.total for cause, count in self._shed.items()}

    def report(self) -> str | None:
        """One line for the log on what was turned away since the last report; None if nothing was."""
        if not self._shed:
            return None
        parts = [f"{count}: {cause}" for cause, count in self._shed.items()]
        self._shed = {}
        return f"turned away {'; '.join(parts)}"

    def _count(self, cause: Shed, address: str) -> None:
        self._shed.setdefault(cause, _Count()).add(address)

    # ---- inside

    def _in_the_way(self, name: str, own: int) -> Shed | None:
        """The limit that a newcomer would exceed."""
        if name != LOCAL:
            if self._of.get(name, 0) >= self.per_address:
                return Shed.ADDRESS
            if own >= self.strangers_per_address:
                return Shed.ADDRESS_STRANGERS
        if len(self._oldest) >= self.most_strangers:
            return Shed.STRANGERS
        return Shed.FULL if self._total >= self.most else None

    def _victim(self, name: str, own: int, cause: Shed) -> Ticket | None:
        """Who gives way to a newcomer. Each limit is one that a single stranger's leaving makes room under."""
        if cause in (Shed.ADDRESS, Shed.ADDRESS_STRANGERS):
            return self._overdue(self._strangers.get(name))
        if self._ranking.most > own + 1:
            return next(iter(self._strangers[self._ranking.first()]))
        return self._overdue(self._oldest)

    def _overdue(self, strangers: OrderedDict[Ticket, None] | None) -> Ticket | None:
        if not strangers:
            return None
        oldest = next(iter(strangers))
        return oldest if self._clock() - oldest._since >= self._grace else None

    def _no_stranger(self, ticket: Ticket) -> None:
        del self._oldest[ticket]
        strangers = self._strangers[ticket.address]
        del strangers[ticket]
        if not strangers:
            del self._strangers[ticket.address]
        self._ranking.remove(ticket.address)

    def _gone(self, ticket: Ticket) -> None:
        if ticket._stranger:
            self._no_stranger(ticket)
        self._total -= 1
        self._of[ticket.address] -= 1
        if not self._of[ticket.address]:
            del self._of[ticket.address]


class _Count:
    """How many of whom."""

    def __init__(self) -> None:
        self.total = 0
        self._of: dict[str, int] = {}
        self._more = False

    def add(self, address: str) -> None:
        self.total += 1
        if address in self._of or len(self._of) < _ADDRESSES:
            self._of[address] = self._of.get(address, 0) + 1
        else:
            self._more = True

    def __str__(self) -> str:
        worst = max(self._of, key=self._of.__getitem__)
        others = len(self._of) - 1
        text = f"{self.total} connection{'s' * (self.total > 1)} of {worst}"
        if others:
            text += f" and {'more than ' * self._more}{others} more address{'es' * (others > 1)}"
        return text


def network(address: str) -> str:
    """What an address is counted under: IPv4 as it is, also where it is written as IPv6; the first 64 bits of IPv6,
    but all of a link-local address, whose first bits are everybody's; what is no IP address is :data:`LOCAL`."""
    try:
        if ":" not in address:
            return str(ipaddress.IPv4Address(address))
        six = ipaddress.IPv6Address(address)
    except ValueError:
        return LOCAL
    if six.ipv4_mapped is not None:
        return str(six.ipv4_mapped)
    if six.is_link_local or six.is_loopback:
        return str(six)
    return f"{ipaddress.IPv6Address(int(six) >> 64 << 64)}/64"
