# SPDX-License-Identifier: Apache-2.0
"""A server that waits at a proxy, each in a process of its own; clients find them at the proxy's port."""

from contextlib import ExitStack
from typing import Any, Self

from benchmarks.servers.ports import port_range

KEY = "bench"


class ProxiedServer:
    """`proxy`: whose proxy, "rpcflow" or "tvm.rpc"; `server`: whose server; `poll` False turns polling off in ours."""

    def __init__(self, proxy: str = "rpcflow", server: str = "rpcflow", poll: bool = True) -> None:
        self._proxy_kind, self._server_kind = proxy, server
        self._options: dict[str, Any] = {} if poll else {"poll": False}
        self._stack = ExitStack()
        self._proxy: Any = None

    def __enter__(self) -> Self:
        first, end = port_range()
        if self._proxy_kind == "rpcflow":
            from rpcflow.sync import Proxy
        else:
            from tvm.rpc.proxy import Proxy
        self._proxy = Proxy("127.0.0.1", first, end)
        self._stack.callback(self._proxy.terminate)
        server: Any
        if self._server_kind == "rpcflow":
            from benchmarks.servers.rpcflow import register_functions
            from rpcflow import sync as rpc

            self._options["server_init_callback"] = register_functions
            server = rpc.Server("127.0.0.1", self._proxy.port, is_proxy=True, key=KEY, silent=True, **self._options)
        else:
            from tvm import rpc as stock

            from benchmarks.servers.stock import register_functions as register_stock

            server = stock.Server(
                "127.0.0.1", self._proxy.port, is_proxy=True, key=KEY, silent=True, server_init_callback=register_stock
            )
        self._stack.callback(server.terminate)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def port(self) -> int:
        return int(self._proxy.port)
