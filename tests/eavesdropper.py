# SPDX-License-Identifier: Apache-2.0
"""Somebody between a client and a service, who carries everything and writes it down."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

HOST = "127.0.0.1"


@contextlib.contextmanager
def listening(port: int) -> Iterator[tuple[int, dict[str, bytearray]]]:
    """Carries one connection to ``port``: where to connect, and what has been said by ``client`` and ``service``."""
    said = {"client": bytearray(), "service": bytearray()}
    with socket.create_server((HOST, 0)) as listener:

        def carry(who: str, source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    said[who].extend(data)
                    target.sendall(data)
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)

        def serve() -> None:
            near, _ = listener.accept()
            with near, socket.create_connection((HOST, port)) as far:
                back = threading.Thread(target=carry, args=("service", far, near))
                back.start()
                carry("client", near, far)
                back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], said
        thread.join()
