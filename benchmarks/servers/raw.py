# SPDX-License-Identifier: Apache-2.0
"""Plain sockets: the floor under everything else. The first byte of a connection says what it is for."""

import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Self

MESSAGE = 64  # bytes each way in ping-pong: about what one call of an int takes in TVM's packets
HEAD = 9  # what for, then the size
PIECE = 1 << 20


def fill(sock: socket.socket, view: memoryview) -> None:
    """Receive exactly as much as the view holds, straight into it."""
    got = 0
    while got < len(view):
        more = sock.recv_into(view[got:])
        if not more:
            raise EOFError
        got += more


def spin_fill(sock: socket.socket, view: memoryview) -> None:
    """The same on a non-blocking socket, never sleeping."""
    got = 0
    while got < len(view):
        try:
            more = sock.recv_into(view[got:])
        except BlockingIOError:
            continue
        if not more:
            raise EOFError
        got += more


def send_file(sock: socket.socket, path: Path, size: int) -> None:
    with path.open("rb") as file:
        sent = 0
        while sent < size:
            sent += os.sendfile(sock.fileno(), file.fileno(), sent, size - sent)


class RawServer:
    def __init__(self, spin: bool = False) -> None:
        self._spin = spin
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._folder.cleanup()

    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _listen(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = bytearray(HEAD)
        with sock:
            try:
                fill(sock, memoryview(head))
                size = int.from_bytes(head[1:], "little")
                getattr(
                    self,
                    "_" + {"p": "ping", "u": "take", "d": "give", "f": "store", "g": "fetch"}[chr(head[0])],
                )(sock, size)
            except (EOFError, OSError):
                return

    def _ping(self, sock: socket.socket, size: int) -> None:
        view = memoryview(bytearray(size))
        receive = spin_fill if self._spin else fill
        sock.setblocking(not self._spin)
        while True:
            receive(sock, view)
            sock.sendall(view)

    def _take(self, sock: socket.socket, size: int) -> None:
        """Into memory that is there already; each time one byte back."""
        view = memoryview(bytearray(b"\1") * size)
        while True:
            fill(sock, view)
            sock.sendall(b".")

    def _give(self, sock: socket.socket, size: int) -> None:
        data = memoryview(bytearray(b"\1") * size)
        while sock.recv(1):
            sock.sendall(data)

    def _store(self, sock: socket.socket, size: int) -> None:
        """Into a file, made anew each time."""
        view = memoryview(bytearray(PIECE))
        while True:
            fill(sock, view[:1])
            with Path(self._folder.name, "stored").open("wb", buffering=0) as file:
                left = size
                while left:
                    got = sock.recv_into(view[: min(left, PIECE)])
                    if not got:
                        raise EOFError
                    file.write(view[:got])
                    left -= got
            sock.sendall(b".")

    def _fetch(self, sock: socket.socket, size: int) -> None:
        path = Path(self._folder.name, "fetched")
        path.write_bytes(b"\1" * size)
        while sock.recv(1):
            send_file(sock, path, size)
