# SPDX-License-Identifier: Apache-2.0
"""rpcflow's server, in the process it makes for itself."""

import os
from typing import Any, Self

from benchmarks.servers.ports import port_range


def register_functions() -> None:
    import rpcflow

    rpcflow.register("bench.pid", lambda: os.getpid(), override=True)
    rpcflow.register("bench.nothing", lambda *args: None, override=True)


class RpcflowServer:
    """`poll` False turns adaptive polling off in the sessions' processes."""

    def __init__(self, poll: bool = True) -> None:
        self._options: dict[str, Any] = {} if poll else {"poll": False}
        self._server: Any = None

    def __enter__(self) -> Self:
        from rpcflow import sync as rpc

        first, end = port_range()
        self._server = rpc.Server(
            "127.0.0.1", first, end, silent=True, server_init_callback=register_functions, **self._options
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.terminate()

    def port(self) -> int:
        return int(self._server.port)
