# SPDX-License-Identifier: Apache-2.0
"""tvm.rpc's own server, in the process it makes for itself."""

import os
from typing import Any, Self

from benchmarks.servers.ports import port_range


def register_functions() -> None:
    import tvm_ffi

    tvm_ffi.register_global_func("bench.pid", lambda: os.getpid(), override=True)


class StockServer:
    def __init__(self) -> None:
        self._server: Any = None

    def __enter__(self) -> Self:
        from tvm import rpc

        first, end = port_range()
        self._server = rpc.Server("127.0.0.1", first, end, silent=True, server_init_callback=register_functions)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.terminate()

    def port(self) -> int:
        return int(self._server.port)
