# SPDX-License-Identifier: Apache-2.0
"""A tracker with one server that is registered there, or alone; each in the process it makes for itself."""

import time
from contextlib import ExitStack
from typing import Any, Self

from benchmarks.servers.ports import port_range

KEY = "bench"
REGISTERED_LIMIT = 30.0


class Fleet:
    """`tracker` and `server`: "rpcflow" or "tvm.rpc"; no server if it is empty."""

    def __init__(self, tracker: str, server: str = "") -> None:
        self._kinds = tracker, server
        self._stack = ExitStack()
        self._tracker: Any = None

    def __enter__(self) -> Self:
        tracker, server = self._kinds
        self._tracker = self._start_tracker(tracker)
        if server:
            self._start_server(server)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_tracker(self, kind: str) -> Any:
        make: Any
        if kind == "rpcflow":
            from rpcflow.sync import Tracker as make
        else:
            from tvm.rpc.tracker import Tracker as make
        running = make("127.0.0.1", *port_range(), silent=True)
        self._stack.callback(running.terminate)
        return running

    def _start_server(self, kind: str) -> None:
        rpc: Any
        if kind == "rpcflow":
            from rpcflow import sync as rpc
        else:
            from tvm import rpc
        server = rpc.Server(
            "127.0.0.1", *port_range(), key=KEY, tracker_addr=("127.0.0.1", self._tracker.port), silent=True
        )
        self._stack.callback(server.terminate)
        session = rpc.connect_tracker("127.0.0.1", self._tracker.port)
        self._stack.callback(session.close)
        end = time.monotonic() + REGISTERED_LIMIT
        while not session.summary()["queue_info"].get(KEY, {}).get("free"):
            if time.monotonic() > end:
                raise TimeoutError(f"the {kind} server did not register")
            time.sleep(0.05)

    def port(self) -> int:
        return int(self._tracker.port)

    def tracker_pid(self) -> int:
        return int(self._tracker._service.pid)
