# SPDX-License-Identifier: Apache-2.0
"""The other end of the plain sockets."""

import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from benchmarks.servers.raw import MESSAGE, fill, send_file, spin_fill


class RawClient:
    def __init__(self, port: int, spin: bool = False, size: int = 0, file: str = "") -> None:
        self._port, self._spin, self._size, self._file = port, spin, size, Path(file)
        self._stack = ExitStack()
        self._lines: dict[str, socket.socket] = {}
        self._data = memoryview(bytearray(b"\2") * size)  # sent from, and the ready memory received into

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _line(self, purpose: str, size: int) -> socket.socket:
        """The connection for this purpose, kept for the next time."""
        if purpose not in self._lines:
            sock = self._stack.enter_context(socket.create_connection(("127.0.0.1", self._port)))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(purpose.encode() + size.to_bytes(8, "little"))
            self._lines[purpose] = sock
        return self._lines[purpose]

    def calls(self, count: int, warm: int) -> float:
        """Microseconds a round trip."""
        sock = self._line("p", MESSAGE)
        sock.setblocking(not self._spin)
        try:
            return self._ping(sock, count, warm)
        finally:
            if self._spin:  # or its server's thread would spin on while others are measured
                self._lines.pop("p").close()

    def _ping(self, sock: socket.socket, count: int, warm: int) -> float:
        receive = spin_fill if self._spin else fill
        message, view = bytes(MESSAGE), memoryview(bytearray(MESSAGE))
        start = 0.0
        for turn in range(-warm, count):
            if turn == 0:
                start = time.perf_counter()
            sock.sendall(message)
            receive(sock, view)
        return (time.perf_counter() - start) / count * 1e6

    def up(self) -> float:
        """Seconds to move the data into memory that is there already."""
        sock = self._line("u", self._size)
        start = time.perf_counter()
        sock.sendall(self._data)
        fill(sock, memoryview(bytearray(1)))
        return time.perf_counter() - start

    def down(self, fresh: bool) -> float:
        """Seconds to get the data, into memory just taken from the system or into memory in use."""
        import numpy

        sock = self._line("d", self._size)
        start = time.perf_counter()
        sock.sendall(b".")
        fill(sock, numpy.empty(self._size, "uint8").data if fresh else self._data)
        return time.perf_counter() - start

    def upload(self) -> float:
        """Seconds from a file into a file."""
        sock = self._line("f", self._size)
        start = time.perf_counter()
        sock.sendall(b".")
        send_file(sock, self._file, self._size)
        fill(sock, memoryview(bytearray(1)))
        return time.perf_counter() - start

    def download(self) -> float:
        """Seconds from a file into a new bytearray's worth of memory."""
        import numpy

        sock = self._line("g", self._size)
        start = time.perf_counter()
        sock.sendall(b".")
        fill(sock, numpy.empty(self._size, "uint8").data)
        return time.perf_counter() - start
