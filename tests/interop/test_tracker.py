# SPDX-License-Identifier: Apache-2.0
"""Stock servers and stock clients at rpcflow's tracker. The control is the same with a stock tracker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.support import until

from .conftest import need_tvm
from .peers import HOST

pytestmark = pytest.mark.interop
# Runs side by side look for ports in different places.
PORT = 42000 + os.getpid() * 97 % 15000


@pytest.fixture(params=["stock", "rpcflow"])
def tracker(request: pytest.FixtureRequest) -> Iterator[Any]:
    need_tvm()
    make: Any
    if request.param == "stock":
        from tvm.rpc.tracker import Tracker as make
    else:
        from rpcflow.sync import Tracker as make
    running = make(HOST, PORT, PORT + 500, silent=True)
    yield running
    running.terminate()


@pytest.fixture
def serve(tracker: Any) -> Iterator[Any]:
    """Starts stock servers that register there."""
    from tvm import rpc

    running = []

    def start(key: str, **options: Any) -> Any:
        server = rpc.Server(HOST, PORT, PORT + 500, key=key, tracker_addr=(HOST, tracker.port), silent=True, **options)
        running.append(server)
        return server

    yield start
    for server in running:
        server.terminate()


@pytest.fixture
def client(tracker: Any) -> Iterator[Any]:
    from tvm import rpc

    session = rpc.connect_tracker(HOST, tracker.port)
    yield session
    session.close()


def queue(client: Any, key: str) -> tuple[int, int]:
    info = client.summary()["queue_info"].get(key, {"free": 0, "pending": 0})
    return info["free"], info["pending"]


def works(session: Any) -> bool:
    return bool(session.get_function("rpc.test.addone")(1) == 2)


def test_a_session_and_another(serve: Any, client: Any) -> None:
    serve("dev:1")
    until(lambda: queue(client, "dev:1") == (1, 0))
    session = client.request("dev:1", session_timeout=60)
    assert works(session)
    assert queue(client, "dev:1") == (0, 0)
    del session
    until(lambda: queue(client, "dev:1") == (1, 0))  # with a new match key
    assert works(client.request("dev:1"))


def test_text_summary(serve: Any, client: Any) -> None:
    server = serve("board", custom_addr="10.1.2.3")
    serve("board")
    until(lambda: queue(client, "board") == (2, 0))
    text = client.text_summary()
    assert f"10.1.2.3:{server.port}" in text
    assert text.count("server:board") == 2
    assert "board   2      2     0" in text


def test_a_server_that_ends_is_gone(serve: Any, client: Any) -> None:
    server = serve("board")
    until(lambda: queue(client, "board") == (1, 0))
    server.terminate()
    until(lambda: queue(client, "board") == (0, 0))
    assert client.summary()["server_info"] == []


def test_request_and_run(serve: Any, client: Any) -> None:
    serve("board")
    assert client.request_and_run("board", works)


def test_the_tracker_is_stopped_as_its_parent_stops_it(tracker: Any, client: Any) -> None:
    assert client.summary()["queue_info"] == {}
    tracker.terminate()
    with pytest.raises(Exception):  # noqa: B017 (stock raises what its socket does)
        client.summary()


def test_through_a_stock_proxy(tracker: Any, client: Any) -> None:
    from tvm import rpc
    from tvm.rpc.proxy import Proxy

    proxy = Proxy(HOST, PORT, PORT + 500, tracker_addr=(HOST, tracker.port))
    try:
        server = rpc.Server(proxy.host, proxy.port, key="behind", is_proxy=True, silent=True)
        try:
            until(lambda: queue(client, "behind") == (1, 0))
            # It registers first and says who it is then.
            until(lambda: [info["key"] for info in client.summary()["server_info"]] == ["server:proxy[behind]"])
            assert works(client.request("behind"))
        finally:
            server.terminate()
    finally:
        proxy.terminate()
