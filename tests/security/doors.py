# SPDX-License-Identifier: Apache-2.0
"""A door in a thread of its own, and raw clients at it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
from anyio.lowlevel import checkpoint

from rpcflow.security.door import Door, DoorLimits, Visitor
from rpcflow.security.server_context import TlsSettings
from rpcflow.transports import tcp
from tests.server.support import until

HOST = "127.0.0.1"
OTHER = "127.0.0.2"
PATIENCE = 30.0
ROOMY = DoorLimits(64, 32, 48, 24)


class Opened:
    """An open door. ``lines``: what has come in, and who is there."""

    def __init__(self, door: Door, port: int) -> None:
        self.door = door
        self.port = port
        self.lines: list[tuple[socket.socket, Visitor]] = []
        self.call: Any = None  # runs an async function in its event loop

    @property
    def gate(self) -> int:
        """The gate's process."""
        assert self.door._gate is not None
        return self.door._gate.pid

    def knock(self, source: str = HOST) -> socket.socket:
        """A line that says nothing."""
        return socket.create_connection((HOST, self.port), PATIENCE, (source, 0))

    def enter(self, source: str = HOST, **options: Any) -> ssl.SSLSocket:
        """A line with its handshake done, as far as its client knows."""
        return client_context(**options).wrap_socket(self.knock(source))

    def served(self, line: socket.socket) -> Visitor:
        """Who it is for the service; that bytes go both ways is seen to."""
        place = line.getsockname()
        sock, visitor = until(
            lambda: next((pair for pair in self.lines if (pair[1].host, pair[1].port) == place), None), "its coming in"
        )
        line.sendall(b"ping")
        sock.setblocking(True)
        sock.settimeout(PATIENCE)
        assert sock.recv(4) == b"ping"
        sock.sendall(b"pong")
        assert line.recv(4) == b"pong"
        return visitor


def client_context(alpn: str = "rpcflow", identity: Path | None = None, most: str = "TLSv1_3") -> ssl.SSLContext:
    """Asks for no certificate: what is looked at here is the other end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion[most]
    context.set_alpn_protocols([alpn])
    if identity is not None:
        context.load_cert_chain(identity)
    return context


def client_hello() -> bytes:
    """What a client begins with."""
    said = ssl.MemoryBIO()
    tls = client_context().wrap_bio(ssl.MemoryBIO(), said)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return said.read()


def over(line: socket.socket) -> bool:
    """Whether the other end has ended it; what it still says is passed over."""
    try:
        while line.recv(65536):
            pass
    except (ConnectionError, ssl.SSLError):
        pass
    return True


@contextlib.contextmanager
def opened(
    backend: str, tls: TlsSettings | None, limits: DoorLimits = ROOMY, handshake_timeout: float = PATIENCE
) -> Iterator[Opened]:
    """A door on one event loop or the other; at the end nothing of it is left."""
    log = logging.getLogger("rpcflow.door")

    @contextlib.asynccontextmanager
    async def hosted() -> AsyncIterator[Opened]:
        (listener,) = tcp.listen(HOST, 0, 1)

        def welcome(sock: socket.socket, visitor: Visitor) -> None:
            found.lines.append((sock, visitor))

        door = Door([listener], welcome, limits, log, tls=tls, handshake_timeout=handshake_timeout)
        found = Opened(door, listener.getsockname()[1])
        try:
            await door.start()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(door.run)
                await checkpoint()
                yield found
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await door.aclose()
            listener.close()
            for sock, _ in found.lines:
                sock.close()

    before = set(os.listdir("/proc/self/fd"))
    with anyio.from_thread.start_blocking_portal(backend) as portal:
        with portal.wrap_async_context_manager(hosted()) as found:
            found.call = portal.call
            yield found
            gate = found.gate if tls is not None else None
    assert gate is None or not os.path.exists(f"/proc/{gate}")
    assert threading.active_count() < 50
    until(lambda: len(os.listdir("/proc/self/fd")) <= len(before), "closing all descriptors")
