# SPDX-License-Identifier: Apache-2.0
"""An rpyc server that answers what it is given."""

import threading
from typing import Any, Self


class RpycServer:
    def __init__(self) -> None:
        self._server: Any = None

    def __enter__(self) -> Self:
        import rpyc
        from rpyc.utils.server import ThreadedServer

        def exposed_echo(_: Any, value: int) -> int:
            return value

        service = type("Echo", (rpyc.Service,), {"exposed_echo": exposed_echo})
        self._server = ThreadedServer(service, hostname="127.0.0.1", port=0)
        threading.Thread(target=self._server.start, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def port(self) -> int:
        return int(self._server.port)
