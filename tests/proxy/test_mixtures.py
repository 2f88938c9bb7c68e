# SPDX-License-Identifier: Apache-2.0
"""Every mixture of stock and rpcflow for the proxy, the server behind it and the client. Those with a tracker are in
tests/interop/test_fleet.py."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from rpcflow import sync
from tests.interop.conftest import need_tvm
from tests.interop.peers import make_client
from tests.server.support import HOST, PATIENCE, ROOT

from .conftest import free_port

pytestmark = [pytest.mark.interop, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="servers: Linux")]
KEY = "mixed"
STOCK_WEBSOCKET_SERVER = """
import sys
from tvm.rpc.proxy import websocket_proxy_server
websocket_proxy_server(sys.argv[1], sys.argv[2])
"""


def first_port() -> int:
    return min(free_port(), 65000)


class Proxies:
    """One proxy of each kind for all tests: who comes and goes is what is tested."""

    def __init__(self) -> None:
        self._running: dict[str, Any] = {}

    def get(self, kind: str, tracker: tuple[str, int] | None = None) -> tuple[int, int]:
        """The ports of a proxy, for TCP and for the web."""
        name = f"{kind} {tracker}"
        if name not in self._running:
            port, web = first_port(), free_port()
            if kind == "stock":
                from tvm.rpc.proxy import Proxy as StockProxy

                made = StockProxy(HOST, port, port + 100, web_port=web, tracker_addr=tracker)
            else:
                made = sync.Proxy(HOST, port, port + 100, web_port=web, tracker_addr=tracker)
            self._running[name] = (made, web)
        made, web = self._running[name]
        return int(made.port), web

    def close(self) -> None:
        for made, _ in self._running.values():
            made.terminate()


@pytest.fixture(scope="module")
def proxies() -> Iterator[Proxies]:
    need_tvm()
    made = Proxies()
    yield made
    made.close()


@contextlib.contextmanager
def serving(kind: str, port: int, web: int, key: str) -> Iterator[None]:
    """A server at a proxy: one that speaks plain TCP, or by websocket."""
    if kind == "stock websocket":
        command = [sys.executable, "-c", STOCK_WEBSOCKET_SERVER, f"ws://{HOST}:{web}/ws", key]
        with subprocess.Popen(command, cwd=ROOT) as process:
            try:
                yield
            finally:
                process.kill()
        return
    made: Any
    if kind == "stock":
        import tvm.rpc

        made = tvm.rpc.Server(HOST, port, is_proxy=True, key=key, silent=True)
    else:
        url = f"ws://{HOST}:{web}/ws" if kind == "rpcflow websocket" else f"tcp://{HOST}:{port}"
        made = sync.Server(url, is_proxy=True, key=key, silent=True)
    try:
        yield
    finally:
        made.terminate()


SERVERS = ["stock", "rpcflow", "stock websocket", "rpcflow websocket"]


@pytest.mark.parametrize("client", ["stock", "sync", "trio", "asyncio"])
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("proxy", ["stock", "rpcflow"])
def test_session(proxies: Proxies, proxy: str, server: str, client: str) -> None:
    port, web = proxies.get(proxy)
    key = f"{KEY}-{server}-{client}".replace(" ", "-")
    talker = make_client(client)
    sessions = 1 if server == "stock websocket" else 3  # stock's ends with its first
    with serving(server, port, web, key):
        for turn in range(sessions):
            with talker.connect(port, key, session_timeout=PATIENCE) as session:
                echo = session.get_function("testing.echo")
                assert echo(turn) == turn
                assert echo("by proxy") == "by proxy"
                array = numpy.random.default_rng(turn).random(300_000)
                device = session.cpu(0)
                tensor = talker.tensor(device, array)
                assert numpy.array_equal(tensor.numpy(), array)
                del tensor, echo, device
    talker.close()
