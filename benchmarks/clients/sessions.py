# SPDX-License-Identifier: Apache-2.0
"""Clients that open sessions one after another: connect, first call, close."""

import time
from typing import Any, Self

from benchmarks.servers.ports import place


class Sessions:
    def __init__(self, port: int) -> None:
        self._port = port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def _one(self) -> None:
        raise NotImplementedError

    def single(self, pause: float) -> float:
        """Milliseconds of one session, after the server had time to get ready for it."""
        time.sleep(pause)
        start = time.perf_counter()
        self._one()
        return (time.perf_counter() - start) * 1e3

    def back_to_back(self, count: int) -> float:
        """Sessions a second."""
        start = time.perf_counter()
        for _ in range(count):
            self._one()
        return count / (time.perf_counter() - start)


class RpcflowSessions(Sessions):
    def _one(self) -> None:
        from rpcflow import sync as rpc

        with rpc.connect(*place(self._port)) as session:
            echo: Any = session.get_function("testing.echo")
            if echo(7) != 7:
                raise RuntimeError("the echo is wrong")


class StockSessions(Sessions):
    def _one(self) -> None:
        from tvm import rpc

        session: Any = rpc.connect("127.0.0.1", self._port)
        echo: Any = session.get_function("testing.echo")
        if echo(7) != 7:
            raise RuntimeError("the echo is wrong")
        del echo, session  # the last reference closes the line
