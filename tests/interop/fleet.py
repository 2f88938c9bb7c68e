# SPDX-License-Identifier: Apache-2.0
"""Trackers, proxies and servers of both kinds, and the clients' ways to a device there. Each service is a process of
its own. Stock ones take seconds to start: trackers and proxies are shared, a chain's server serves all its clients.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import attrs

import rpcflow
from rpcflow import sync
from tests.server.support import until

from .peers import HOST, Client, Through
from .serverside import callback

PATIENCE = 60.0


@attrs.frozen
class Chain:
    """Who serves, and by way of whom: "stock" or "rpcflow" each, "" for nobody."""

    server: str
    tracker: str = ""
    proxy: str = ""

    def __str__(self) -> str:
        return "-".join(f"{kind}_{name}" for name, kind in attrs.asdict(self).items() if kind)

    @property
    def kinds(self) -> set[str]:
        return {self.server, self.tracker, self.proxy} - {""}


class Fleet:
    """What runs; each is started when first asked for."""

    def __init__(self) -> None:
        self._services: dict[str, Any] = {}
        self._places = 0
        self._current: tuple[Place, contextlib.ExitStack] | None = None
        # Runs side by side look for ports in different places.
        self._port = 22000 + os.getpid() * 97 % 18000

    def tracker(self, kind: str) -> tuple[str, int]:
        if kind == "rpcflow":
            made = self._shared(f"{kind} tracker", lambda: sync.Tracker(HOST, 0, silent=True))
        else:
            from tvm.rpc.tracker import Tracker

            made = self._shared(f"{kind} tracker", lambda: Tracker(HOST, *self._ports(), silent=True))
        return HOST, int(made.port)

    def proxy(self, kind: str, tracker: tuple[str, int] | None) -> int:
        make: Any
        if kind == "rpcflow":
            make = sync.Proxy
        else:
            import tvm.rpc.proxy

            make = tvm.rpc.proxy.Proxy
        made = self._shared(f"{kind} proxy at {tracker}", lambda: make(HOST, *self._ports(), tracker_addr=tracker))
        return int(made.port)

    def place(self, chain: Chain, init: Callable[[], None] | None = None) -> Place:
        """Where the device of a chain is found. It serves until that of another is asked for. ``init`` runs in the
        server before its sessions, in the place of what registers the tests' functions."""
        if self._current is None or self._current[0].chain != chain:
            self._leave()
            with contextlib.ExitStack() as stack:
                self._current = self._serve(chain, init or callback(), stack), stack.pop_all()
        return self._current[0]

    def _serve(self, chain: Chain, init: Callable[[], None], stack: contextlib.ExitStack) -> Place:
        # Trackers and proxies are shared, and a stock proxy does not tell its tracker when a server leaves it: no two
        # chains have the same key. With colons, which stand between the parts of match keys too.
        self._places += 1
        key = f"{chain.server}:{self._places}"
        options: dict[str, Any] = {"key": key, "silent": True, "server_init_callback": init}
        tracker = self.tracker(chain.tracker) if chain.tracker else None
        proxy = self.proxy(chain.proxy, tracker) if chain.proxy else None
        if proxy is not None:
            options |= {"port": proxy, "is_proxy": True}
        else:
            options |= {"port": self._ports()[0], "port_end": self._ports()[1], "tracker_addr": tracker}
        make: Any
        if chain.server == "rpcflow":
            make = sync.Server
        else:
            import tvm.rpc

            make = tvm.rpc.Server
        server = make(HOST, **options)
        stack.callback(server.terminate)
        return Place(chain, key, None if tracker is None else tracker[1], proxy)

    def _leave(self) -> None:
        if self._current is not None:
            self._current[1].close()
            self._current = None

    def close(self) -> None:
        self._leave()
        for service in self._services.values():
            service.terminate()

    def _shared(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._services:
            self._services[name] = make()
        return self._services[name]

    def _ports(self) -> tuple[int, int]:
        return self._port, self._port + 500


@attrs.frozen
class Place:
    """Where a chain's device is found: its key, and the ports of tracker and proxy."""

    chain: Chain
    key: str
    tracker: int | None
    proxy: int | None


class Way:
    """How a client comes to sessions with a device: from a tracker, or by asking a proxy for it.

    Args:
        asking: the client's tracker session, None without a tracker.
    """

    def __init__(self, client: Client, place: Place, asking: Any) -> None:
        self._client = client
        self._place = place
        self.asking = asking

    def queue(self) -> tuple[int, int]:
        """How many devices are free and how many requests wait, by the tracker's summary."""
        found = self.asking.summary()["queue_info"].get(self._place.key, {"free": 0, "pending": 0})
        return found["free"], found["pending"]

    @contextlib.contextmanager
    def session(self, **options: Any) -> Iterator[Any]:
        """A session, once the device is free."""
        client, key = self._client, self._place.key
        if self.asking is None:
            assert self._place.proxy is not None
            with client.connect(self._place.proxy, key, **options) as session:
                yield session
            return
        until(lambda: self.queue() == (1, 0), f"registration of {key}", PATIENCE)
        if client.name == "stock":
            session = self.asking.request(key, **options)
            try:
                yield session
            finally:
                with contextlib.suppress(Exception):  # see StockClient.connect
                    session._sess.get_function("CloseRPCConnection")()
        elif client.name == "sync":
            with self.asking.request(key, wait_timeout=PATIENCE, **options) as session:
                yield session
        else:
            portal = client._portal  # type: ignore[attr-defined]
            requested = self.asking._target.request(key, wait_timeout=PATIENCE, **options)
            with portal.wrap_async_context_manager(requested) as session:
                yield Through(session, portal)


@contextlib.contextmanager
def way(client: Client, place: Place) -> Iterator[Way]:
    """A client's way to the device."""
    if place.tracker is None:
        yield Way(client, place, None)
    elif client.name == "stock":
        import tvm.rpc

        asking = tvm.rpc.connect_tracker(HOST, place.tracker)
        try:
            yield Way(client, place, asking)
        finally:
            asking.close()
    elif client.name == "sync":
        with sync.connect_tracker(HOST, place.tracker) as asking:
            yield Way(client, place, asking)
    else:
        portal = client._portal  # type: ignore[attr-defined]
        with portal.wrap_async_context_manager(rpcflow.connect_tracker(HOST, place.tracker)) as asking:
            yield Way(client, place, Through(asking, portal))
