# SPDX-License-Identifier: Apache-2.0
"""Both event loops, and connected pairs of every kind of channel."""

import socket
from collections.abc import Callable, Iterator
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
    """Opens a listener of a kind ('ipv4', 'ipv6', 'name', 'unix'); gives it, and the URL it is found at."""
    from rpcflow.transports import tcp, unix

    stack = ExitStack()

    def listen(kind: str) -> tuple[socket.socket, str]:
        if kind == "unix":
            path = str(tmp_path / "socket")
            return stack.enter_context(unix.listen(path)), f"unix://{path}"
        if kind == "ipv6" and not has_ipv6():
            pytest.skip("this machine has no IPv6")
        host = {"ipv4": "127.0.0.1", "ipv6": "::1", "name": "127.0.0.1"}[kind]
        (listener,) = tcp.listen(host, 0, 1)
        stack.enter_context(listener)
        port = listener.getsockname()[1]
        return listener, f"tcp://{'localhost' if kind == 'name' else f'[{host}]' if ':' in host else host}:{port}"

    with stack:
        yield listen


def accept(listener: socket.socket) -> socket.socket:
    """The one that has connected."""
    listener.setblocking(True)
    listener.settimeout(10)
    sock, _ = listener.accept()
    return sock
