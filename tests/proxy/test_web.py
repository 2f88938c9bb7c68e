# SPDX-License-Identifier: Apache-2.0
"""The web port: files, refusals, and the websocket, from plain sockets and from our own transport."""

from __future__ import annotations

import importlib
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong

import rpcflow
from rpcflow import sync
from rpcflow.protocol.handshake import MAGIC, encode_hello
from rpcflow.proxy.web import WebSite
from tests.server.support import HOST, PATIENCE, Raw, until
from tests.transcripts import load

from .conftest import Host, free_port
from .test_service import waiting

Web = Callable[..., AbstractContextManager[Any]]
UPGRADE = (
    "GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)


@pytest.fixture
def web(host: Host, tmp_path: Path) -> Web:
    """A proxy with a web port, an index page and a resource file."""
    (tmp_path / "index.html").write_text("<script>connect('ws://localhost:9190/ws')</script>")
    (tmp_path / "code.wasm").write_bytes(bytes(range(256)) * 4096)
    (tmp_path / "secret.txt").write_text("secret")

    @contextmanager
    def hosted(**options: Any) -> Iterator[Any]:
        files = [("/wasm/", str(tmp_path / "code.wasm")), ("", str(tmp_path / "code.wasm"))]
        options = {"index_page": str(tmp_path / "index.html"), "resource_files": files, **options}
        with host(web_port=free_port(), **options) as proxy:
            yield proxy
            until(lambda: proxy._connections == 0, "ending all connections")

    return hosted


class Line(Raw):
    """A connection to the web port."""

    def __init__(self, proxy: Any, first: bytes | str = b"") -> None:
        self.socket = socket.create_connection((HOST, proxy.web_port), PATIENCE)
        if first:
            self.send(first.encode() if isinstance(first, str) else first)

    def rest(self) -> bytes:
        return self.take(1 << 30)

    def head(self) -> bytes:
        data = b""
        while not data.endswith(b"\r\n\r\n") and (more := self.take(1)):
            data += more
        return data


def get(proxy: Any, request: str) -> tuple[int, bytes, bytes]:
    with Line(proxy, request) as line:
        head, _, body = line.rest().partition(b"\r\n\r\n")
    return int(head.split()[1]), head, body


# ---------------------------------------------------------------------------------------------- HTTP


def test_what_is_said_does_not_make_lines_of_its_own(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    """Nor more than a few lines of ours, however often it is said."""
    caplog.set_level("INFO", "rpcflow.proxy")
    with web() as proxy:
        caplog.clear()
        for number in range(30):
            assert get(proxy, f"GET /%0a%1b[2J{number} HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 404
            assert get(proxy, f"\x1b[2J\r{number}\r\n\r\n")[0] == 400
        lines = caplog.messages
        assert any("refused" in line for line in lines)
        assert len(lines) <= 20
        assert all(line.isprintable() and len(line) < 300 for line in lines)


def test_files(web: Web, tmp_path: Path) -> None:
    with web() as proxy:
        status, head, body = get(proxy, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status == 200
        assert b"text/html" in head
        assert b"ws://localhost:%d/ws" % proxy.web_port in body
        for path in ("/wasm/code.wasm", "/code.wasm", "/wasm/code.wasm?x=1", "/%63ode.wasm"):
            status, head, body = get(proxy, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status == 200
            assert b"application/wasm" in head
            assert b"nosniff" in head
            assert body == (tmp_path / "code.wasm").read_bytes()
        status, head, body = get(proxy, "HEAD /code.wasm HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status == 200
        assert b"1048576" in head
        assert body == b""


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/wasm/../secret.txt",
        "/wasm/%2e%2e/secret.txt",
        "/wasm/..%2fsecret.txt",
        "//etc/passwd",
        "/../../../../etc/passwd",
        "/wasm/",
        "/wasm",
        "/index.html",
        "/code.wasm/",
        "/code.wasm%00",
    ],
)
def test_nothing_else_is_served(web: Web, path: str) -> None:
    with web() as proxy:
        assert get(proxy, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 404


def test_a_file_that_is_gone(web: Web, tmp_path: Path) -> None:
    with web() as proxy:
        (tmp_path / "code.wasm").unlink()
        assert get(proxy, "GET /code.wasm HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 404


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405),
        ("GET /ws HTTP/1.1\r\nHost: x\r\n\r\n", 426),
        ("nonsense\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\n" + "X: y\r\n" * 10_000 + "\r\n", 431),
        ("GET /" + "x" * 100_000 + " HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (UPGRADE.format(host="x", more="").replace("Version: 13", "Version: 12"), 400),
        (UPGRADE.format(host="x", more="").replace("Sec-WebSocket-Key", "X"), 400),
        (UPGRADE.format(host="x", more="Origin: http://evil.example\r\n"), 403),
        (UPGRADE.format(host="x", more="Origin: null\r\n"), 403),
    ],
)
def test_refusals(web: Web, request_text: str, status: int) -> None:
    with web() as proxy:
        assert get(proxy, request_text)[0] == status


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"\x16\x03\x01\x00\xc8\x01\x00", bytes(100)])
def test_slow_and_silent_strangers(web: Web, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr("rpcflow.proxy.web.HANDSHAKE_SECONDS", 0.2)
    with web() as proxy:
        with Line(proxy, said) as line:
            line.rest()
        with Line(proxy, UPGRADE.format(host="x", more="")) as line:
            assert b"101" in line.head()
            line.rest()  # it did not say its key


def test_one_who_does_not_read_a_file(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rpcflow.proxy.web._SLOW_SECONDS", 0.2)
    monkeypatch.setattr("rpcflow.proxy.web._SLOW_NBYTES_PER_SECOND", 1 << 40)
    (tmp_path / "code.wasm").write_bytes(bytes(64 << 20))
    with web() as proxy, Line(proxy, "GET /code.wasm HTTP/1.1\r\nHost: x\r\n\r\n"):
        until(lambda: proxy._connections == 1)
        until(lambda: proxy._connections == 0, "giving up the one who does not read")


ORIGINS = [
    (None, "anything", "127.0.0.1", True),
    ("http://localhost:8888", "localhost:8888", "127.0.0.1", True),
    ("http://127.0.0.1:8888", "localhost:8888", "127.0.0.1", True),
    ("http://[::1]:8888", "[::1]:8888", "::1", True),
    ("http://localhost", "localhost", "127.0.0.1", True),
    ("http://localhost:8889", "localhost:8888", "127.0.0.1", False),
    ("http://evil.example:8888", "localhost:8888", "127.0.0.1", False),
    ("http://evil.example:8888", "evil.example:8888", "127.0.0.1", False),  # a name made to point here
    ("http://lab.example:8888", "lab.example:8888", "0.0.0.0", True),
    ("http://LAB.example:8888", "lab.EXAMPLE:8888", "0.0.0.0", True),
    ("https://lab.example", "lab.example:443", "0.0.0.0", True),
    ("http://evil.example:8888", "lab.example:8888", "0.0.0.0", False),
    ("null", "localhost:8888", "127.0.0.1", False),
    ("file://", "localhost:8888", "127.0.0.1", False),
    ("chrome-extension://abc", "abc", "0.0.0.0", False),
    ("http://localhost:99999999", "localhost:8888", "127.0.0.1", False),
    ("http://[::1", "localhost:8888", "127.0.0.1", False),
    ("", "", "127.0.0.1", False),
]


@pytest.mark.parametrize(("origin", "asked", "at", "allowed"), ORIGINS)
def test_origins(origin: str | None, asked: str, at: str, allowed: bool) -> None:
    assert WebSite(at, 8888, None, ()).lets_in(origin, asked) is allowed


# ---------------------------------------------------------------------------------------------- websockets


class WebSocket(Line):
    """A websocket by hand: what comes in its messages is one stream of bytes."""

    def __init__(self, proxy: Any, key: str = "", more: str = "") -> None:
        super().__init__(proxy, UPGRADE.format(host=f"localhost:{proxy.web_port}", more=more))
        assert self.head().startswith(b"HTTP/1.1 101")
        self.machine = Connection(ConnectionType.CLIENT)
        self.data = b""
        self.events: list[Any] = []
        if key:
            self.say(encode_hello(key))

    def say(self, *messages: bytes, whole: bool = True) -> None:
        self.send(b"".join(self.machine.send(BytesMessage(data=m, message_finished=whole)) for m in messages))

    def hear(self, size: int) -> bytes:
        """So many bytes of the stream, or fewer at its end."""
        while len(self.data) < size and (more := self.socket.recv(65536)):
            self.machine.receive_data(more)
            for event in self.machine.events():
                if isinstance(event, BytesMessage):
                    self.data += event.data
                else:
                    self.events.append(event)
                    if isinstance(event, CloseConnection):
                        return self.data
        data, self.data = self.data[:size], self.data[size:]
        return data


def test_websocket_meets_socket(web: Web) -> None:
    with web() as proxy, WebSocket(proxy, "server:k") as server:
        waiting(proxy, 1)
        with Raw(proxy, encode_hello("client:k -timeout=3")) as client:
            answer = encode_hello("client:k -timeout=3")
            assert server.hear(len(answer)) == answer
            assert client.answer() == MAGIC
            client.send(b"up" * 100_000)
            assert server.hear(200_000) == b"up" * 100_000
            server.say(b"do", b"", b"wn" * 300_000)
            assert client.take(600_002) == b"do" + b"wn" * 300_000
        assert server.hear(1) == b""
        assert isinstance(server.events[-1], CloseConnection)


@pytest.mark.parametrize("first", ["server", "client"])
def test_websocket_meets_websocket(web: Web, first: str) -> None:
    second = "client" if first == "server" else "server"
    with web() as proxy, WebSocket(proxy, f"{first}:k") as one:
        waiting(proxy, 1)
        with WebSocket(proxy, f"{second}:k") as two:
            assert one.hear(16) == encode_hello(f"{second}:k")[:16]
            assert two.hear(16) == encode_hello(f"{first}:k")[:16]


def test_a_key_in_pieces_and_behind_the_request(web: Web) -> None:
    """One byte a message; and in the same segment as the request for the websocket."""
    with web() as proxy:
        with WebSocket(proxy) as server:
            server.say(*(bytes([byte]) for byte in encode_hello("server:k")))
            waiting(proxy, 1)
        waiting(proxy, 0)
        hello = Connection(ConnectionType.CLIENT).send(BytesMessage(data=encode_hello("server:k")))
        with Line(proxy, UPGRADE.format(host="x", more="").encode() + hello):
            waiting(proxy, 1)
        waiting(proxy, 0)


def test_a_message_in_frames(web: Web) -> None:
    with web() as proxy, WebSocket(proxy, "server:k") as server:
        waiting(proxy, 1)
        with Raw(proxy, encode_hello("client:k")) as client:
            assert client.answer() == MAGIC
            server.say(b"a", b"b", b"c", whole=False)
            assert client.take(3) == b"abc"  # long before the message is whole


def test_refusals_over_a_websocket(web: Web) -> None:
    with web(timeout_server=0.3) as proxy, WebSocket(proxy, "client:k") as first:
        waiting(proxy, 1)
        with WebSocket(proxy, "client:k") as second:
            assert second.hear(100) == struct.pack("<i", MAGIC + 1)
            second.send(second.machine.send(second.events[-1].response()))
            assert second.ended()
        with WebSocket(proxy, "server:other") as server:
            assert server.hear(100) == struct.pack("<i", MAGIC + 2)
        assert first.socket.fileno() > 0


def test_pings_are_answered_while_waiting_and_after(web: Web) -> None:
    with web() as proxy, WebSocket(proxy, "server:k") as server:
        waiting(proxy, 1)
        server.send(server.machine.send(Ping(b"1")))
        server.socket.settimeout(PATIENCE)
        while not server.events:
            server.machine.receive_data(server.socket.recv(1000))
            server.events += server.machine.events()
        assert server.events == [Pong(b"1")]
        with Raw(proxy, encode_hello("client:k")) as client:
            assert client.answer() == MAGIC
            server.hear(16)
            server.send(server.machine.send(Ping(b"2")) + server.machine.send(BytesMessage(data=b"x")))
            assert client.take(1) == b"x"
            client.send(b"y")
            assert server.hear(1) == b"y"
            assert server.events == [Pong(b"1"), Pong(b"2")]


BAD_FRAMES = {
    "no mask": b"\x82\x04abcd",
    "reserved bits": b"\xf2\x84\0\0\0\0abcd",
    "an unknown kind": b"\x83\x84\0\0\0\0abcd",
    "a ping of 200 bytes": b"\x89\xfe\0\xc8\0\0\0\0" + bytes(200),
    "text": b"\x81\x84\0\0\0\0abcd",
    "a continuation of nothing": b"\x80\x84\0\0\0\0abcd",
    "a length beyond 2^63": b"\x82\xff" + b"\xff" * 8 + b"\0\0\0\0abcd",
    "garbage": bytes(range(200, 256)) * 10,
}


@pytest.mark.parametrize("when", ["before the key", "waiting", "paired"])
@pytest.mark.parametrize("frame", BAD_FRAMES)
def test_bad_frames(web: Web, frame: str, when: str) -> None:
    with web() as proxy, WebSocket(proxy) as server:
        client = None
        if when != "before the key":
            server.say(encode_hello("server:k"))
            waiting(proxy, 1)
        if when == "paired":
            client = Raw(proxy, encode_hello("client:k"))
            assert client.answer() == MAGIC
        server.send(BAD_FRAMES[frame])
        server.rest()
        if client is not None:
            assert client.ended()
            client.socket.close()


def test_half_a_frame_and_then_nothing(web: Web) -> None:
    with web() as proxy, WebSocket(proxy, "server:k") as server:
        waiting(proxy, 1)
        with Raw(proxy, encode_hello("client:k")) as client:
            assert client.answer() == MAGIC
            server.send(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"\0\0\0\0" + b"a" * 1000)
            assert client.take(1000) == b"a" * 1000  # of a frame of 1 TiB, what there is
            server.socket.close()
            assert client.ended()


def test_early_words_end_a_waiting_websocket(web: Web) -> None:
    with web() as proxy, WebSocket(proxy, "server:k") as server:
        waiting(proxy, 1)
        server.say(b"too early")
        assert server.hear(1) == b""


def test_the_websocket_side_that_goes_is_dropped(web: Web) -> None:
    with web() as proxy:
        for how in ("close", "goodbye"):
            with WebSocket(proxy, "server:k") as server:
                waiting(proxy, 1)
                if how == "goodbye":
                    server.send(server.machine.send(CloseConnection(1000)))
                    assert server.hear(1) == b""
                else:
                    server.socket.close()
                waiting(proxy, 0)


def test_transcript_of_a_stock_websocket_server(web: Web) -> None:
    """The recorded bytes of a stock server, masks and all; what it is told must say the same, whatever the frames."""
    events = [(event["dir"], bytes.fromhex(event["hex"])) for event in load("proxy-websocket-server")["events"]]
    client_side = [(event["dir"], bytes.fromhex(event["hex"])) for event in load("proxy-websocket-client")["events"]]
    spoken = b"".join(data for way, data in client_side[2:] if way == "c2s")
    answered = b"".join(data for way, data in client_side[2:] if way == "s2c")
    recorded = Connection(ConnectionType.CLIENT)
    recorded.receive_data(b"".join(data for way, data in events[2:] if way == "s2c"))
    told = b"".join(event.data for event in recorded.events() if isinstance(event, BytesMessage))
    with web() as proxy, Line(proxy, events[0][1]) as server:
        assert server.head().startswith(b"HTTP/1.1 101")
        machine = Connection(ConnectionType.CLIENT)
        server.send(b"".join(data for way, data in events[2:3]))
        waiting(proxy, 1)
        with Raw(proxy, client_side[0][1]) as client:
            assert client.take(len(client_side[1][1])) == client_side[1][1]
            client.send(spoken)
            heard = b""
            while len(heard) < len(told):
                machine.receive_data(server.socket.recv(65536))
                heard += b"".join(event.data for event in machine.events() if isinstance(event, BytesMessage))
            assert heard == told
            server.send(b"".join(data for way, data in events[3:] if way == "c2s"))
            assert client.take(len(answered)) == answered


def test_no_packages_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for package, name in (("proxy", "web"), ("transports", "websocket"), ("transports", "async_ws")):
        monkeypatch.delitem(sys.modules, f"rpcflow.{package}.{name}", raising=False)
        # An import from a package looks at its attributes first.
        monkeypatch.delattr(importlib.import_module(f"rpcflow.{package}"), name, raising=False)
    monkeypatch.setitem(sys.modules, "wsproto", None)
    with pytest.raises(ImportError, match=r"pip install 'rpcflow\[web\]'"):
        rpcflow.Proxy(web_port=8080)
    for options in ({"host": "ws://localhost:1/ws", "is_proxy": True}, {"tracker_addr": "ws://localhost:1/ws"}):
        with pytest.raises(ImportError, match=r"pip install 'rpcflow\[web\]'"):
            rpcflow.Server(**options)
    with pytest.raises(ImportError, match=r"pip install 'rpcflow\[web\]'"):
        rpcflow.Proxy(tracker_addr="ws://localhost:1/ws")
    with pytest.raises(ImportError, match=r"pip install 'rpcflow\[web\]'"):
        sync.connect("ws://localhost:1/ws")


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "200"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "handshake"),
        (b"HTTP/1.1 101 Fine\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n", "HTTP"),
        (b"", "handshake"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000, "HTTP"),
    ],
)
def test_what_is_no_websocket(answer: bytes, word: str) -> None:
    import threading

    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(rpcflow.ConnectionLostError, match=word):
            sync.connect(f"ws://{HOST}:{listener.getsockname()[1]}", wait_timeout=PATIENCE)
        thread.join()
