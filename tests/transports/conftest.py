# SPDX-License-Identifier: Apache-2.0
"""Both event loops, and connected pairs of every kind of channel."""

import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.certificates import write_pem

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


@pytest.fixture(scope="session")
def tls_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and its certificate."""
    return write_pem(tmp_path_factory.mktemp("tls") / "key.pem")


@pytest.fixture
def listening(
    tmp_path: Path, tls_key: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], tuple[socket.socket, str]]]:
    """Opens a listener of a kind ('ipv4', 'ipv6', 'name', 'unix', 'ws', 'tls', 'wss'); gives it, and its URL."""
    from rpcflow.transports import tcp, unix

    monkeypatch.setenv("RPCFLOW_HOME", str(tmp_path / "home"))
    stack = ExitStack()

    def listen(kind: str) -> tuple[socket.socket, str]:
        if kind == "unix":
            path = str(tmp_path / "socket")
            return stack.enter_context(unix.listen(path)), f"unix://{path}"
        if kind == "ipv6" and not has_ipv6():
            pytest.skip("this machine has no IPv6")
        host = "::1" if kind == "ipv6" else "127.0.0.1"
        (listener,) = tcp.listen(host, 0, 1)
        stack.enter_context(listener)
        port = listener.getsockname()[1]
        if kind == "ws":
            return listener, f"ws://{host}:{port}/ws"
        if kind in ("tls", "wss"):
            return listener, f"{kind}://{host}:{port}?pin={pin_of_file(tls_key)}"
        return listener, f"tcp://{'localhost' if kind == 'name' else f'[{host}]' if ':' in host else host}:{port}"

    with stack:
        yield listen


def accept(listener: socket.socket) -> socket.socket:
    """The one that has connected."""
    listener.setblocking(True)
    listener.settimeout(10)
    sock, _ = listener.accept()
    return sock


def pin_of_file(path: Path) -> str:
    from rpcflow.security.pins import pin_of

    return pin_of(ssl.PEM_cert_to_DER_cert(path.read_text().partition("-----END PRIVATE KEY-----")[2].strip()))


class Plain:
    """What a bare socket says and hears."""

    def __init__(self, sock: socket.socket) -> None:
        self.send, self.receive = sock.sendall, sock.recv


class Ciphered:
    """The accepting end of TLS on a blocking socket."""

    def __init__(self, sock: socket.socket, key: Path) -> None:
        from rpcflow.transports.tls_stream import TlsStream

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(key)
        context.set_alpn_protocols(["rpcflow", "http/1.1"])
        self._sock = sock
        self.stream = TlsStream(context, None, "the client", accepts=True)
        done = False
        while not done:
            self.stream.feed(memoryview(sock.recv(1 << 16)))
            done = self.stream.handshake()
            sock.sendall(self.stream.outgoing())

    def send(self, data: bytes) -> None:
        for encrypted, _ in self.stream.encrypt([data]):
            self._sock.sendall(encrypted)

    def receive(self, nbytes: int) -> bytes:
        buffer = memoryview(bytearray(nbytes))
        while (count := self.stream.read_into(buffer)) is None:
            self.stream.feed(memoryview(self._sock.recv(1 << 16)))
        return bytes(buffer[:count])


def accept_stream(listener: socket.socket, kind: str, key: Path) -> tuple[socket.socket, Any, Any]:
    """The one that connects; its stream of TLS (tls, wss), and that of its websocket (ws, wss)."""
    sock = accept(listener)
    tls = Ciphered(sock, key) if kind in ("tls", "wss") else None
    websocket = accept_websocket(tls or Plain(sock)) if kind in ("ws", "wss") else None
    return sock, tls and tls.stream, websocket


def accept_websocket(line: Any) -> Any:
    """Its stream, once it has asked for a websocket."""
    from rpcflow.transports.websocket import WebSocketStream

    head = b""
    while b"\r\n\r\n" not in head:
        data = line.receive(4096)
        assert data, "it went before it asked for anything"
        head += data
    lines = head.partition(b"\r\n\r\n")[0].split(b"\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines[1:])]
    assert b"?" not in lines[0].split()[1]
    stream, first = WebSocketStream.accept(headers, lines[0].split()[1])
    line.send(first)
    return stream


@pytest.fixture
def accepting(tls_key: Path) -> Iterator[Callable[[socket.socket, str], "Future[tuple[socket.socket, Any, Any]]"]]:
    """Accepts one of a kind ('ws', 'tls', 'wss') while the test connects."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda listener, kind: pool.submit(accept_stream, listener, kind, tls_key)
