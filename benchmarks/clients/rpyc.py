# SPDX-License-Identifier: Apache-2.0
"""An rpyc client."""

import time
from typing import Any, Self


class RpycClient:
    def __init__(self, port: int) -> None:
        self._port = port
        self._line: Any = None

    def __enter__(self) -> Self:
        import rpyc

        self._line = rpyc.connect("127.0.0.1", self._port)
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()

    def calls(self, count: int, warm: int) -> float:
        """Microseconds a call."""
        echo = self._line.root.echo
        start = 0.0
        for turn in range(-warm, count):
            if turn == 0:
                start = time.perf_counter()
            echo(7)
        return (time.perf_counter() - start) / count * 1e6
