# SPDX-License-Identifier: Apache-2.0
"""Clients of a tracker: round trips, sessions, and a crowd of ten thousand."""

import json
import resource
import socket
import struct
import time
from contextlib import ExitStack
from typing import Any, Self

from benchmarks.servers.trackers import KEY

MAGIC = struct.pack("<i", 0x2F271)
FREE_LIMIT = 30.0


class Tracking:
    """A tracker session of one kind."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._session: Any = None

    def __enter__(self) -> Self:
        self._session = self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def _connect(self) -> Any:
        raise NotImplementedError

    def summary(self, count: int) -> float:
        """Milliseconds a summary."""
        start = time.perf_counter()
        for _ in range(count):
            self._session.summary()
        return (time.perf_counter() - start) / count * 1e3

    def session(self) -> float:
        """Milliseconds from the request to the answer of a first call, when a server is free."""
        end = time.monotonic() + FREE_LIMIT
        while not self._session.summary()["queue_info"][KEY]["free"]:
            if time.monotonic() > end:
                raise TimeoutError("no server became free")
            time.sleep(0.02)
        time.sleep(0.1)  # in which the server clears up after the session before
        start = time.perf_counter()
        session = self._session.request(KEY)
        if session.get_function("testing.echo")(7) != 7:
            raise RuntimeError("the echo is wrong")
        taken = (time.perf_counter() - start) * 1e3
        del session  # the last reference closes the line
        return taken


class RpcflowTracking(Tracking):
    def _connect(self) -> Any:
        from rpcflow import sync as rpc

        return rpc.connect_tracker("127.0.0.1", self._port)


class StockTracking(Tracking):
    def _connect(self) -> Any:
        from tvm import rpc

        return rpc.connect_tracker("127.0.0.1", self._port)


class Crowd:
    """Very many connections, one socket each, and as few instructions of our own as possible."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stack = ExitStack()
        self._servers: list[socket.socket] = []
        self._waiting: list[socket.socket] = []
        self._numbers = 0

    def __enter__(self) -> Self:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._client = self._line()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _line(self) -> socket.socket:
        sock = self._stack.enter_context(socket.create_connection(("127.0.0.1", self._port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(MAGIC)
        if _take(sock, 4) != MAGIC:
            raise RuntimeError("that is no tracker")
        return sock

    def _put(self, key: str) -> bytes:
        self._numbers += 1
        return _frame([3, key, [5000, f"{key}:0.{self._numbers:016d}"], None])

    def register(self, count: int) -> float:
        """Seconds in which so many servers connect and register, one after the other."""
        start = time.perf_counter()
        for _ in range(count):
            sock = self._line()
            _ask(sock, _frame([5, {"key": f"server:{KEY}", "addr": [None, 5000]}]))
            _ask(sock, self._put(KEY))
            self._servers.append(sock)
        return time.perf_counter() - start

    def wait(self, count: int) -> None:
        """So many clients connect and wait for what is not there yet."""
        for _ in range(count):
            sock = self._line()
            sock.sendall(_frame([4, "rare", "", 1]))
            self._waiting.append(sock)
        self.queue()

    def queue(self) -> Any:
        return json.loads(_ask(self._client, _frame([6])))[1]["queue_info"]

    def serve(self) -> float:
        """Grants a second: what all of them wait for is offered at once."""
        servers, waiting = self._servers, self._waiting
        start = time.perf_counter()
        for number in range(len(waiting)):
            servers[number % len(servers)].sendall(self._put("rare"))
        for sock in waiting:
            if json.loads(_answer(sock))[0] != 0:
                raise RuntimeError("refused")
        taken = time.perf_counter() - start
        for number in range(len(waiting)):
            _answer(servers[number % len(servers)])
        return len(waiting) / taken

    def request(self, count: int) -> float:
        """Microseconds of a request that is served at once. What it took is offered again."""
        taken = 0.0
        message = _frame([4, KEY, "", 1])
        for number in range(count):
            start = time.perf_counter()
            _ask(self._client, message)
            taken += time.perf_counter() - start
            _ask(self._servers[number % len(self._servers)], self._put(KEY))
        return taken / count * 1e6


def _frame(message: Any) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack("<i", len(data)) + data


def _take(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError("the tracker has closed")
        data += piece
    return data


def _answer(sock: socket.socket) -> bytes:
    return _take(sock, struct.unpack("<i", _take(sock, 4))[0])


def _ask(sock: socket.socket, frame: bytes) -> bytes:
    sock.sendall(frame)
    return _answer(sock)
