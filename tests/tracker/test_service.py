# SPDX-License-Identifier: Apache-2.0
"""The tracker's commands, over real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

import rpcflow
from rpcflow.protocol.tracker import MAGIC_BYTES, encode_frame
from tests.server.support import until

from .conftest import Host
from .support import HOST, PATIENCE, PENDING, PING, PUT, REQUEST, STOP, SUMMARY, UPDATE_INFO, Raw


def test_ping(tracker: rpcflow.Tracker) -> None:
    with Raw(tracker) as peer:
        assert peer.ask(PING) == 0


def test_a_device_is_offered_asked_for_and_offered_again(tracker: rpcflow.Tracker) -> None:
    with Raw(tracker) as server, Raw(tracker) as client:
        server.register("rpi4", "rpi4:x")
        assert server.ask(PENDING) == ["rpi4:x"]
        assert client.queue("rpi4") == (1, 0)
        assert client.ask(REQUEST, "rpi4", "me", 1) == [0, [HOST, 5000, "rpi4:x"]]
        assert server.ask(PENDING) == []
        assert client.devices() == [(f"{HOST}:5000", "busy", f"me ({client.name})")]
        assert server.ask(PUT, "rpi4", [5000, "rpi4:y"], None) == 0
        assert client.devices() == [(f"{HOST}:5000", "free", None)]
        assert client.ask(REQUEST, "rpi4", "", 1) == [0, [HOST, 5000, "rpi4:y"]]
        assert client.devices() == [(f"{HOST}:5000", "busy", client.name)]


def test_summary_has_stock_s_shape_and_devices(tracker: rpcflow.Tracker) -> None:
    began = time.time()
    with Raw(tracker) as server, Raw(tracker) as client:
        assert client.summary() == {"queue_info": {}, "server_info": [], "devices": []}
        assert server.ask(UPDATE_INFO, {"key": "server:a:b", "addr": ["10.0.0.7", 5001], "more": {"x": [1]}}) == 0
        assert server.ask(PUT, "a:b", [5001, "a:b:1"], "10.0.0.7") == 0
        assert client.ask(UPDATE_INFO, {"key": "client:c", "addr": [None, 1]}) == 0
        summary = client.summary()
        (device,) = summary.pop("devices")
        assert began - 1 < device.pop("since") < time.time() + 1
        assert device == {"key": "a:b", "addr": ["10.0.0.7", 5001], "state": "free", "for": None}
        assert summary == {
            "queue_info": {"a:b": {"free": 1, "pending": 0}},
            "server_info": [{"key": "server:a:b", "addr": ["10.0.0.7", 5001], "more": {"x": [1]}}],
        }


def test_update_info_adds_to_what_was_said_before(tracker: rpcflow.Tracker) -> None:
    with Raw(tracker) as server:
        assert server.ask(UPDATE_INFO, {"key": "server:a", "addr": [None, 1], "x": 1}) == 0
        assert server.ask(UPDATE_INFO, {"addr": ["h", 2], "y": 2}) == 0
        assert server.summary()["server_info"] == [{"key": "server:a", "addr": ["h", 2], "x": 1, "y": 2}]
        assert server.ask(UPDATE_INFO, {"key": "server", "addr": [None, 1]}) == 0
        assert server.summary()["server_info"] == []  # stock clients could not read it


def test_requests_wait_and_are_served_by_priority(tracker: rpcflow.Tracker) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Raw(tracker))
        clients = {}
        for number, priority in enumerate([1, 5, 5, 3]):
            clients[number] = stack.enter_context(Raw(tracker))
            clients[number].request("pk", priority)
            until(lambda wanted=number + 1: server.queue("pk") == (0, wanted))
        for number in range(4):
            server.register("pk", f"pk:{number}", 6000 + number)
        got = {number: client.answer()[1][2] for number, client in clients.items()}
        assert got == {1: "pk:0", 2: "pk:1", 3: "pk:2", 0: "pk:3"}


def test_pipelined_requests_are_answered_in_order(tracker: rpcflow.Tracker) -> None:
    with Raw(tracker) as peer:
        put = encode_frame([PUT, "k", [1, "k:1"], None])
        peer.send(encode_frame([PING]) + put + encode_frame([PENDING]) + encode_frame([STOP, "no"]) * 500)
        assert [peer.answer() for _ in range(3)] == [0, 0, ["k:1"]]
        assert [peer.answer() for _ in range(500)] == [-1] * 500


def test_requests_of_one_connection_answer_when_they_can(tracker: rpcflow.Tracker) -> None:
    with Raw(tracker) as client, Raw(tracker) as server:
        client.request("a")
        client.request("b")
        assert client.ask(PING) == 0
        server.register("b", "b:1")
        assert client.answer()[1][2] == "b:1"
        server.register("a", "a:1")
        assert client.answer()[1][2] == "a:1"


def test_magic_and_message_in_one_segment(tracker: rpcflow.Tracker) -> None:
    with Raw(tracker, greet=False) as peer:
        peer.send(MAGIC_BYTES + encode_frame([PING]))
        assert peer.take(4) == MAGIC_BYTES
        assert peer.answer() == 0


def test_byte_by_byte(tracker: rpcflow.Tracker) -> None:
    with Raw(tracker, greet=False) as peer:
        for byte in MAGIC_BYTES + encode_frame([PUT, "ключ", [1, "ключ:1"]]) + encode_frame([PENDING]):
            peer.send(bytes([byte]))
        assert peer.take(4) == MAGIC_BYTES
        assert peer.answer() == 0
        assert peer.answer() == ["ключ:1"]


@pytest.mark.parametrize("info", [True, False])
def test_a_server_that_goes_takes_its_resources_along(tracker: rpcflow.Tracker, info: bool) -> None:
    with Raw(tracker) as client:
        with Raw(tracker) as server:
            server.register("k", "k:1", info=info)
            server.register("k", "k:2", 5001, info=False)
            assert client.ask(REQUEST, "k", "", 1)[1][2] == "k:1"
        until(lambda: client.queue("k") == (0, 0))
        assert client.summary()["server_info"] == []
        assert client.devices() == [(f"{HOST}:5000", "offline", None), (f"{HOST}:5001", "offline", None)]
        with Raw(tracker) as server:
            server.register("k", "k:3", 5001)
            assert client.devices() == [(f"{HOST}:5001", "free", None), (f"{HOST}:5000", "offline", None)]


def test_a_dead_server_s_device_is_not_handed_out(tracker: rpcflow.Tracker) -> None:
    """Also when the request comes in the very moment in which it goes."""
    for number in range(20):
        with Raw(tracker) as client, Raw(tracker) as alive:
            server = Raw(tracker)
            server.register("k", "k:dead")
            client.say(PING)
            server.close()
            client.request("k")
            assert client.answer() == 0
            alive.register("k", f"k:{number}")
            assert client.answer()[1][2] == f"k:{number}"


def test_whoever_goes_while_waiting_is_skipped(tracker: rpcflow.Tracker) -> None:
    with Raw(tracker) as server, Raw(tracker) as stays:
        goes = Raw(tracker)
        goes.request("k", 5)
        until(lambda: server.queue("k") == (0, 1))
        stays.request("k", 1)
        until(lambda: server.queue("k") == (0, 2))
        goes.close()
        server.register("k", "k:1")
        assert stays.answer()[1][2] == "k:1"
        assert server.queue("k") == (0, 0)


def test_a_waiting_request_is_dropped_at_once(tracker: rpcflow.Tracker) -> None:
    with Raw(tracker) as other:
        with Raw(tracker) as goes:
            for key in "kkl":
                goes.request(key)
            until(lambda: other.queue("k") == (0, 2) and other.queue("l") == (0, 1))
        until(lambda: other.queue("k") == (0, 0) and other.queue("l") == (0, 0))


def test_keys_stay_in_the_summary(tracker: rpcflow.Tracker) -> None:
    with Raw(tracker) as peer:
        with Raw(tracker) as server:
            server.register("127.0.0.1:5555", "127.0.0.1:5555:x")
        until(lambda: peer.queue("127.0.0.1:5555") == (0, 0))
        assert peer.summary()["queue_info"] == {"127.0.0.1:5555": {"free": 0, "pending": 0}}


def test_a_connection_may_offer_one_address_several_times(tracker: rpcflow.Tracker) -> None:
    """A server for several sessions, or a proxy."""
    with Raw(tracker) as server, Raw(tracker) as client:
        for number in range(3):
            server.register("k", f"k:{number}", info=False)
        client.ask(REQUEST, "k", "", 1)
        client.ask(REQUEST, "k", "", 1)
        assert sorted(state for _, state, _ in client.devices()) == ["busy", "busy", "free"]
        server.register("k", "k:3", info=False)
        assert sorted(state for _, state, _ in client.devices()) == ["busy", "free", "free"]
        assert server.ask(PUT, "k", [5000, "k:3"], None) == 0  # said again: nothing changes
        assert client.queue("k") == (2, 0)


def test_a_summary_may_be_longer_than_a_message(tracker: rpcflow.Tracker) -> None:
    with Raw(tracker) as server:
        count = 9000
        for number in range(count):
            server.say(PUT, "k" * 100, [1 + number, f"k:{number}"], "h" * 50)
            if number % 50 == 49:
                assert [server.answer() for _ in range(50)] == [0] * 50
        server.say(SUMMARY)
        head = server.take(4)
        size = int.from_bytes(head, "little")
        assert size > 1 << 20
        assert len(json.loads(server.take(size))[1]["devices"]) == count


def test_stop(host: Host) -> None:
    with host() as tracker:
        with Raw(tracker) as peer, Raw(tracker) as other:
            for wrong in ("tracker:1", "", tracker._stop_key + "x", None, 5, "\ud800"):
                assert peer.ask(STOP, wrong) == -1
            assert peer.ask(PING) == 0
            assert peer.ask(STOP, tracker._stop_key) == 0
            assert peer.ended()
            assert other.ended()

        def refused() -> bool:
            try:
                socket.create_connection((HOST, tracker.port), PATIENCE).close()
            except ConnectionRefusedError:
                return True
            return False

        until(refused)
        assert tracker._stop_key not in repr(tracker)


def test_two_trackers_side_by_side(host: Host) -> None:
    with host() as one, host() as two, Raw(one) as server, Raw(two) as client:
        server.register("k", "k:1")
        assert client.summary()["queue_info"] == {}
