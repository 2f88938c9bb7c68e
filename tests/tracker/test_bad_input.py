# SPDX-License-Identifier: Apache-2.0
"""Strangers at the tracker: whatever they send or do not read, only their own line is closed."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from typing import Any

import pytest

import rpcflow
from rpcflow.protocol.tracker import MAGIC_BYTES, encode_frame
from rpcflow.tracker import desk, hub
from tests.server.support import until

from .conftest import Host
from .support import HOST, PENDING, PING, PUT, REQUEST, STOP, SUMMARY, UPDATE_INFO, Raw

BAD_MESSAGES: list[Any] = [
    {"a": 1},
    [],
    "text",
    None,
    7,
    [None],
    [0],
    [8],
    [99],
    [1.5],
    [[1]],
    [{}],
    ["1"],
    [PUT],
    [PUT, "x"],
    [PUT, "x", 5],
    [PUT, "x", [5]],
    [PUT, "x", [5, "m", 6]],
    [PUT, 5, [5, "m"]],
    [PUT, ["x"], [5, "m"]],
    [PUT, "x", [-1, "m"]],
    [PUT, "x", [65536, "m"]],
    [PUT, "x", [True, "m"]],
    [PUT, "x", ["5", "m"]],
    [PUT, "x", [5.0, "m"]],
    [PUT, "x", [5, None]],
    [PUT, "x", [5, "m"], 7],
    [PUT, "x", [5, "m"], ""],
    [PUT, "x", [5, "m"], "h" * 256],
    [PUT, "x" * 2049, [5, "m"]],
    [PUT, "x", [5, "m" * 4097]],
    [PUT, "x", [5, "m"], None, None],
    [REQUEST],
    [REQUEST, "x"],
    [REQUEST, "x", ""],
    [REQUEST, 5, "", 1],
    [REQUEST, {"x": 1}, "", 1],
    [REQUEST, "x", "", "1"],
    [REQUEST, "x", "", None],
    [REQUEST, "x", "", float("nan")],
    [REQUEST, "x", "", float("inf")],
    [REQUEST, "x", "", 10**400],
    [REQUEST, "x" * 2049, "", 1],
    [UPDATE_INFO],
    [UPDATE_INFO, None],
    [UPDATE_INFO, []],
    [UPDATE_INFO, {"key": "server:x"}],
    [UPDATE_INFO, {"key": "server:x", "addr": None}],
    [UPDATE_INFO, {"key": "server:x", "addr": []}],
    [UPDATE_INFO, {"key": "server:x", "addr": [None, "5"]}],
    [UPDATE_INFO, {"key": "server:x", "addr": [5, 5]}],
    [UPDATE_INFO, {"key": 5, "addr": [None, 5]}],
    [UPDATE_INFO, {"key": "server:x", "addr": [None, 5], "more": "x" * 262144}],
]
BAD_BYTES = {
    "wrong magic": b"\x71\xf2\x0f\x00",
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "server's magic": struct.pack("<i", 0xFF271) + struct.pack("<i", 0),
    "size 0": MAGIC_BYTES + struct.pack("<i", 0),
    "size -1": MAGIC_BYTES + struct.pack("<i", -1),
    "size 1 MiB + 1": MAGIC_BYTES + struct.pack("<i", (1 << 20) + 1),
    "no JSON": MAGIC_BYTES + struct.pack("<i", 3) + b"{{{",
    "no UTF-8": MAGIC_BYTES + struct.pack("<i", 4) + b'"\xff\xfe"',
    "deep": MAGIC_BYTES + struct.pack("<i", 200_000) + b"[" * 200_000,
    "long number": MAGIC_BYTES + struct.pack("<i", 100_000) + b"1" * 100_000,
}


def rest(peer: Raw) -> bytes:
    """All that still comes, to the end of the line."""
    data = b""
    while piece := peer.take(1 << 16):
        data += piece
    return data


@pytest.fixture
def witness(tracker: rpcflow.Tracker) -> Any:
    """A server and a client that the strangers must not disturb."""
    with Raw(tracker) as server, Raw(tracker) as client:
        server.register("good", "good:1")
        yield client
        assert server.ask(PENDING) == ["good:1"]
        assert client.ask(REQUEST, "good", "", 1)[1][2] == "good:1"
        assert client.queue("x") == (0, 0)


def test_bad_messages_close_that_line_only(tracker: rpcflow.Tracker, witness: Raw) -> None:
    for message in BAD_MESSAGES:
        with Raw(tracker) as peer:
            data = json.dumps(message).encode()
            peer.send(struct.pack("<i", len(data)) + data)
            assert peer.ended(), message
    assert witness.ask(PING) == 0


@pytest.mark.parametrize("name", BAD_BYTES)
def test_bad_bytes_close_that_line_only(tracker: rpcflow.Tracker, witness: Raw, name: str) -> None:
    with Raw(tracker, greet=False) as peer:
        peer.send(BAD_BYTES[name])
        assert rest(peer) in (b"", MAGIC_BYTES)
    assert witness.ask(PING) == 0


def test_what_went_before_a_bad_message_is_answered_and_undone(tracker: rpcflow.Tracker, witness: Raw) -> None:
    with Raw(tracker) as peer:
        peer.send(encode_frame([PUT, "x", [1, "x:1"]]) + encode_frame([REQUEST, "y", "", 1]) + encode_frame([99]))
        assert peer.answer() == 0
        assert peer.ended()
    assert witness.queue("x") == witness.queue("y") == (0, 0)


def test_a_message_of_the_greatest_size_is_taken(tracker: rpcflow.Tracker) -> None:
    with Raw(tracker) as peer:
        data = b"[1]" + b" " * ((1 << 20) - 3)
        peer.send(struct.pack("<i", len(data)) + data)
        assert peer.answer() == 0


def test_silence_instead_of_the_magic_ends_in_time(host: Host) -> None:
    with host(timeout=0.2) as tracker:
        for first in (b"", MAGIC_BYTES[:3]):
            with Raw(tracker, greet=False) as peer:
                peer.send(first)
                assert peer.ended()


def test_half_a_message_ends_in_time_and_idling_does_not(host: Host) -> None:
    with host(timeout=0.2) as tracker:
        with Raw(tracker) as idle:
            for half in (b"\3", struct.pack("<i", 5), struct.pack("<i", 5) + b"[1"):
                with Raw(tracker) as peer:
                    peer.send(half)
                    assert peer.ended()
            assert idle.ask(PING) == 0
            waiting = Raw(tracker)
            waiting.request("k")
            with Raw(tracker) as peer:  # again somebody is waited for, and the other one is not
                peer.send(b"\3")
                assert peer.ended()
            with waiting:
                idle.register("k", "k:1")
                assert waiting.answer()[1][2] == "k:1"


def test_a_peer_that_does_not_read_is_dropped(host: Host) -> None:
    """And is not read from meanwhile: what it asked for is not kept."""
    with host(timeout=0.5) as tracker, Raw(tracker) as other:
        for number in range(500):
            other.say(PUT, "k" * 500, [1, f"k:{number}"])
        assert [other.answer() for _ in range(500)] == [0] * 500
        with Raw(tracker) as peer:
            peer.socket.settimeout(20)
            with pytest.raises(ConnectionError):
                while True:  # each is answered with 300 kB
                    peer.send(encode_frame([SUMMARY]) * 1000)
            assert other.ask(PING) == 0
        assert tracker._hub is not None
        until(lambda: tracker._hub is not None and tracker._hub.unsent == 0)


def test_peers_that_do_not_read_together_have_a_limit(
    tracker: rpcflow.Tracker, witness: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_UNSENT_NBYTES", 1 << 18)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Raw(tracker))
        for number in range(500):
            server.say(PUT, "k" * 500, [1, f"k:{number}"])
        assert [server.answer() for _ in range(500)] == [0] * 500
        peers = []
        for _ in range(20):
            peer = stack.enter_context(Raw(tracker))
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.send(encode_frame([SUMMARY]) * 100)
            peers.append(peer)
        until(lambda: tracker._hub is not None and len(tracker._hub) < 23)
        assert witness.ask(PING) == 0
        assert tracker._hub is not None
        assert tracker._hub.unsent <= 1 << 19


def test_a_slow_reader_gets_all_its_answers(host: Host) -> None:
    with host(timeout=20) as tracker, Raw(tracker) as peer:
        for number in range(200):
            peer.say(PUT, "k" * 500, [1, f"k:{number}"])
        assert [peer.answer() for _ in range(200)] == [0] * 200
        peer.send(encode_frame([SUMMARY]) * 200 + encode_frame([PING]))
        for _ in range(200):
            assert len(peer.answer()[1]["devices"]) == 200
        assert peer.answer() == 0


def test_taking_a_little_now_and_then_is_not_enough(host: Host) -> None:
    with host(timeout=1.0) as tracker, Raw(tracker) as other:
        for number in range(500):
            other.say(PUT, "k" * 500, [1, f"k:{number}"])
        assert [other.answer() for _ in range(500)] == [0] * 500
        peer = Raw.__new__(Raw)
        peer.socket = socket.socket()
        with peer:
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that each bit taken shows at once
            peer.socket.connect((HOST, tracker.port))
            peer.send(MAGIC_BYTES + encode_frame([SUMMARY]) * 20)  # each is answered with 300 kB
            hub = tracker._hub
            assert hub is not None
            until(lambda: peer.take(200) and len(hub) == 1, "giving up who takes 20 kB a second")
        assert other.ask(PING) == 0


def test_what_a_peer_says_does_not_make_lines_of_its_own(
    tracker: rpcflow.Tracker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rpcflow.tracker")
    for number in range(30):
        with Raw(tracker) as peer:
            peer.say(REQUEST, "k", "", f"{number}\n\x1b[2Jall is well" + "x" * 5000)
            assert peer.ended()
    lines = [line for line in caplog.messages if "all is well" in line]
    assert 0 < len(lines) <= 10
    assert all(line.isprintable() and len(line) < 300 for line in lines)


def test_requests_of_one_connection_are_bounded(
    tracker: rpcflow.Tracker, witness: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "MAX_REQUESTS", 5)
    with Raw(tracker) as peer:
        for _ in range(5):
            peer.request("x")
        assert peer.ask(PING) == 0
        peer.request("x")
        assert peer.ended()
    assert witness.queue("x") == (0, 0)


def test_requests_of_all_are_bounded(tracker: rpcflow.Tracker, witness: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "MAX_REQUESTS_IN_ALL", 5)
    with Raw(tracker) as one, Raw(tracker) as two:
        for peer in (one, one, one, two, two):
            peer.request("x")
        until(lambda: witness.queue("x") == (0, 5))
        two.request("x")
        assert two.ended()
        assert witness.queue("x") == (0, 3)


def test_devices_of_one_connection_are_bounded(
    tracker: rpcflow.Tracker, witness: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "MAX_DEVICES", 3)
    with Raw(tracker) as peer, Raw(tracker) as client:
        for number in range(30):  # one after the other is no matter
            peer.register("x", f"x:{number}", info=False)
            assert client.ask(REQUEST, "x", "", 1)[1][2] == f"x:{number}"
        for number in range(2):  # also those that were handed out count
            assert peer.ask(PUT, "x", [6000 + number, f"y:{number}"]) == 0
        peer.say(PUT, "x", [7000, "z"])
        assert peer.ended()


def test_connections_are_bounded(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    from rpcflow.tracker import service

    monkeypatch.setattr(service, "connection_limit", lambda most, each: 3)
    with host() as tracker, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Raw(tracker)) for _ in range(3)]
        with Raw(tracker, greet=False) as extra:
            assert extra.ended()
        peers[0].close()
        until(lambda: tracker._hub is not None and len(tracker._hub) == 2)
        stack.enter_context(Raw(tracker))
        assert peers[1].ask(PING) == 0


def test_a_flood_does_not_keep_others_waiting_for_ever(tracker: rpcflow.Tracker) -> None:
    with Raw(tracker) as flood, Raw(tracker) as peer:
        flood.socket.setblocking(False)
        data = encode_frame([STOP, "no"]) * 10_000
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):
                flood.socket.send(data)
            assert peer.ask(PING) == 0


def test_a_fault_of_ours_closes_one_line(
    tracker: rpcflow.Tracker, witness: Raw, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError("on purpose")

    assert tracker._hub is not None
    monkeypatch.setitem(tracker._hub.desk._answers, PING, fails)  # type: ignore[arg-type]
    with Raw(tracker) as peer:
        peer.say(PING)
        assert peer.ended()
    assert "on purpose" in caplog.text
