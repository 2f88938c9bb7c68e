# SPDX-License-Identifier: Apache-2.0
"""The doctor at servers, trackers and proxies. Stock ones are asked the same as ours."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from rpcflow import sync
from rpcflow.client.diagnosis import Mark
from rpcflow.client.registered import Registered
from tests.interop.conftest import need_tvm
from tests.server.support import until

from . import strangers
from .examining import BRIEF, KEY, PATIENT, ended, examine, free_port, make_proxy, make_server, make_tracker, marks
from .strangers import HOST

# ---------------------------------------------------------------------------------------------- servers


def test_a_server(kind: str, backend: str) -> None:
    with ended(make_server(kind, key=KEY)) as server:
        assert marks(examine(server.port, None, PATIENT, backend)) == "ok:connection ok:answer"
        hops = examine(server.port, KEY)
        assert marks(hops) == "ok:connection ok:answer ?:key"
        assert "KeyMismatchError" in hops[-1].advice
        with sync.connect(HOST, server.port, KEY, wait_timeout=30) as session:  # unharmed, and not taken
            assert session.cpu(0).exist


def test_a_busy_server() -> None:
    with ended(make_server("rpcflow", key=KEY)) as server, sync.connect(HOST, server.port, KEY):
        assert marks(examine(server.port)) == "ok:connection ok:answer"


@pytest.mark.interop
def test_a_busy_stock_server() -> None:
    need_tvm()
    with ended(make_server("stock", key=KEY)) as server:
        with sync.connect(HOST, server.port, KEY, wait_timeout=30) as session:
            hops = examine(server.port, KEY, BRIEF)
            assert marks(hops) == "ok:connection FAIL:answer"
            assert "stock server, it serves somebody" in hops[-1].advice
            assert session.cpu(0).exist
        assert marks(examine(server.port)) == "ok:connection ok:answer"  # what we left there did it no harm


def test_a_name_and_a_unix_socket(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "s"
    with sync.Server(f"unix:{path}", silent=True) as server:
        del server
        assert marks(examine(f"unix:{path}", None, PATIENT, backend)) == "ok:connection ok:answer"
    hops = examine(f"unix:{path}", None, PATIENT, backend)
    assert marks(hops) == "FAIL:connection"
    assert "no such socket" in hops[0].text
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    hops = examine(f"unix:{path}")
    assert "nobody listens" in hops[0].text
    with ended(make_server("rpcflow")) as server:
        hops = examine(f"localhost:{server.port}")
        assert marks(hops) == "ok:name ok:connection ok:answer"
        assert HOST in hops[0].text


# ---------------------------------------------------------------------------------------------- trackers


def test_a_tracker_without_servers(kind: str, backend: str) -> None:
    with ended(make_tracker(kind)) as tracker:
        hops = examine(tracker.port, None, PATIENT, backend)
        assert marks(hops) == "ok:connection ok:answer ok:registration"
        assert hops[1].text == "a tracker"
        hops = examine(tracker.port, KEY, PATIENT, backend)
        assert marks(hops) == "ok:connection ok:answer FAIL:registration"
        assert f"--key {KEY}" in hops[-1].advice


@pytest.mark.parametrize("server_kind", ["rpcflow", pytest.param("stock", marks=pytest.mark.interop)])
def test_a_tracker_with_a_server(kind: str, server_kind: str) -> None:
    if server_kind == "stock":
        need_tvm()
    with ended(make_tracker(kind)) as tracker, sync.connect_tracker(HOST, tracker.port) as asking:
        with ended(make_server(server_kind, key=KEY, tracker_addr=(HOST, tracker.port))):
            until(lambda: asking.summary()["queue_info"].get(KEY, {}).get("free") == 1)
            hops = examine(tracker.port, KEY)
            assert marks(hops) == "ok:connection ok:answer ok:registration ok:address"
            assert "1 registered, 1 free" in hops[2].text
            assert "this machine only" in hops[3].text
            assert asking.summary()["queue_info"][KEY] == {"free": 1, "pending": 0}
            assert marks(examine(tracker.port)) == "ok:connection ok:answer ok:registration ok:address"
            hops = examine(tracker.port, "other")
            assert marks(hops) == "ok:connection ok:answer FAIL:registration"
            assert KEY in hops[-1].text
            with asking.request(KEY, wait_timeout=60) as session:
                assert session.cpu(0).exist
                hops = examine(tracker.port, KEY, PATIENT if server_kind == "rpcflow" else BRIEF)
                assert "0 free" in hops[2].text
                assert hops[3].mark is (Mark.OK if server_kind == "rpcflow" else Mark.UNSURE)


def test_an_address_that_leads_nowhere() -> None:
    with sync.Tracker(HOST, 0, silent=True) as tracker, socket.create_server((HOST, 0)) as taken:
        taken.close()
        options: dict[str, Any] = {"key": KEY, "tracker_addr": (HOST, tracker.port)}
        with (
            ended(make_server("rpcflow", custom_addr="no.such.host.invalid", **options)),
            ended(make_server("rpcflow", custom_addr="127.0.0.77", **options)),
        ):
            hops = examine(tracker.port, KEY)
            assert marks(hops[2:]) == "ok:registration FAIL:address FAIL:address"
            assert "no.such.host.invalid" in hops[3].text
            assert "127.0.0.77" in hops[4].text
            assert all("--custom-addr" in hop.advice for hop in hops[3:])


def test_a_server_that_has_gone() -> None:
    with sync.Tracker(HOST, 0, silent=True) as tracker, sync.connect_tracker(HOST, tracker.port) as asking:
        with ended(make_server("rpcflow", key=KEY, tracker_addr=(HOST, tracker.port))):
            pass
        until(lambda: [device["state"] for device in asking.summary()["devices"]] == ["offline"])
        hops = examine(tracker.port, KEY)
        assert hops[-1].mark is Mark.FAIL
        assert "seconds ago" in hops[-1].text


ADDRESSES = [["10.0.0.1", 0], ["", 9091], ["a b", 9091], ["a\x00b", 9091], [None, 9091], 7, None, ["x" * 999, 1]]


@pytest.mark.parametrize("address", ADDRESSES, ids=repr)
def test_a_tracker_that_has_nonsense(address: Any) -> None:
    for info in ({"devices": [{"key": "\x1b[2J", "addr": address}, 5, {}]}, {}):
        summary = {"queue_info": {"\x1b[2J": 5}, "server_info": [{"key": "server:\x1b[2J", "addr": address}, 5, {}]}
        with strangers.listening(strangers.tracker_saying(json.dumps([0, {**summary, **info}]).encode())) as port:
            assert marks(examine(port)) == "ok:connection ok:answer ok:registration FAIL:address"


def test_many_addresses_are_not_all_tried() -> None:
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        closed = nobody.getsockname()[1]
        servers = [{"key": "server:k", "addr": [f"127.0.1.{n}", closed]} for n in range(200)]
        answer = json.dumps([0, {"queue_info": {}, "server_info": servers}]).encode()
        with strangers.listening(strangers.tracker_saying(answer)) as port:
            hops = examine(port, "k")
    assert marks(hops[3:]) == " ".join(["FAIL:address"] * 8 + ["?:address"])
    assert "192 more" in hops[-1].text


def test_keys_behind_a_proxy_are_known_by_name() -> None:
    info = {"key": "server:proxy[a,b:1]", "addr": ["10.0.0.9", 9091]}
    registered = Registered({"queue_info": {}, "server_info": [info, {"key": "server:a", "addr": ["::1", 1]}]})
    assert registered.keys() == {"a": 2, "b:1": 1}
    assert [place.shown for place in registered.places("a")] == ["10.0.0.9:9091", "[::1]:1"]


# ---------------------------------------------------------------------------------------------- proxies


def test_a_proxy(kind: str, backend: str) -> None:
    with ended(make_proxy(kind)) as proxy:
        hops = examine(proxy.port, None, PATIENT, backend)
        assert marks(hops) == "ok:connection ok:answer"
        assert "a proxy" in hops[1].text
        with ended(make_server("rpcflow", key=KEY, is_proxy=True, port=proxy.port)):
            hops = examine(proxy.port, KEY, PATIENT)
            assert marks(hops) == "ok:connection ok:answer ?:key"
            with sync.connect(HOST, proxy.port, KEY, wait_timeout=30) as session:
                assert session.cpu(0).exist


def test_a_proxy_with_a_tracker(kind: str) -> None:
    with sync.Tracker(HOST, 0, silent=True) as tracker, sync.connect_tracker(HOST, tracker.port) as asking:
        with ended(make_proxy(kind, tracker_addr=(HOST, tracker.port))) as proxy:
            with ended(make_server("rpcflow", key="boards", is_proxy=True, port=proxy.port)):
                until(lambda: asking.summary()["queue_info"].get("boards", {}).get("free") == 1)
                assert marks(examine(proxy.port)) == "ok:connection ok:answer"
                hops = examine(tracker.port, "boards")
                assert marks(hops) == "ok:connection ok:answer ok:registration ok:address"
                assert str(proxy.port) in hops[-1].text
                assert asking.summary()["queue_info"]["boards"] == {"free": 1, "pending": 0}


def test_a_web_port(kind: str, backend: str) -> None:
    pytest.importorskip("wsproto")
    web = free_port()
    with ended(make_proxy(kind, web_port=web)) as proxy:
        hops = examine(f"ws://{HOST}:{web}/ws", None, PATIENT, backend)
        assert marks(hops) == "ok:connection ok:answer"
        hops = examine(f"ws://{HOST}:{web}/elsewhere", None, PATIENT, backend)
        assert marks(hops) == "FAIL:connection"
        assert "404" in hops[0].text
        hops = examine(web, None, PATIENT, backend)
        assert marks(hops) == "ok:connection FAIL:answer"
        assert f"ws://{HOST}:{web}/ws" in hops[1].advice
        hops = examine(f"ws://{HOST}:{proxy.port}", None, PATIENT, backend)
        assert marks(hops) == "FAIL:connection"
