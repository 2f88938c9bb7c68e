# SPDX-License-Identifier: Apache-2.0
"""What is given beside an address: where it may go, and that it goes nowhere else."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.client.credentials import Credentials
from rpcflow.errors import AuthenticationError, RPCError
from rpcflow.protocol.credentials import encode_credentials
from rpcflow.tracker.questions import Grant, read_grant
from rpcflow.transports import Url, find_transport

pytestmark = pytest.mark.anyio
TOKEN = "s3cret-token"
PIN = "sha256:" + "1" * 64
ALL = Credentials(TOKEN, PIN, "lab", "ada")


@pytest.fixture(params=["trio", "asyncio", "sync"])
def open_session(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Connects and leaves, by one of the APIs."""

    def opened(url: str, **options: Any) -> None:
        if request.param == "sync":
            sync.connect(url, **options).close()
            return

        async def main() -> None:
            async with rpcflow.connect(url, **options):
                pass

        anyio.run(main, backend=request.param)

    return opened


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


# ---------------------------------------------------------------------------------------------- on an address


def test_on_an_address() -> None:
    url = ALL.on(Url.parse("tls://host?name=board"))
    assert url.query == (("name", "board"), ("pin", PIN), ("ca", "lab"), ("identity", "ada"))
    assert url.token == TOKEN
    assert TOKEN not in f"{url} {url!r} {ALL!r}"
    assert str(url) == f"tls://host:9091?name=board&pin={PIN}&ca=lab&identity=ada"
    assert Credentials(ca=Path("/lab.crt")).on(Url.parse("wss://h")).query == (("ca", "/lab.crt"),)
    plain = Url.parse("tcp://h:1")
    assert Credentials().on(plain) == plain


def test_the_key_is_for_proxies_alone() -> None:
    assert Credentials().on(Url.parse("tls://h"), "board").proxy_key is None
    url = Credentials().on(Url.parse(f"tls://h?proxy=plain&pin={PIN}"), "board")
    assert url.proxy_key == "board"
    assert "board" not in f"{url} {url!r}"


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("tcp://h", {"pin": PIN}, "pin= is for lines with TLS"),
        ("ws://h", {"ca": "lab"}, "ca= is for lines with TLS"),
        ("unix:/s", {"identity": "ada"}, "identity= is for lines with TLS"),
        ("popen:/p", {"token": TOKEN}, "take no token"),
        ("serial:/dev/x", {"token": TOKEN}, "take no token"),
        (f"tls://h?pin={PIN}", {"pin": PIN}, "in the address already"),
        ("tls://h", {"token": "two words"}, "visible ASCII"),
        ("tls://h", {"pin": "md5:1"}, "not a pin"),
        ("tls://h?token=x", {}, "not known"),
        ("wss://h?pins=x", {}, "known are ca, identity, name, pin, proxy, token_file"),
        ("tls://h?proxy=ca&ca=lab", {}, "which server"),
    ],
)
def test_what_cannot_be(url: str, options: dict[str, Any], words: str) -> None:
    for connect in (sync.connect, rpcflow.connect):
        with pytest.raises(ValueError, match=words) as caught:
            connect(url, **options)
        assert "two words" not in str(caught.value)
    if not url.startswith(("popen", "serial")):
        for connect_tracker in (sync.connect_tracker, rpcflow.connect_tracker):
            with pytest.raises(ValueError, match=words):
                connect_tracker(url, **options)


# ---------------------------------------------------------------------------------------------- from a tracker


def granted(host: str) -> Grant:
    return read_grant([0, [host, 5000, "match"]])


def test_what_is_shown_to_a_server_that_a_tracker_gives() -> None:
    grant = ALL.granted(granted(f"tls://far?pin={PIN[:-1]}2"))
    assert grant is not None
    assert grant.url.query == (("pin", f"{PIN[:-1]}2"), ("identity", "ada"))
    assert (grant.url.host, grant.url.port, grant.url.token) == ("far", 5000, TOKEN)
    assert grant.url.proxy_key is None
    grant = ALL.granted(granted(f"tls://[::1]?proxy=plain&pin={PIN}"))
    assert grant is not None
    assert grant.url.query == (("proxy", "plain"), ("pin", PIN), ("identity", "ada"))
    assert (grant.url.host, grant.url.proxy_key, grant.key) == ("::1", "match", "match")


