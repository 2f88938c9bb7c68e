# SPDX-License-Identifier: Apache-2.0
"""What the tracker knows of each device: free, busy or offline, since when, and for whom. Pure, as the scheduler.

A device is one place of what a connection offers: its key and the address clients are sent to. It is busy from when
its match key is handed out until the connection offers the same key and address again; a connection that offers them
twice at a time has two places there. It is offline once the connection has gone, and then known by key and address
alone, until these are offered again.
"""

import json
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Final, Literal

import attrs

Address = tuple[str, int]
State = Literal["free", "busy", "offline"]
OFFLINE_KEPT: Final = 1000
"""Devices that have gone and are still shown; the one that went first is forgotten first."""


@attrs.define(eq=False)
class Device:
    """One place.

    Args:
        owner: the connection that offers it.
        key, address: what it is and where clients find it.
        since: when it came into its state, in seconds of the Unix epoch.
        whom: for whom it is busy.
    """

    owner: Hashable
    key: str
    address: Address
    since: float
    state: State = "free"
    whom: str | None = None
    _text: str | None = None

    def change(self, state: State, since: float, whom: str | None = None) -> None:
        """From now on it is in this state."""
        self.state, self.since, self.whom, self._text = state, since, whom, None

    @property
    def text(self) -> str:
        """As JSON. It is kept until the next change, so that a summary of very many is only their texts joined."""
        if self._text is None:
            shown = {
                "key": self.key,
                "addr": list(self.address),
                "state": self.state,
                "since": round(self.since, 3),
                "for": self.whom,
            }
            self._text = json.dumps(shown)
        return self._text


class DeviceList:
    """All devices.

    Args:
        kept: how many that are offline.
    """

    def __init__(self, kept: int = OFFLINE_KEPT) -> None:
        self._kept = kept
        self._online: dict[Device, None] = {}
        self._busy: dict[tuple[Hashable, str, Address], deque[Device]] = {}
        self._of: dict[Hashable, dict[Device, None]] = {}
        self._places: dict[tuple[str, Address], int] = {}
        self._offline: OrderedDict[tuple[str, Address], Device] = OrderedDict()

    def __len__(self) -> int:
        return len(self._online) + len(self._offline)

    @property
    def online(self) -> int:
        """How many are not offline."""
        return len(self._online)

    def count(self, owner: Hashable) -> int:
        """How many a connection has."""
        return len(self._of.get(owner, ()))

    def offered(self, owner: Hashable, key: str, address: Address, now: float) -> Device:
        """A connection offers a device: one of those that were busy, the longest so, or else a new one."""
        place = (owner, key, address)
        if busy := self._busy.get(place):
            device = busy.popleft()
            if not busy:
                del self._busy[place]
            device.change("free", now)
            return device
        device = Device(owner, key, address, now)
        self._online[device] = None
        self._of.setdefault(owner, {})[device] = None
        self._places[key, address] = self._places.get((key, address), 0) + 1
        self._offline.pop((key, address), None)
        return device

    def taken(self, device: Device, whom: str, now: float) -> None:
        """A device's match key was handed out."""
        device.change("busy", now, whom)
        self._busy.setdefault((device.owner, device.key, device.address), deque()).append(device)

    def gone(self, owner: Hashable, now: float) -> None:
        """A connection has gone, and its devices with it."""
        for device in self._of.pop(owner, ()):
            del self._online[device]
            self._busy.pop((owner, device.key, device.address), None)
            place = (device.key, device.address)
            self._places[place] -= 1
            if self._places[place]:
                continue  # somebody else offers it: a server that came back before we noticed that it had gone
            del self._places[place]
            device.change("offline", now)
            device.owner = None
            self._offline[place] = device
            if len(self._offline) > self._kept:
                self._offline.popitem(last=False)

    def texts(self) -> Iterator[str]:
        """Each device as JSON."""
        for device in self._online:
            yield device.text
        for device in self._offline.values():
            yield device.text
