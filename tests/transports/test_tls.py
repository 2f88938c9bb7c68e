# SPDX-License-Identifier: Apache-2.0
"""``tls://`` and ``wss://`` against ends of Python's ssl: whom they trust, what they show, how what fails is told."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from rpcflow.errors import AuthenticationError, ConnectionLostError, ProtocolError, RPCError
from rpcflow.protocol.credentials import encode_credentials
from rpcflow.security.authority import init_authority, issue
from rpcflow.security.identity import identity_path, init_identity, load_identity
from rpcflow.security.known import KnownHosts
from rpcflow.security.pins import pin_of
from rpcflow.transports import Url, find_transport

pytestmark = pytest.mark.anyio
Serve = Callable[[socket.socket], None]
SECONDS = 20.0
WRONG = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration folder: two authorities, and what they have issued."""
    home = tmp_path_factory.mktemp("config")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RPCFLOW_HOME", str(home))
        for name in ("lab", "elsewhere"):
            init_authority(name)
        issue("server", "lab", hosts=["localhost", "127.0.0.1"], client=False)
        issue("other", "lab", hosts=["other.example"], client=False)
        issue("late", "lab", hosts=["localhost"], client=False, days=-1)
        issue("ada", "lab", server=False)
        issue("ada-late", "lab", server=False, days=-1)
        issue("eve", "elsewhere", server=False)
        init_identity("self", hosts=["localhost"])
    return home


