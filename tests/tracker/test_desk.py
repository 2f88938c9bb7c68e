# SPDX-License-Identifier: Apache-2.0
"""The desk with peers that may be gone without its knowing: no device is held twice, and none goes to the dead."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rpcflow.errors import ProtocolError
from rpcflow.protocol.tracker import FrameReader, TrackerCode
from rpcflow.tracker import desk as desk_module
from rpcflow.tracker.desk import Desk

PING, STOP, PUT, REQUEST, UPDATE_INFO, SUMMARY, PENDING = TrackerCode


class Peer:
    """A connection that a test has in its hands. ``takes`` False: sending fails."""

    def __init__(self, number: int = 1) -> None:
        self.host, self.port = f"10.0.0.{number}", 1000 + number
        self.lives = True
        self.takes = True
        self.ended = False
        self.heard: list[Any] = []
        self._reader = FrameReader(magic=False, answers=True)

    def send(self, data: bytes) -> bool:
        if not self.takes:
            return False
        self.heard += self._reader.feed(data)
        return True

    def alive(self) -> bool:
        return self.lives

    def end(self) -> None:
        self.ended = True

    def grants(self) -> list[str]:
        """The match keys it got."""
        return [answer[1][2] for answer in self.heard if isinstance(answer, list) and len(answer) == 2]


def make_desk() -> Desk:
    return Desk("stop", lambda: 0.0, lambda: 1000.0)


def summary(desk: Desk) -> Any:
    peer = Peer(99)
    desk.take(peer, [SUMMARY])
    return peer.heard[0][1]


def test_whoever_is_gone_gets_nothing() -> None:
    desk, server, gone, stays = make_desk(), Peer(1), Peer(2), Peer(3)
    desk.take(gone, [REQUEST, "k", "", 5])
    desk.take(stays, [REQUEST, "k", "", 1])
    gone.lives = False
    desk.take(server, [PUT, "k", [1, "k:1"], None])
    assert gone.ended
    assert not gone.grants()
    assert stays.grants() == ["k:1"]


def test_whoever_cannot_be_sent_to_gets_nothing() -> None:
    desk, server, gone = make_desk(), Peer(1), Peer(2)
    desk.take(gone, [REQUEST, "k", "", 5])
    gone.takes = False
    desk.take(server, [PUT, "k", [1, "k:1"], None])
    assert gone.ended
    assert summary(desk)["queue_info"] == {"k": {"free": 1, "pending": 0}}


def test_nothing_is_had_from_a_server_that_is_gone() -> None:
    desk, gone, lives, client = make_desk(), Peer(1), Peer(2), Peer(3)
    for number in range(3):
        desk.take(gone, [PUT, "k", [number, f"gone:{number}"], None])
    desk.take(gone, [UPDATE_INFO, {"key": "server:k", "addr": [None, 1]}])
    gone.lives = False
    desk.take(client, [REQUEST, "k", "", 1])
    assert gone.ended
    assert not client.grants()
    assert summary(desk)["server_info"] == []
    desk.take(lives, [PUT, "k", [1, "lives"], None])
    assert client.grants() == ["lives"]


def test_one_that_does_both_and_goes() -> None:
    desk, both, client = make_desk(), Peer(1), Peer(2)
    desk.take(both, [REQUEST, "k", "", 1])
    both.lives = False
    desk.take(both, [PUT, "k", [1, "k:1"], None])
    assert both.ended
    desk.take(client, [REQUEST, "k", "", 1])
    assert not client.grants()


def test_who_asks_may_get_its_own() -> None:
    desk, both = make_desk(), Peer(1)
    desk.take(both, [REQUEST, "k", "", 1])
    desk.take(both, [PUT, "k", [1, "k:1"], None])
    assert both.heard == [0, [0, ["10.0.0.1", 1, "k:1"]]]


def test_stop() -> None:
    desk, peer = make_desk(), Peer()
    desk.take(peer, [STOP, "wrong"])
    assert not desk.stopped
    desk.take(peer, [STOP, "stop"])
    desk.take(peer, [STOP, "wrong"])
    assert desk.stopped
    assert peer.heard == [-1, 0, -1]


def test_what_peers_say_of_themselves_has_a_limit_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "_INFO_CHARACTERS_IN_ALL", 500)
    desk, one, two = make_desk(), Peer(1), Peer(2)
    info = {"key": "server:k", "addr": [None, 1], "x": "x" * 200}
    for _ in range(5):  # said again, it takes the place of what was said
        desk.take(one, [UPDATE_INFO, info])
    with pytest.raises(ProtocolError, match="long"):
        desk.take(two, [UPDATE_INFO, {**info, "x": "x" * 400}])
    desk.gone(one)
    desk.take(two, [UPDATE_INFO, {**info, "x": "x" * 400}])
    desk.gone(two)
    assert desk._info_characters == 0


def test_a_summary_is_made_once_until_something_changes() -> None:
    desk, server, client = make_desk(), Peer(1), Peer(2)
    desk.take(server, [PUT, "k", [1, "k:1"], None])
    desk.take(client, [SUMMARY])
    kept = desk._summary
    desk.take(client, [SUMMARY])
    desk.take(client, [PING])
    assert desk._summary is kept
    desk.take(client, [REQUEST, "k", "someone", 1])
    desk.take(client, [SUMMARY])
    assert client.heard[-1][1]["devices"][0] == {
        "key": "k",
        "addr": ["10.0.0.1", 1],
        "state": "busy",
        "since": 1000.0,
        "for": "someone (10.0.0.2:1002)",
    }


def test_odd_texts_come_out_as_they_went_in() -> None:
    desk, server, client = make_desk(), Peer(1), Peer(2)
    for key in ("", '"', "\\", "\ud800", "\0", "a\nb", "{}", "ключ", "k:" * 100):
        desk.take(server, [PUT, key, [1, f"{key}:1"], None])
        desk.take(client, [REQUEST, key, key, 1])
        assert client.grants()[-1] == f"{key}:1"
    assert len(summary(desk)["queue_info"]) == 9


class DeskMachine(RuleBasedStateMachine):
    """Servers and clients that come, go with and without a word, put, ask, and stop reading."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = make_desk()
        self.peers: list[Peer] = [Peer(number) for number in range(6)]
        self.everyone = list(self.peers)
        self.number = 0
        self.owners: dict[str, Peer] = {}

    def at(self, place: int) -> Peer:
        """Whoever is there; who was told to go, or would have been by now, is replaced."""
        peer = self.peers[place]
        if peer.ended or not peer.lives or not peer.takes:
            self.desk.gone(peer)
            peer.ended = True
            self.number += 1
            peer = self.peers[place] = Peer(place)
            self.everyone.append(peer)
        return peer

    @rule(place=st.integers(0, 5), key=st.sampled_from(["a", "b"]))
    def put(self, place: int, key: str) -> None:
        peer = self.at(place)
        self.number += 1
        self.owners[f"{key}:{self.number}"] = peer
        self.desk.take(peer, [PUT, key, [place, f"{key}:{self.number}"], None])

    @rule(place=st.integers(0, 5), key=st.sampled_from(["a", "b"]), priority=st.integers(0, 3))
    def ask(self, place: int, key: str, priority: int) -> None:
        self.desk.take(self.at(place), [REQUEST, key, "", priority])

    @rule(place=st.integers(0, 5))
    def goes_unnoticed(self, place: int) -> None:
        peer = self.at(place)
        peer.lives = False
        for match_key, owner in list(self.owners.items()):
            if owner is peer and not self.granted(match_key):
                del self.owners[match_key]  # from now on nobody may get it

    @rule(place=st.integers(0, 5))
    def stops_reading(self, place: int) -> None:
        self.at(place).takes = False

    @rule(place=st.integers(0, 5))
    def closes(self, place: int) -> None:
        peer = self.peers[place]
        self.desk.gone(peer)
        peer.ended = True
        peer.lives = False
        for match_key, owner in list(self.owners.items()):
            if owner is peer and not self.granted(match_key):
                del self.owners[match_key]

    @rule(place=st.integers(0, 5))
    @precondition(lambda self: self.owners)
    def pending(self, place: int) -> None:
        peer = self.at(place)
        if peer.lives and peer.takes:
            self.desk.take(peer, [PENDING])
            listed = peer.heard.pop()
            mine = [match_key for match_key, owner in self.owners.items() if owner is peer]
            assert sorted(listed) == sorted(match_key for match_key in mine if not self.granted(match_key))

    def granted(self, match_key: str) -> bool:
        return any(match_key in peer.grants() for peer in self.everyone)

    @invariant()
    def no_device_is_held_twice(self) -> None:
        grants = [match_key for peer in self.everyone for match_key in peer.grants()]
        assert len(grants) == len(set(grants))
        assert set(grants) <= set(self.owners)

    @invariant()
    def the_summary_adds_up(self) -> None:
        shown = summary(self.desk)
        free = sum(queue["free"] for queue in shown["queue_info"].values())
        assert free == sum(device["state"] == "free" for device in shown["devices"])
        for queue in shown["queue_info"].values():
            assert not (queue["free"] and queue["pending"])
        assert json.dumps(shown)


TestDeskMachine = DeskMachine.TestCase
TestDeskMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
