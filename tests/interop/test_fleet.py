# SPDX-License-Identifier: Apache-2.0
"""Every mixture of stock and rpcflow for server, tracker, proxy and client. Those of stock alone are the control."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rpcflow
from rpcflow import sync
from tests.server.support import until

from .conftest import need_tvm
from .fleet import PATIENCE, Chain, Fleet, Place, Way, way
from .peers import HOST, Client, Link

pytestmark = pytest.mark.interop
KINDS = ["stock", "rpcflow"]
CHAINS = [
    *(Chain(server, tracker=tracker) for server, tracker in itertools.product(KINDS, KINDS)),
    *(Chain(server, proxy=proxy) for server, proxy in itertools.product(KINDS, KINDS)),
    *(Chain(*kinds) for kinds in itertools.product(KINDS, KINDS, KINDS)),
]
MIXTURES = [
    pytest.param(chain, client, id=f"{chain}-{client}", marks=pytest.mark.xdist_group(f"fleet {chain.server}"))
    for chain in CHAINS
    # The asynchronous clients ask in the same words as the blocking one: where all others are of one kind will do.
    for client in ["stock", "sync", *(["trio", "asyncio"] if len(chain.kinds) == 1 else [])]
]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    need_tvm()
    running = Fleet()
    yield running
    running.close()


@pytest.fixture
def client(clients: Callable[[str], Client], request: pytest.FixtureRequest) -> Client:
    return clients(request.param)


@pytest.mark.parametrize(("chain", "client"), MIXTURES, indirect=["client"])
def test_mixture(fleet: Fleet, chain: Chain, client: Client, kernels: Path) -> None:
    place = fleet.place(chain)
    with way(client, place) as found:
        with found.session(session_timeout=PATIENCE) as session:
            link = Link(client, session, chain.server)
            assert link.call("testing.echo", 17) == 17
            session.upload(str(kernels / "add.so"))
            result = link.empty((10,), "float32")
            session.load_module("add.so")["add_one"](link.tensor(np.arange(10, dtype="float32")), result)
            np.testing.assert_array_equal(result.numpy(), np.arange(10, dtype="float32") + 1)
            if place.tracker is not None:
                check_summary(found, place, free=0)
        with found.session(session_timeout=0.5) as session:
            with pytest.raises(client.Timeout):
                session.get_function("wire.sleep")(PATIENCE)
        with found.session() as session:
            assert session.get_function("testing.echo")("again") == "again"
        if place.tracker is not None:
            until(lambda: found.queue() == (1, 0), "being free again", PATIENCE)
            check_summary(found, place, free=1)


def check_summary(found: Way, place: Place, free: int) -> None:
    """Its shape is stock's; only rpcflow's tracker has more to say, under a name of its own."""
    summary: dict[str, Any] = found.asking.summary()
    assert set(summary) == {"queue_info", "server_info"} | ({"devices"} if place.chain.tracker == "rpcflow" else set())
    assert summary["queue_info"][place.key] == {"free": free, "pending": 0}
    for info in summary["server_info"]:
        assert set(info) == {"key", "addr"}
        host, port = info["addr"]
        assert (host, type(port)) == (HOST, int)
    names = [info["key"] for info in summary["server_info"]]
    if place.proxy is None:
        assert names.count(f"server:{place.key}") == 1, names
    else:  # by its name, which has all the keys that were there
        assert any(one.startswith("server:proxy[") and place.key in one for one in names), names
    text = found.asking.text_summary()  # whose table of queues leaves keys with colons out
    assert text.startswith("Server List\n")
    assert all(one in text for one in names)
    assert "Queue Status" in text


@pytest.mark.parametrize("tracker", KINDS)
def test_the_same_summary_in_the_same_words(clients: Callable[[str], Client], tracker: str) -> None:
    need_tvm()
    with contextlib.closing(Fleet()) as fleet:  # stock leaves keys with colons out of a table, we do not
        place = Place(Chain("rpcflow", tracker), "", fleet.tracker(tracker)[1], None)
        with way(clients("stock"), place) as stock, way(clients("sync"), place) as ours:
            assert ours.asking.text_summary() == stock.asking.text_summary()
            for name in ("a", "a-much-longer-name"):
                with sync.Server(HOST, 0, key=name, tracker_addr=(HOST, place.tracker), silent=True):
                    assert ours.asking.text_summary() == stock.asking.text_summary()
                    assert ours.asking.summary() == stock.asking.summary()


@pytest.mark.parametrize("tracker", KINDS)
def test_several_sessions_of_one_server(fleet: Fleet, tracker: str) -> None:
    host, port = fleet.tracker(tracker)
    options: dict[str, Any] = {"tracker_addr": (host, port), "key": "several", "silent": True, "max_sessions": 3}
    with sync.Server(HOST, 0, **options), sync.connect_tracker(host, port) as asking:
        until(lambda: asking.summary()["queue_info"]["several"]["free"] == 3, "registration", PATIENCE)
        sessions = []
        for left in (2, 1, 0):
            sessions.append(asking.request("several", wait_timeout=PATIENCE))
            assert asking.summary()["queue_info"]["several"]["free"] == left
        with pytest.raises(rpcflow.WaitTimeoutError):
            asking.request("several", wait_timeout=0.2)
        for session in sessions:
            session.close()
        # Of a stock tracker's requesters it is noticed only when something is offered them that they have gone.
        free = {"free": 3, "pending": 0}
        until(lambda: asking.summary()["queue_info"]["several"] == free, "coming back", PATIENCE)


def test_a_stock_client_and_request_and_run(fleet: Fleet) -> None:
    import tvm.rpc

    place = fleet.place(Chain("rpcflow", "rpcflow"))
    asking = tvm.rpc.connect_tracker(HOST, place.tracker)
    for _ in range(2):
        assert asking.request_and_run(place.key, lambda session: session.get_function("testing.echo")(5)) == 5
    asking.close()
