# SPDX-License-Identifier: Apache-2.0
"""Free, busy, offline, and for how long that is remembered."""

from __future__ import annotations

import json
from typing import Any

from rpcflow.tracker.devices import Device, DeviceList

HERE = ("h", 1)


def states(devices: DeviceList) -> list[tuple[str, str, float, str | None]]:
    shown: list[dict[str, Any]] = [json.loads(text) for text in devices.texts()]
    return [(device["key"], device["state"], device["since"], device["for"]) for device in shown]


def test_the_life_of_a_device() -> None:
    devices = DeviceList()
    device = devices.offered("s", "k", HERE, 1.0)
    assert json.loads(device.text) == {"key": "k", "addr": ["h", 1], "state": "free", "since": 1.0, "for": None}
    devices.taken(device, "me", 2.0)
    assert states(devices) == [("k", "busy", 2.0, "me")]
    assert devices.offered("s", "k", HERE, 3.0) is device
    assert states(devices) == [("k", "free", 3.0, None)]
    devices.gone("s", 4.0)
    assert states(devices) == [("k", "offline", 4.0, None)]
    assert (devices.online, len(devices), devices.count("s")) == (0, 1, 0)
    assert devices.offered("t", "k", HERE, 5.0) is not device
    assert states(devices) == [("k", "free", 5.0, None)]


def test_going_while_busy_and_twice() -> None:
    devices = DeviceList()
    devices.taken(devices.offered("s", "k", HERE, 1.0), "me", 2.0)
    devices.gone("s", 3.0)
    devices.gone("s", 4.0)
    assert states(devices) == [("k", "offline", 3.0, None)]
    assert not devices._busy


def test_the_one_that_is_busy_for_longest_is_the_one_that_comes_back() -> None:
    devices = DeviceList()
    one, two = (devices.offered("s", "k", HERE, 0.0) for _ in range(2))
    devices.taken(two, "b", 1.0)
    devices.taken(one, "a", 2.0)
    assert devices.offered("s", "k", HERE, 3.0) is two
    assert devices.offered("s", "k", HERE, 3.0) is one
    assert devices.count("s") == 2


def test_key_address_and_connection_tell_devices_apart() -> None:
    devices = DeviceList()
    first = devices.offered("s", "k", HERE, 0.0)
    devices.taken(first, "me", 0.0)
    others: list[Device] = [
        devices.offered("s", "k", ("h", 2), 0.0),
        devices.offered("s", "l", HERE, 0.0),
        devices.offered("t", "k", HERE, 0.0),
    ]
    assert first not in others
    assert first.state == "busy"


def test_a_server_that_is_back_before_its_old_line_is_missed() -> None:
    devices = DeviceList()
    devices.offered("old", "k", HERE, 0.0)
    devices.offered("new", "k", HERE, 1.0)
    devices.gone("old", 2.0)
    assert states(devices) == [("k", "free", 1.0, None)]
    devices.gone("new", 3.0)
    assert states(devices) == [("k", "offline", 3.0, None)]


def test_those_that_went_first_are_forgotten_first() -> None:
    devices = DeviceList(kept=3)
    for number in range(5):
        devices.offered(number, f"k{number}", HERE, 0.0)
    for number in (3, 1, 0, 2, 4):
        devices.gone(number, float(number))
    assert [key for key, *_ in states(devices)] == ["k0", "k2", "k4"]
    assert not devices._places
    assert not devices._of


def test_texts_are_made_once() -> None:
    """So that a summary does not cost more the more often it is asked for."""
    devices = DeviceList()
    device = devices.offered("s", "k", HERE, 0.0)
    assert device.text is device.text
    before = device.text
    devices.taken(device, "me", 1.0)
    assert device.text != before
