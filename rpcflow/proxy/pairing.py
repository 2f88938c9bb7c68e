# SPDX-License-Identifier: Apache-2.0
"""Who meets whom. Owns no socket and no clock: who comes and goes is told, and what time it is.

A peer is whatever the caller has to stand for a connection; it must be hashable. Each is in here from its arrival
until it is matched, leaves, or its deadline passes, which the caller watches.
"""

import secrets
from collections.abc import Callable, Collection, Hashable
from typing import Final, Generic, TypeVar

import attrs

from rpcflow.protocol.handshake import Answer, Side

Peer = TypeVar("Peer", bound=Hashable)

UNUSED_SECONDS: Final = 5.0
"""A key that the tracker has handed out is replaced when nobody has come with it for this long."""
_MAX_NAMES: Final = 256
"""Keys in the name under which a tracker lists the proxy: a display, not a register."""


@attrs.frozen
class Matched(Generic[Peer]):
    """It meets ``peer``, who waited."""

    peer: Peer


@attrs.frozen
class Waits:
    """It waits until ``deadline``; None is for ever."""

    deadline: float | None


@attrs.frozen
class Refused:
    """It is answered with ``code`` and closed."""

    code: Answer


Arrival = Matched[Peer] | Waits | Refused


def _other(side: Side) -> Side:
    return Side.SERVER if side is Side.CLIENT else Side.CLIENT


class PlainPairing(Generic[Peer]):
    """Client and server of one key meet; whoever comes first waits, and only one of a side may wait under a key.

    Args:
        timeout_client, timeout_server: seconds each may wait.
    """

    def __init__(self, timeout_client: float, timeout_server: float) -> None:
        self._timeouts = {Side.CLIENT: timeout_client, Side.SERVER: timeout_server}
        self._waiting: dict[tuple[Side, str], Peer] = {}
        self._places: dict[Peer, tuple[Side, str]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def partner(self, side: Side, key: str) -> Peer | None:
        """Whom a peer would meet if it came now."""
        return self._waiting.get((_other(side), key))

    def arrive(self, peer: Peer, side: Side, key: str, now: float) -> Arrival[Peer]:
        """Somebody has said its key."""
        partner = self.partner(side, key)
        if partner is not None:
            self.leave(partner)
            return Matched(partner)
        place = (side, key)
        if place in self._waiting:
            return Refused(Answer.DUPLICATE)
        self._waiting[place] = peer
        self._places[peer] = place
        return Waits(now + self._timeouts[side])

    def leave(self, peer: Peer) -> bool:
        """It has gone, or its deadline has passed; whether it was waiting."""
        place = self._places.pop(peer, None)
        if place is None:
            return False
        del self._waiting[place]
        return True


def random_part() -> str:
    """The secret part of a match key: no colon, for what stands behind the last one is cut off."""
    return secrets.token_hex(16)


@attrs.define(eq=False)
class _Offer(Generic[Peer]):
    """A server that waits. ``taken_at``: when the tracker was first seen to have handed its match key out."""

    peer: Peer
    key: str
    taken_at: float | None = None


class TrackedPairing(Generic[Peer]):
    """Servers wait under match keys that a tracker hands out, clients come with one. Servers wait for ever.

    What is to be told to the tracker is asked for with :meth:`puts` and :meth:`name`; what was told is said with
    :meth:`was_put`. Each new connection to it begins with :meth:`connected`.

    Args:
        secret: makes the random part of a match key.
    """

    def __init__(self, secret: Callable[[], str] = random_part) -> None:
        self._secret = secret
        self._pool: dict[str, _Offer[Peer]] = {}
        self._places: dict[Peer, str] = {}
        self._untold: dict[str, str] = {}
        self._names: dict[str, None] = {}
        self._told_name = ""

    def __len__(self) -> int:
        return len(self._places)

    def partner(self, side: Side, key: str) -> Peer | None:
        """Whom a peer would meet if it came now."""
        offer = self._pool.get(key) if side is Side.CLIENT else None
        return None if offer is None else offer.peer

    def arrive(self, peer: Peer, side: Side, key: str, now: float) -> Arrival[Peer]:
        """Somebody has said its key: a server the kind of its device, a client a match key."""
        if side is Side.CLIENT:
            partner = self.partner(side, key)
            if partner is None:
                return Refused(Answer.MISMATCH)
            self.leave(partner)
            return Matched(partner)
        self._offer(peer, key)
        self._names[key] = None
        while len(self._names) > _MAX_NAMES:
            del self._names[next(iter(self._names))]
        return Waits(None)

    def leave(self, peer: Peer) -> bool:
        """It has gone; whether it was waiting. The tracker cannot be told: who comes with its key is refused."""
        place = self._places.pop(peer, None)
        if place is None:
            return False
        del self._pool[place]
        self._untold.pop(place, None)
        return True

    def connected(self) -> None:
        """The connection to the tracker is new: all keys are made and told anew, but for those that somebody is just
        coming with."""
        self._told_name = ""
        for offer in list(self._pool.values()):
            if offer.taken_at is None:
                self._replace(offer)

    def name(self) -> str | None:
        """The name to list the proxy under, if the tracker was not told of it yet."""
        name = f"server:proxy[{','.join(self._names)}]"
        if name == self._told_name:
            return None
        self._told_name = name
        return name

    def puts(self) -> list[tuple[str, str]]:
        """Keys and match keys that the tracker does not know yet."""
        return [(key, place) for place, key in self._untold.items()]

    def peer(self, match_key: str) -> Peer | None:
        """Who waits under a match key."""
        offer = self._pool.get(match_key)
        return None if offer is None else offer.peer

    def was_put(self, match_key: str) -> None:
        """The tracker knows it now."""
        self._untold.pop(match_key, None)

    def stale(self, match_keys: Collection[str]) -> bool:
        """Whether the tracker still offers a server that has left."""
        return not all(place in self._pool for place in match_keys)

    def pending(self, match_keys: Collection[str], now: float) -> None:
        """The tracker has said which match keys it has not handed out. What was handed out and not used for
        :data:`UNUSED_SECONDS` gets a new one."""
        for place, offer in list(self._pool.items()):
            if place in self._untold:
                continue
            if place in match_keys:
                offer.taken_at = None
            elif offer.taken_at is None:
                offer.taken_at = now
            elif now - offer.taken_at >= UNUSED_SECONDS:
                self._replace(offer)

    def _replace(self, offer: _Offer[Peer]) -> None:
        self.leave(offer.peer)
        self._offer(offer.peer, offer.key)

    def _offer(self, peer: Peer, key: str) -> None:
        while (place := f"{key}:{self._secret()}") in self._pool:
            pass
        self._pool[place] = _Offer(peer, key)
        self._places[peer] = place
        self._untold[place] = key


Pairing = PlainPairing[Peer] | TrackedPairing[Peer]
