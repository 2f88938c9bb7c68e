# SPDX-License-Identifier: Apache-2.0
"""A tracker's summary, read for one question: which devices are there, and where are clients sent for them. Pure.

Anybody may have told the tracker anything, so nothing in it is taken for what it should be.
"""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import attrs

from rpcflow.tracker.questions import place_url
from rpcflow.transports import Url

_HOST_CHARACTERS: Final = 255
_LAST_SECOND: Final = 1e12
"""Of any clock that is to be believed."""


@attrs.frozen
class Place:
    """A device, by the address that clients are sent to.

    Args:
        key: its kind.
        host, port: the address; an empty host where what the tracker has is none.
        shown: the address as it stands there, for people.
        state: ``free``, ``busy`` or ``offline``; None where the tracker does not say, as stock's does not.
        since: when it came into that state, in seconds of the Unix epoch.
        url: the address in full; None where it is none.
    """

    key: str
    host: str
    port: int
    shown: str
    state: str | None = None
    since: float | None = None
    url: Url | None = None


class Registered:
    """What a tracker has.

    Args:
        summary: as :func:`rpcflow.tracker.questions.read_summary` gives it.
    """

    def __init__(self, summary: dict[str, Any]) -> None:
        self._queues = summary["queue_info"]
        devices = summary.get("devices")
        if isinstance(devices, list):
            self._places = [place for device in devices if (place := _device(device))]
        else:
            self._places = [place for server in summary["server_info"] for place in _server(server)]

    def places(self, key: str | None) -> list[Place]:
        """Devices that are there, of a kind or of all."""
        return [place for place in self._places if place.state != "offline" and key in (None, place.key)]

    def gone(self, key: str) -> Place | None:
        """The one of a kind that was there last, where the tracker remembers it."""
        offline = [place for place in self._places if place.state == "offline" and place.key == key]
        return max(offline, key=lambda place: place.since or 0, default=None)

    def queue(self, key: str) -> tuple[int, int]:
        """How many devices of a kind are free, and how many requests wait."""
        info = self._queues.get(key)
        numbers = [info.get(name) if isinstance(info, dict) else 0 for name in ("free", "pending")]
        free, pending = (number if isinstance(number, int) else 0 for number in numbers)
        return free, pending

    def keys(self) -> dict[str, int]:
        """The kinds that are there, and how many of each, the most first."""
        return dict(Counter(place.key for place in self.places(None)).most_common())


def plain(text: str, most: int = 200) -> str:
    """Without what would move the cursor about, and of bounded length."""
    shown = "".join(character if character.isprintable() else "?" for character in text[:most])
    return shown if len(text) <= most else f"{shown}..."


def ago(since: float) -> str:
    """How long a moment of the Unix epoch has passed, in words."""
    seconds = max(0.0, time.time() - since)
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{seconds:.0f} seconds ago"


def _device(said: Any) -> Place | None:
    if not isinstance(said, dict) or not isinstance(said.get("key"), str):
        return None
    state, since = said.get("state"), said.get("since")
    return _place(
        said["key"],
        said.get("addr"),
        state if isinstance(state, str) else None,
        float(since) if isinstance(since, int | float) and abs(since) < _LAST_SECOND else None,
    )


def _server(said: Any) -> Iterator[Place]:
    """A connection to the tracker: a server, or a proxy with the kinds of the servers behind it."""
    name = said.get("key") if isinstance(said, dict) else None
    if not isinstance(name, str):
        return
    key = name.partition(":")[2]
    behind = key.startswith("proxy[") and key.endswith("]")
    for one in key[len("proxy[") : -1].split(",") if behind else [key]:
        if one or not behind:
            yield _place(one, said.get("addr"))


def _place(key: str, address: Any, state: str | None = None, since: float | None = None) -> Place:
    match address:
        case [str(host), int(port)] if _is_host(host) and 0 < port < 65536 and not isinstance(port, bool):
            url = place_url(host, port)
            shown = str(url) if url.scheme == "tls" else str(url).removeprefix("tcp://")
            return Place(key, url.host, port, shown, state, since, url)
    return Place(key, "", 0, plain(str(address)), state, since)


def _is_host(text: str) -> bool:
    return 0 < len(text) <= _HOST_CHARACTERS and text.isprintable() and not any(map(str.isspace, text))
