# SPDX-License-Identifier: Apache-2.0
"""Strangers at a door that speaks TLS, and a client that has paired and wants in among them."""

import contextlib
import itertools
import os
import random
import selectors
import socket
import ssl
import struct
import tempfile
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any, Literal, Self

from rpcflow.transports.descriptors import raise_limit
from rpcflow.transports.url import Url

_NO_PORT_YET = 24
"""``IP_BIND_ADDRESS_NO_PORT`` of Linux: the port is chosen with the other end in mind, so that none runs out."""
_RESET = struct.pack("ii", 1, 0)
_PATIENCE = 10.0
"""Seconds until a handshake that came to nothing makes way for another."""
_REST = 1.0
"""Seconds until an idle line that the server has closed is made anew."""
_TICK = 0.002
_CERTIFICATE = b"-----BEGIN CERTIFICATE"
Kind = Literal["idle", "hello", "whole"]


class Strangers:
    """Lines from many addresses of this machine, in one thread.

    Args:
        port: the URL of the server.
        addresses: how many addresses they come from, 127.0.0.2 the first.
        idle: how many lines are kept that say nothing.
        most: how many handshakes may be under way.
    """

    def __init__(self, port: str, addresses: int = 200, idle: int = 0, most: int = 4000) -> None:
        url = Url.parse(port)
        self._place = (url.host, url.port)
        self._idle = idle
        self._most = most
        self._sources = itertools.cycle([f"127.0.{(i + 2) >> 8}.{(i + 2) & 255}" for i in range(addresses)])
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._context.set_alpn_protocols(["rpcflow"])
        self._hello = _Handshake(self._context).said()
        self._selector = selectors.DefaultSelector()
        self._lines: dict[socket.socket, _Line] = {}
        self._open: Counter[Kind] = Counter()
        self._resting: deque[float] = deque()

    def __enter__(self) -> Self:
        raise_limit()
        return self

    def __exit__(self, *_: object) -> None:
        for line in list(self._lines.values()):
            self._close(line)
        self._selector.close()

    def settle(self) -> None:
        """Make all idle lines that there are to be; the server may have closed some of them already."""
        while self._idle > self._open["idle"] + len(self._resting):
            self._keep_idle()
            self._look(_TICK)

    def flood(self, seconds: float, rate: float, whole: float = 0.0) -> dict[str, int]:
        """Keep idle lines, and begin handshakes.

        Args:
            rate: of them a second; 0 for none, and infinite for as many as can be under way.
            whole: the part of them that is finished if the server lets it; the others stop after the ClientHello.

        Returns:
            How many were begun, answered, finished, refused (reset or closed before an answer) and given up.
        """
        self._done: Counter[str] = Counter()
        begin = time.monotonic()
        sweep = begin
        begun = 0
        while (now := time.monotonic()) < begin + seconds:
            self._keep_idle()
            due = rate * (now - begin) - begun
            for _ in range(int(min(due, 200, self._most - self._open["hello"] - self._open["whole"]))):
                self._begin("whole" if random.random() < whole else "hello")
                begun += 1
            self._look(_TICK)
            if now >= sweep:
                sweep = now + 0.5
                self._give_up(now - _PATIENCE)
        return {"begun": begun, "seconds": round(time.monotonic() - begin), **self._done}

    # ---- lines

    def _keep_idle(self) -> None:
        now = time.monotonic()
        while self._resting and self._resting[0] < now:
            self._resting.popleft()
        for _ in range(min(100, self._idle - self._open["idle"] - len(self._resting))):
            self._begin("idle")

    def _begin(self, kind: Kind) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_IP, _NO_PORT_YET, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)  # nothing stays behind in the kernel
        sock.bind((next(self._sources), 0))
        sock.connect_ex(self._place)
        line = self._lines[sock] = _Line(sock, kind, time.monotonic())
        self._open[kind] += 1
        self._selector.register(sock, selectors.EVENT_READ if kind == "idle" else selectors.EVENT_WRITE, line)

    def _look(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            line: _Line = key.data
            try:
                self._go_on(line)
            except OSError:
                self._end(line, "refused")

    def _go_on(self, line: "_Line") -> None:
        if line.kind == "idle":
            line.sock.recv(65536)
            self._close(line)  # there is nothing that it could be told but that it is over
        elif not line.said:
            line.said = True
            if line.kind == "whole":
                line.handshake = _Handshake(self._context)
            line.sock.send(self._hello if line.handshake is None else line.handshake.said())
            self._selector.modify(line.sock, selectors.EVENT_READ, line)
        else:
            data = line.sock.recv(65536)
            if not data:
                self._end(line, "refused")
            elif line.handshake is None:
                self._end(line, "answered")
            elif line.handshake.hear(data):
                line.sock.send(line.handshake.said())
                self._end(line, "finished")

    def _end(self, line: "_Line", how: str) -> None:
        if line.kind != "idle":
            self._done[how] += 1
        self._close(line)

    def _give_up(self, before: float) -> None:
        for line in [line for line in self._lines.values() if line.kind != "idle" and line.since < before]:
            self._end(line, "given up")

    def _close(self, line: "_Line") -> None:
        del self._lines[line.sock]
        self._open[line.kind] -= 1
        if line.kind == "idle":
            self._resting.append(time.monotonic() + _REST)
        self._selector.unregister(line.sock)
        line.sock.close()


class _Line:
    def __init__(self, sock: socket.socket, kind: Kind, since: float) -> None:
        self.sock = sock
        self.kind = kind
        self.since = since
        self.said = False
        self.handshake: _Handshake | None = None


class _Handshake:
    """The client's part of one, without a socket."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out)
        self._over()

    def hear(self, data: bytes) -> bool:
        """Whether it is over now."""
        self._in.write(data)
        return self._over()

    def said(self) -> bytes:
        return self._out.read()

    def _over(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True


class Paired:
    """A client whose certificate the server knows.

    Args:
        port: the URL of the server.
        known_clients: the folder where the server finds it.
    """

    def __init__(self, port: str, known_clients: str) -> None:
        self._url = port
        self._known = known_clients

    def __enter__(self) -> Self:
        from rpcflow import sync
        from rpcflow.errors import ConnectionLostError
        from rpcflow.security.identity import ensure_identity
        from rpcflow.security.known import KnownClients

        self._home = tempfile.TemporaryDirectory()
        os.environ["RPCFLOW_HOME"] = self._home.name
        with contextlib.suppress(ConnectionLostError):  # what it needs is imported when it is first needed
            sync.connect("tls://127.0.0.1:1?pin=sha256:" + "0" * 64)
        key_and_certificate = Path(ensure_identity().path).read_bytes()
        KnownClients(self._known).add("paired", key_and_certificate[key_and_certificate.index(_CERTIFICATE) :])
        return self

    def __exit__(self, *_: object) -> None:
        self._home.cleanup()

    def sessions(self, seconds: float, pause: float = 0.5) -> list[tuple[float, str]]:
        """A session each ``pause`` seconds: how long each took until its first call was answered, and what went wrong
        with it, if something did."""
        found = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            begin = time.monotonic()
            wrong = ""
            try:
                self._one()
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            found.append((self._answered - begin if not wrong else time.monotonic() - begin, wrong))
            time.sleep(max(0.0, begin + pause - time.monotonic()))
        return found

    def _one(self) -> None:
        from rpcflow import sync

        with sync.connect(self._url, wait_timeout=20) as session:
            path: Any = session.get_function("tvm.rpc.server.workpath")
            path("here")
            self._answered = time.monotonic()
