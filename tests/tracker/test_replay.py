# SPDX-License-Identifier: Apache-2.0
"""The peers' side of every recorded conversation with a stock tracker, played again to ours; the answers compared.

Differences that are meant are named below, each with its reason; there may be no others.
"""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

import rpcflow
from rpcflow.protocol.tracker import MAGIC_BYTES, FrameReader
from tests.server.support import until

from .support import PENDING, PUT, REQUEST, STOP, SUMMARY, Raw

FOLDER = Path(__file__).resolve().parents[1] / "data" / "wire"
NAMES = sorted(path.stem for path in FOLDER.glob("tracker-*.json"))

#: Recordings in which the stock tracker closes and ours answers.
FRIENDLIER = {"tracker-magic-with-message": "magic and a message in one segment is as good as in two"}
#: What ours adds to a summary.
ADDED = {"devices": "who uses what since when"}
#: The recordings were made with one tracker one after the other, and its summary shows keys and servers of others.
SHARED = {"tracker-split-frames", "tracker-unicode", "tracker-raw-session"}


def steps(name: str) -> list[tuple[str, bytes]]:
    """Direction and bytes, neighbours of one direction joined."""
    joined: list[tuple[str, bytes]] = []
    for event in json.loads((FOLDER / f"{name}.json").read_text())["events"]:
        data = bytes.fromhex(event["hex"])
        if joined and joined[-1][0] == event["dir"]:
            data = joined.pop()[1] + data
        joined.append((event["dir"], data))
    return joined


def closes(name: str) -> bool:
    """Whether the tracker was the one to close."""
    recording = json.loads((FOLDER / f"{name}.json").read_text())
    return bool(recording["first_close"] == "s2c")


class Cast:
    """The peers that stand behind a recording beside the one that was recorded."""

    def __init__(self, name: str, tracker: rpcflow.Tracker, stack: contextlib.ExitStack) -> None:
        self._name = name
        self._open = lambda: stack.enter_context(Raw(tracker))
        self._server: Raw | None = None
        self._puts = 0
        if name == "tracker-client-request":
            self._server = self._open()
            self._server.register("dev1", "dev1:0.9333247747091727", 9633)
        if name == "tracker-priority-server":
            watch = self._open()
            for number, priority in enumerate([1, 5, 5, 3]):
                self._open().request("pk", priority)
                until(lambda wanted=number + 1: watch.queue("pk") == (0, wanted))

    def before(self, message: Any, answer: bytes) -> None:
        """What they did before the recorded peer said this, and got that answer."""
        if self._name == "tracker-server-register":
            self._puts += message[0] == PUT
            new = message[0] == PUT and self._puts > 1  # comes when the old one was taken
            if new or (message == [PENDING] and answer[4:] == b"[]"):
                self._take()
        if self._name == "tracker-client-request" and message == [SUMMARY] and self._puts == 2 and self._server:
            self._server.register("dev1", "dev1:again", 9633, info=False)  # the session is over

    def after(self, message: Any) -> None:
        """What they did when that was answered."""
        if self._name == "tracker-client-request" and message[0] in (REQUEST, SUMMARY):
            self._puts += message == [SUMMARY]

    def _take(self) -> None:
        client = self._open()
        if client.queue("dev1")[0]:
            assert client.ask(REQUEST, "dev1", "", 1)[0] == 0


def same(name: str, recorded: Any, live: Any) -> bool:
    """Whether an answer is the recorded one, but for what is meant to differ."""
    if isinstance(recorded, list) and len(recorded) == 2 and isinstance(recorded[1], dict):
        stock, ours = recorded[1], dict(live[1])
        for key in ADDED:
            ours.pop(key)
        if name in SHARED:
            queues = [key for key, queue in ours["queue_info"].items() if queue["free"] or queue["pending"]]
            assert all(ours["queue_info"][key] == stock["queue_info"][key] for key in queues)
            assert all(info in stock["server_info"] for info in ours["server_info"])
            return set(ours) == set(stock)
        return bool(live[0] == recorded[0] and ours == stock)
    if isinstance(recorded, list) and all(isinstance(entry, str) for entry in recorded):
        return sorted(recorded) == sorted(live)  # stock keeps a set
    return bool(recorded == live)


@pytest.mark.parametrize("name", NAMES)
def test_replay(tracker: rpcflow.Tracker, name: str) -> None:
    said, heard = FrameReader(), FrameReader()
    with contextlib.ExitStack() as stack:
        cast = Cast(name, tracker, stack)
        peer = stack.enter_context(Raw(tracker, greet=False))
        pending: list[Any] = []
        script = steps(name)
        for number, (direction, data) in enumerate(script):
            if direction == "c2s":
                answer = script[number + 1][1] if number + 1 < len(script) else b""
                pending = speak(peer, said, data, answer, cast, tracker)
                continue
            if not heard.greeted:
                assert peer.take(4) == data[:4] == MAGIC_BYTES
            for recorded in heard.feed(data):
                live = peer.answer()
                assert same(name, recorded, live), f"{live} for {recorded}"
            for message in pending:
                cast.after(message)
        if name in FRIENDLIER:
            assert peer.take(4) == MAGIC_BYTES
            assert peer.answer() == 0
        elif closes(name):
            assert peer.ended()


def speak(
    peer: Raw, reader: FrameReader, data: bytes, answer: bytes, cast: Cast, tracker: rpcflow.Tracker
) -> list[Any]:
    """Say what was recorded; the messages in it."""
    try:
        messages = reader.feed(data)
    except rpcflow.ProtocolError:
        messages = []  # that is the recording's point
    for message in messages:
        if isinstance(message, list) and message:
            cast.before(message, answer)
            if message[0] == STOP and str(message[1]).startswith("tracker:"):  # each tracker has a key of its own
                text = json.dumps([STOP, tracker._stop_key]).encode()
                data = struct.pack("<i", len(text)) + text
    peer.send(data)
    return [message for message in messages if isinstance(message, list)]


def test_all_are_here() -> None:
    assert len(NAMES) == 16
    assert set(FRIENDLIER) | SHARED <= set(NAMES)