@pytest.fixture(autouse=True)
def home(keys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RPCFLOW_HOME", str(keys))
    return keys


@pytest.fixture(params=["blocking", "async"])
def connect(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Connects, in a thread or in a task; the channel is a task's either way."""
    return _connect if request.param == "async" else _connect_blocking


async def _connect(url: Url) -> Any:
    with anyio.fail_after(SECONDS):
        return await find_transport(url.scheme).connect(url)


async def _connect_blocking(url: Url) -> Any:
    deadline = time.monotonic() + SECONDS
    transport = find_transport(url.scheme)
    return _InThread(await anyio.to_thread.run_sync(partial(transport.connect_blocking, url, deadline=deadline)))


class _InThread:
    """A channel of threads as one of tasks."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.close = channel.close

    async def send(self, parts: Any) -> None:
        await anyio.to_thread.run_sync(self.channel.send, parts, time.monotonic() + SECONDS)

    async def receive_into(self, buffer: memoryview) -> int:
        return await anyio.to_thread.run_sync(self.channel.receive_into, buffer, time.monotonic() + SECONDS)


class Place:
    """A listener at loopback, one connection, and what was made of it. ``error``: of the serving end."""

    def __init__(self, serve: Serve) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(SECONDS)
        self.port: int = self._listener.getsockname()[1]
        self.error: BaseException | None = None
        self._serve = serve
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._listener, self._listener.accept()[0] as sock:
                sock.settimeout(SECONDS)
                self._serve(sock)
        except (OSError, AssertionError) as error:
            self.error = error

    def url(self, query: str = "", host: str = "127.0.0.1", scheme: str = "tls") -> Url:
        return Url.parse(f"{scheme}://{host}:{self.port}{query}")

    def end(self) -> None:
        """Wait for its end, however far it has come."""
        with socket.socket() as knock:
            knock.connect_ex(("127.0.0.1", self.port))  # where nobody has come
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture
def place() -> Iterator[Callable[[Serve], Place]]:
    places: list[Place] = []

    def open_place(serve: Serve) -> Place:
        places.append(Place(serve))
        return places[-1]

    yield open_place
    for one in places:
        one.end()


def context(identity: str = "server", **options: Any) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(identity_path(identity))
    made.set_alpn_protocols(options.pop("alpn", ["rpcflow"]))
    for name, value in options.items():
        setattr(made, name, value)
    return made


def by_tls(made: ssl.SSLContext, talk: Callable[[ssl.SSLSocket], None]) -> Serve:
    def serve(sock: socket.socket) -> None:
        with made.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as tls:
            talk(tls)

    return serve


def hello(tls: ssl.SSLSocket) -> None:
    """Take what the client says, say something, and see it go."""
    data = tls.recv(100)
    tls.sendall(b"you said " + data)
    assert tls.recv(100) == b""


def nothing_said(tls: ssl.SSLSocket) -> None:
    """See it go without a word."""
    assert tls.recv(100) == b""


def pin(identity: str) -> str:
    return load_identity(identity).pin


async def answer(channel: Any) -> bytes:
    buffer = memoryview(bytearray(100))
    await channel.send([b"hello"])
    return bytes(buffer[: await channel.receive_into(buffer)])


# ---- whom to trust


@pytest.mark.parametrize("query", ["?pin={pin}", "?ca=lab", "?ca=lab&name=localhost"])
async def test_trusted(connect: Any, place: Any, query: str) -> None:
    there = place(by_tls(context(), hello))
    channel = await connect(there.url(query.format(pin=pin("server"))))
    assert await answer(channel) == b"you said hello"
    channel.close()
    there.end()
    assert there.error is None


async def test_known_from_pairing(connect: Any, place: Any) -> None:
    there = place(by_tls(context("self"), hello))
    KnownHosts().add("127.0.0.1", there.port, pin("self"))
    channel = await connect(there.url())
    assert await answer(channel) == b"you said hello"
    channel.close()


@pytest.mark.parametrize(
    ("identity", "query", "words"),
    [
        ("server", f"?pin={WRONG}", "{found}.*{WRONG}"),
        ("late", "?pin={found}", "expired on"),
        ("server", "?ca=elsewhere", "self-signed certificate in certificate chain.*pin=.*ca="),
        ("self", "?ca=lab", "self-signed.*pin=.*ca="),
        ("self", "", "self-signed.*pin=.*ca="),
        ("server", "", "pin=.*ca="),
        ("late", "?ca=lab&name=localhost", "expired.*renew"),
        ("other", "?ca=lab", "IP address mismatch.*name="),
        ("other", "?ca=lab&name=localhost", "Hostname mismatch.*name="),
    ],
)
async def test_not_trusted(connect: Any, place: Any, identity: str, query: str, words: str) -> None:
    """And nothing has been said to it, not even who we are."""
    seen: list[bytes | None] = []

    def talk(tls: ssl.SSLSocket) -> None:
        seen.append(tls.getpeercert(True))
        nothing_said(tls)

    made = context(identity, verify_mode=ssl.CERT_OPTIONAL)
    made.load_verify_locations(identity_path("ada"))
    there = place(by_tls(made, talk))
    query = query.format(found=pin(identity))
    query += ("&" if query else "?") + "identity=ada"
    with pytest.raises(AuthenticationError, match="(?s)" + words.format(found=pin(identity), WRONG=WRONG)):
        await connect(there.url(query))
    there.end()
    assert seen == []
    assert isinstance(there.error, OSError)


# ---- who is there


def slam(data: bytes) -> Serve:
    """Says this to whatever comes, and goes."""

    def serve(sock: socket.socket) -> None:
        assert sock.recv(65536)
        sock.sendall(data)

    return serve


def reset(sock: socket.socket) -> None:
    sock.recv(1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize(
    ("serve", "kind", "words"),
    [
        (slam(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ProtocolError, "does not speak TLS.*tcp://"),
        (slam(struct.pack("<i", 0xFF273)), ConnectionLostError, "does it speak TLS.*tcp://"),
        (slam(b""), ConnectionLostError, "TLS.*tcp://"),
        (reset, ConnectionLostError, "TLS.*tcp://"),
    ],
    ids=["http", "a plain server", "hangs up", "resets"],
)
async def test_no_tls(connect: Any, place: Any, serve: Serve, kind: type[RPCError], words: str) -> None:
    with pytest.raises(kind, match=words):
        await connect(place(serve).url(f"?pin={WRONG}"))


async def test_an_older_tls(connect: Any, place: Any) -> None:
    there = place(by_tls(context(maximum_version=ssl.TLSVersion.TLSv1_2), hello))
    with pytest.raises(AuthenticationError, match=r"TLS 1\.3"):
        await connect(there.url(f"?pin={pin('server')}"))


@pytest.mark.parametrize("alpn", [[], ["h2"]])
async def test_tls_for_something_else(connect: Any, place: Any, alpn: list[str]) -> None:
    there = place(by_tls(context(alpn=alpn), nothing_said))
    with pytest.raises(ProtocolError, match="rpcflow"):
        await connect(there.url(f"?pin={pin('server')}"))


async def test_a_websocket_needs_no_alpn(connect: Any, place: Any) -> None:
    pytest.importorskip("wsproto")

    def talk(tls: ssl.SSLSocket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += tls.recv(4096)
        assert head.startswith(b"GET /ws HTTP/1.1\r\n")  # what is for TLS is not for others
        tls.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    there = place(by_tls(context(alpn=[]), talk))
    with pytest.raises(ConnectionLostError, match="404"):
        await connect(there.url(f"?pin={pin('server')}", scheme="wss"))
    there.end()
    assert there.error is None


async def test_nobody_there(connect: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionLostError, match="refused"):
            await connect(Url.parse(f"tls://127.0.0.1:{unused.getsockname()[1]}?pin={WRONG}"))


# ---- who we are


async def test_shown_if_asked(connect: Any, place: Any) -> None:
    seen: list[str] = []

    def talk(tls: ssl.SSLSocket) -> None:
        der = tls.getpeercert(True)
        seen.append(pin_of(der) if der else "none")
        hello(tls)

    made = context(verify_mode=ssl.CERT_OPTIONAL)
    made.load_verify_locations(identity_path("self"))
    trust = f"?pin={pin('server')}"
    for query in (trust, f"{trust}&identity=self", f"{trust}&identity={identity_path('self')}", f"{trust}&identity="):
        channel = await connect(place(by_tls(made, talk)).url(query))
        assert await answer(channel) == b"you said hello"
        channel.close()
    assert seen == ["none", pin("self"), pin("self"), "none"]


async def test_the_default_identity(connect: Any, place: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is shown if there is one; one that is of no use is told of and left out."""
    seen: list[bool] = []

    def talk(tls: ssl.SSLSocket) -> None:
        seen.append(tls.getpeercert(True) is not None)
        hello(tls)

    default = identity_path("default")
    default.write_bytes(identity_path("self").read_bytes())
    default.chmod(0o600)
    made = context(verify_mode=ssl.CERT_OPTIONAL)
    made.load_verify_locations(default)
    try:
        for broken in (False, True):
            if broken:
                default.write_text("nonsense")
            channel = await connect(place(by_tls(made, talk)).url(f"?pin={pin('server')}"))
            assert await answer(channel) == b"you said hello"
            channel.close()
            warned = [r for r in caplog.records if r.name == "rpcflow.security" and r.levelno == logging.WARNING]
            assert len(warned) == broken
    finally:
        default.unlink()
    assert seen == [True, False]


@pytest.mark.parametrize(
    ("identity", "kind", "words"),
    [("nobody", FileNotFoundError, "nobody"), ("ada-late", ValueError, "expired"), ("no/such.pem", OSError, "such")],
)
async def test_an_identity_of_no_use(connect: Any, identity: str, kind: type[Exception], words: str) -> None:
    """Nobody is at that port: it would be a lost connection if that were tried."""
    with pytest.raises(kind, match=words):
        await connect(Url.parse(f"tls://127.0.0.1:1?pin={WRONG}&identity={identity}"))


@pytest.mark.parametrize("gently", [True, False], ids=["and waits", "and resets the line"])
@pytest.mark.parametrize(
    ("identity", "words"), [("", "wants a client certificate"), ("eve", "does not know our certificate")]
)
@pytest.mark.parametrize("first", ["send", "receive"])
async def test_a_certificate_that_is_refused(
    connect: Any, place: Any, identity: str, words: str, gently: bool, first: str
) -> None:
    """In TLS 1.3 that comes when the client is through already: with the first answer, or when it goes on sending."""
    refused = threading.Event()

    def serve(sock: socket.socket) -> None:
        tls = made.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        try:
            tls.do_handshake()
        finally:
            plain = socket.socket(fileno=tls.detach())
            if gently:
                refused.set()
                plain.settimeout(SECONDS)
                while plain.recv(65536):
                    pass
            else:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            plain.close()
            refused.set()

    made = context(verify_mode=ssl.CERT_REQUIRED)
    made.load_verify_locations(str(home_file("authorities/lab.crt")))
    there = place(serve)
    channel = await connect(there.url(f"?pin={pin('server')}&identity={identity}"))
    try:
        with pytest.raises(AuthenticationError, match=words):
            if first == "send":
                await anyio.to_thread.run_sync(refused.wait, SECONDS)
                for _ in range(20):
                    await channel.send([bytes(1 << 16)])
            await answer(channel)
        with pytest.raises(AuthenticationError, match=words):
            await channel.receive_into(memoryview(bytearray(1)))
    finally:
        channel.close()


def home_file(name: str) -> Path:
    from rpcflow.security.folder import config_folder

    return config_folder() / name


# ---- what else a line may do


async def test_a_line_that_is_cut(connect: Any, place: Any) -> None:
    def talk(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"some")
        tls.shutdown(socket.SHUT_RDWR)  # without a goodbye

    channel = await connect(place(by_tls(context(), talk)).url(f"?pin={pin('server')}"))
    buffer = memoryview(bytearray(10))
    assert await channel.receive_into(buffer) == 4
    for _ in range(2):
        with pytest.raises(ConnectionLostError, match="goodbye"):
            await channel.receive_into(buffer)
    channel.close()
    with pytest.raises(ConnectionLostError, match="the connection is closed"):
        await channel.receive_into(buffer)


async def test_a_token_goes_first_and_inside(connect: Any, place: Any, tmp_path: Path) -> None:
    def talk(tls: ssl.SSLSocket) -> None:
        expected = encode_credentials("s3cret-token")
        got = b""
        while len(got) < len(expected):
            got += tls.recv(len(expected) - len(got))
        assert got == expected
        hello(tls)

    import attrs

    (tmp_path / "token").write_text("s3cret-token\n")
    for by_file in (True, False):
        there = place(by_tls(context(), talk))
        url = there.url(f"?pin={pin('server')}" + (f"&token_file={tmp_path / 'token'}" if by_file else ""))
        if not by_file:
            url = attrs.evolve(url, token="s3cret-token")
        assert "s3cret" not in f"{url} {url!r}"
        channel = await connect(url)
        assert await answer(channel) == b"you said hello"
        channel.close()
        there.end()
        assert there.error is None


@pytest.mark.parametrize("what", ["cancelled", "deadline"])
async def test_a_handshake_that_takes_for_ever(place: Any, what: str, anyio_backend_name: str) -> None:
    def serve(sock: socket.socket) -> None:
        while sock.recv(65536):
            pass

    url = place(serve).url(f"?pin={WRONG}")
    if what == "cancelled":
        with anyio.move_on_after(0.1) as scope:
            await find_transport("tls").connect(url)
        assert scope.cancelled_caught
    elif anyio_backend_name == "trio":
        with pytest.raises(TimeoutError):
            await anyio.to_thread.run_sync(
                partial(find_transport("tls").connect_blocking, url, deadline=time.monotonic() + 0.1)
            )


# ---- addresses


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tls://h:1?pim=x", "pim.*known are ca, identity, name, pin, proxy, token_file"),
        ("wss://h:1?color=red", "color.*known are"),
        ("tls://h:1?pin=sha256:12", "not a pin"),
        (f"tls://h:1?pin={WRONG}&pin={WRONG}", "twice"),
        ("tls://h:1?proxy=maybe&name=x", "plain, ca, or the pin"),
        ("tls://h:1?proxy=plain", "pin= or name="),
        ("tls://h:1?name=", "name="),
    ],
)
def test_addresses_that_make_no_sense(text: str, words: str) -> None:
    from rpcflow.transports import check_url

    with pytest.raises(ValueError, match=words):
        check_url(Url.parse(text))


def test_an_address_as_text() -> None:
    text = f"tls://h:1?pin={WRONG}&ca=/etc/lab.crt"
    assert str(Url.parse(text)) == text


def test_plain_lines_do_without_all_this() -> None:
    """Programs that do not use TLS do not pay for it."""
    program = (
        "import sys, rpcflow.sync, rpcflow.transports.tcp, rpcflow.transports.unix\n"
        "print([name for name in ('ssl', 'cryptography', 'rpcflow.transports.tls') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
