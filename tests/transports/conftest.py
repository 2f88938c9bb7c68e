# SPDX-License-Identifier: Apache-2.0
"""Both event loops, and connected pairs of every kind of channel."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("rpcflow", deadline=None, print_blob=True)
settings.load_profile("rpcflow")


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Callable[[str], tuple[socket.socket, str]]]:
    """Opens a listener of a kind ('ipv4', 'ipv6', 'name', 'unix', 'ws'); gives it, and the URL it is found at."""
    from rpcflow.transports import tcp, unix

    stack = ExitStack()

    def listen(kind: str) -> tuple[socket.socket, str]:
        if kind == "unix":
            path = str(tmp_path / "socket")
            return stack.enter_context(unix.listen(path)), f"unix://{path}"
        if kind == "ipv6" and not has_ipv6():
            pytest.skip("this machine has no IPv6")
        host = {"ipv4": "127.0.0.1", "ipv6": "::1", "name": "127.0.0.1", "ws": "127.0.0.1"}[kind]
        (listener,) = tcp.listen(host, 0, 1)
        stack.enter_context(listener)
        port = listener.getsockname()[1]
        if kind == "ws":
            return listener, f"ws://{host}:{port}/ws"
        return listener, f"tcp://{'localhost' if kind == 'name' else f'[{host}]' if ':' in host else host}:{port}"

    with stack:
        yield listen


def accept(listener: socket.socket) -> socket.socket:
    """The one that has connected."""
    listener.setblocking(True)
    listener.settimeout(10)
    sock, _ = listener.accept()
    return sock


def accept_websocket(listener: socket.socket) -> tuple[socket.socket, Any]:
    """The one that connects, and its stream once it has asked for a websocket."""
    from rpcflow.transports.websocket import WebSocketStream

    sock = accept(listener)
    head = b""
    while b"\r\n\r\n" not in head:
        data = sock.recv(4096)
        assert data, "it went before it asked for anything"
        head += data
    lines = head.partition(b"\r\n\r\n")[0].split(b"\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines[1:])]
    stream, first = WebSocketStream.accept(headers, lines[0].split()[1])
    sock.sendall(first)
    return sock, stream


@pytest.fixture
def accepting() -> Iterator[Callable[[socket.socket], "Future[tuple[socket.socket, Any]]"]]:
    """Accepts a websocket while the test connects."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda listener: pool.submit(accept_websocket, listener)