@pytest.mark.parametrize(("host", "token"), [("127.0.0.1", TOKEN), ("::1", TOKEN), ("10.0.0.1", None), ("far", None)])
def test_a_token_for_a_plain_server_stays_on_this_machine(host: str, token: str | None) -> None:
    grant = ALL.granted(granted(host))
    assert grant is not None
    assert (grant.url.scheme, grant.url.token, grant.url.query) == ("tcp", token, ())
    assert ALL.granted(None) is None


@pytest.mark.parametrize(
    "host",
    [
        "popen:///bin/sh",
        "unix:///s",
        "tls://far",
        f"tls://far:1?pin={PIN}",
        f"tls://far/?pin={PIN}",
        f"tls://far?pin={PIN}&identity=/etc/shadow",
        f"tls://far?pin={PIN}&ca=/etc/passwd",
        f"tls://far?token_file=/etc/passwd&pin={PIN}",
        f"tls://far?proxy=ca&pin={PIN}",
        f"tls://far?pin={PIN}&pin={PIN}",
        f"tls://a@far?pin={PIN}",
        f"tls://.far?pin={PIN}",
        f"wss://far?pin={PIN}",
        f"tls://far?pin={PIN}\n",
    ],
)
def test_a_tracker_names_nothing_else(host: str) -> None:
    """What is not just that is a host, and none that there is."""
    assert granted(host).url == Url("tcp", host, 5000)


# ---------------------------------------------------------------------------------------------- on the line


@attrs.define
class Listener:
    """Keeps what the next one to connect says first."""

    url: str
    heard: Any


@pytest.fixture(params=["tcp", "unix", "ws"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    """Hangs up as soon as it has heard so many bytes as the credentials are long."""
    if request.param == "unix":
        path = str(tmp_path / "s")
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(path)
        listening.listen()
        url = f"unix:{path}"
    else:
        listening = socket.create_server(("127.0.0.1", 0))
        url = f"{request.param}://127.0.0.1:{listening.getsockname()[1]}"

    def accept() -> bytes:
        from tests.transports.conftest import Plain, accept_websocket

        line, _ = listening.accept()
        with line:
            line.settimeout(30)
            if request.param != "ws":
                return line.recv(len(encode_credentials(TOKEN)), socket.MSG_WAITALL)
            stream = accept_websocket(Plain(line))
            buffer = memoryview(bytearray(len(encode_credentials(TOKEN))))
            position = 0
            while position < len(buffer):
                while not (count := stream.take(buffer[position:])):
                    stream.feed(line.recv(4096))
                position += count
            return bytes(buffer)

    with listening, ThreadPoolExecutor(1) as pool:
        listening.settimeout(30)
        yield Listener(url, pool.submit(accept))


def test_a_token_goes_first(listener: Listener, open_session: Callable[..., None], caplog: Any) -> None:
    with pytest.raises(RPCError) as caught:
        open_session(listener.url, token=TOKEN)
    assert listener.heard.result(30) == encode_credentials(TOKEN)
    assert TOKEN not in f"{caught.value} {caplog.text}"


@pytest.mark.parametrize("listener", ["tcp", "ws"], indirect=True)  # what follows unix: is a path
def test_a_token_in_a_file(listener: Listener, open_session: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with pytest.raises(RPCError):
        open_session(f"{listener.url}?token_file={tmp_path / 'token'}")
    assert listener.heard.result(30) == encode_credentials(TOKEN)


@pytest.mark.parametrize("url", ["tcp://192.0.2.1:9", "ws://192.0.2.1:9", "tcp://board.invalid:9"])
def test_a_token_is_not_for_others(open_session: Callable[..., None], url: str, tmp_path: Path) -> None:
    """Nothing has been looked up or sent when that is found out."""
    (tmp_path / "token").write_text(TOKEN)
    for options, query in (({"token": TOKEN}, ""), ({}, f"?token_file={tmp_path / 'token'}")):
        with pytest.raises(AuthenticationError, match="only inside TLS, or on this machine") as caught:
            open_session(url + query, wait_timeout=30, **options)
        assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [(None, "token"), ("", "visible ASCII"), ("two words", "visible ASCII")])
async def test_a_file_without_a_token(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text)
    url = Url.parse(f"tcp://127.0.0.1:9?token_file={path}")
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        await find_transport("tcp").connect(url)
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        find_transport("tcp").connect_blocking(url)
