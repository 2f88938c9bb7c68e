# SPDX-License-Identifier: Apache-2.0
"""Whom a connecting end trusts, by its address: what OpenSSL is told, and what is checked behind its back."""

from __future__ import annotations

import datetime
import logging
import os
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rpcflow.errors import AuthenticationError, ProtocolError, RPCError
from rpcflow.security import identity
from rpcflow.security.authority import init_authority, issue
from rpcflow.security.client_context import ClientTls, check_parameters
from rpcflow.security.identity import Identity, init_identity
from rpcflow.security.known import KnownHosts
from rpcflow.transports.sockets import BlockingSocketChannel
from rpcflow.transports.tls import secure_blocking
from rpcflow.transports.tls_stream import TlsStream
from rpcflow.transports.url import Url

PIN = "sha256:" + "a" * 64


@pytest.fixture(autouse=True)
def home(config: Path) -> Path:
    return config


def tls_url(*query: tuple[str, str], host: str = "localhost", port: int = 9091) -> Url:
    return Url("tls", host, port, query=query)


def shake(tls: ClientTls, server: Identity, wants: Path | None = None, **options: Any) -> tuple[TlsStream, Any]:
    """A handshake in memory, up to where the client has checked all; its stream, and the server's end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.path)
    if (alpn := options.pop("alpn", "rpcflow")) is not None:
        context.set_alpn_protocols([alpn])
    if wants is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(wants)
    for name, value in options.items():
        setattr(context, name, value)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    far = context.wrap_bio(incoming, outgoing, server_side=True)
    near = tls.stream()
    while not near.handshake():
        incoming.write(near.outgoing())
        try:
            far.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            near.feed(memoryview(outgoing.read()))
            near.handshake()
            raise
        near.feed(memoryview(outgoing.read()))
    tls.check(near)
    incoming.write(near.outgoing())
    far.do_handshake()
    return near, far


def refused(tls: ClientTls, server: Identity, kind: type[RPCError], words: str, **options: Any) -> None:
    with pytest.raises(kind, match=words):
        shake(tls, server, **options)


# ---------------------------------------------------------------------------------------------- pins


def test_a_pin() -> None:
    server = init_identity("server", hosts=["elsewhere"])
    shake(ClientTls.of(tls_url(("pin", server.pin))), server)
    shake(ClientTls.of(tls_url(("pin", server.pin.upper().replace("SHA", "sha")), host="fe80::1%lo")), server)


def test_another_pin() -> None:
    server = init_identity("server")
    tls = ClientTls.of(tls_url(("pin", PIN)))
    refused(tls, server, AuthenticationError, f"its key is {server.pin}, expected was {PIN}.*READY")


@pytest.mark.parametrize(("days", "words"), [(-1, "has expired on"), (1, "is not valid before.*clock")])
def test_a_pin_does_not_last_longer_than_the_certificate(
    days: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = identity.x.now
    if days > 0:
        moment = real()
        monkeypatch.setattr(identity.x, "now", lambda: moment + datetime.timedelta(days=30))
    server = init_identity("server", days=days)
    monkeypatch.setattr(identity.x, "now", real)
    refused(ClientTls.of(tls_url(("pin", server.pin), ("identity", ""))), server, AuthenticationError, words)


def test_nothing_of_ours_is_said_to_the_wrong_one() -> None:
    """Not even who we are: our certificate goes out with the last step of the handshake."""
    server, own = init_identity("server"), init_identity("ada")
    tls = ClientTls.of(tls_url(("pin", PIN), ("identity", "ada")))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.path)
    context.set_alpn_protocols(["rpcflow"])
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(own.path)
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(context.wrap_socket, theirs, server_side=True)
        line = BlockingSocketChannel(ours)
        with pytest.raises(AuthenticationError, match="its key is"):
            secure_blocking(line, tls, time.monotonic() + 30)
        line.close()
        with pytest.raises(OSError, match=r"EOF|eof|reset|[Pp]ipe"):
            serving.result(30)
    theirs.close()


# ---------------------------------------------------------------------------------------------- authorities


def test_an_authority_and_a_name() -> None:
    authority = init_authority("lab")
    server = issue("server", "lab", hosts=["board.lab", "127.0.0.1", "::1"])
    shake(ClientTls.of(tls_url(("ca", str(authority.certificate)), host="board.lab")), server)
    shake(ClientTls.of(tls_url(("ca", "lab"), host="127.0.0.1")), server)
    shake(ClientTls.of(tls_url(("ca", "lab"), host="::1")), server)
    shake(ClientTls.of(tls_url(("ca", "lab"), ("name", "board.lab"), host="10.0.0.1")), server)


@pytest.mark.parametrize(
    ("host", "query", "words"),
    [
        ("desk.lab", [("ca", "lab")], "not valid for 'desk.lab'.*name="),
        ("127.0.0.2", [("ca", "lab")], "not valid for '127.0.0.2'.*name="),
        ("board.lab", [("ca", "lab"), ("name", "desk.lab")], "'desk.lab'"),
        ("board.lab", [("ca", "other")], "certificate.*pin= with"),
        ("board.lab", [], "certificate.*pin= with"),
    ],
)
def test_another_authority_or_name(host: str, query: list[tuple[str, str]], words: str) -> None:
    init_authority("lab")
    init_authority("other")
    server = issue("server", "lab", hosts=["board.lab"])
    refused(ClientTls.of(tls_url(*query, host=host)), server, AuthenticationError, words)


def test_an_expired_certificate() -> None:
    init_authority("lab")
    server = issue("server", "lab", hosts=["localhost"], days=-1)
    refused(ClientTls.of(tls_url(("ca", "lab"))), server, AuthenticationError, "expired")


def test_a_file_that_is_no_authoritys(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="holds no certificates"):
        ClientTls.of(tls_url(("ca", str(tmp_path / "text"))))
    with pytest.raises(FileNotFoundError, match="nobody"):
        ClientTls.of(tls_url(("ca", "nobody")))


# ---------------------------------------------------------------------------------------------- who is known


def test_who_is_known_needs_no_pin() -> None:
    server = init_identity("server")
    refused(ClientTls.of(tls_url()), server, AuthenticationError, "self-signed")
    KnownHosts().add("localhost", 9091, server.pin)
    shake(ClientTls.of(tls_url()), server)
    refused(ClientTls.of(tls_url(port=9092)), server, AuthenticationError, "self-signed")
    KnownHosts().add("localhost", 9091, PIN)
    refused(ClientTls.of(tls_url()), server, AuthenticationError, "its key is")
    shake(ClientTls.of(tls_url(("pin", server.pin))), server)  # what is said counts more


def test_who_is_known_at_a_proxys_address_is_not_the_server() -> None:
    init_authority("lab")
    server = issue("server", "lab", hosts=["board"])
    KnownHosts().add("localhost", 9091, PIN)
    shake(ClientTls.of(tls_url(("proxy", "plain"), ("ca", "lab"), ("name", "board"))), server)
    assert ClientTls.of(tls_url(("proxy", "plain"), ("name", "board"))).pin is None


# ---------------------------------------------------------------------------------------------- what is spoken


def test_something_else_is_spoken() -> None:
    server = init_identity("server")
    url = tls_url(("pin", server.pin))
    for alpn in (None, "h2"):
        refused(ClientTls.of(url), server, ProtocolError, "speaks TLS, but", alpn=alpn)
    shake(ClientTls.of(url, "http/1.1", insist=False), server, alpn=None)
    shake(ClientTls.of(url, "http/1.1", insist=False), server, alpn="http/1.1")


def test_an_older_tls() -> None:
    server = init_identity("server")
    tls = ClientTls.of(tls_url(("pin", server.pin)))
    refused(tls, server, AuthenticationError, r"TLS 1\.3", maximum_version=ssl.TLSVersion.TLSv1_2)


# ---------------------------------------------------------------------------------------------- who we are


def shown(server: Identity, *query: tuple[str, str], wants: Path) -> bytes | None:
    _, far = shake(ClientTls.of(tls_url(("pin", server.pin), *query)), server, wants=wants)
    certificate: bytes | None = far.getpeercert(True)
    return certificate


def test_the_default_identity_is_shown_to_who_asks() -> None:
    server, own, other = init_identity("server"), init_identity(), init_identity("other")
    assert shown(server, wants=own.path) == own.certificate
    assert shown(server, ("identity", "other"), wants=other.path) == other.certificate
    assert shown(server, ("identity", str(other.path)), wants=other.path) == other.certificate
    _, far = shake(ClientTls.of(tls_url(("pin", server.pin))), server)
    assert far.getpeercert(True) is None  # nobody has asked
    with pytest.raises(ssl.SSLError):
        shown(server, ("identity", ""), wants=own.path)


def test_an_identity_that_cannot_be_used(tmp_path: Path) -> None:
    init_identity("late", days=-1)
    os.chmod(init_identity("open").path, 0o644)
    (tmp_path / "no.pem").write_text("hello")
    os.chmod(tmp_path / "no.pem", 0o600)
    for name, kind, words in [
        ("late", ValueError, "has expired on"),
        ("open", PermissionError, "chmod 600"),
        ("absent", FileNotFoundError, "rpcflow identity init absent"),
        (str(tmp_path / "no.pem"), ValueError, "no private key"),
        ("../x", FileNotFoundError, "no identity"),
    ]:
        with pytest.raises(kind, match=words):
            ClientTls.of(tls_url(("pin", PIN), ("identity", name)))


@pytest.mark.parametrize("how", ["expired", "broken", "open"])
def test_a_default_identity_that_cannot_be_used_is_left_out(how: str, caplog: pytest.LogCaptureFixture) -> None:
    own = init_identity(days=-1 if how == "expired" else 10)
    if how == "broken":
        own.path.write_text("hello")
    if how == "open":
        os.chmod(own.path, 0o644)
    with caplog.at_level(logging.WARNING, "rpcflow.security"):
        ClientTls.of(tls_url(("pin", PIN)))
    (record,) = caplog.records
    assert "going without the default identity" in record.getMessage()


# ---------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ([("pins", "1")], "pins: not known; known are ca, identity, name, pin, proxy, token_file"),
        ([("token", "secret")], "token: not known"),
        ([("pin", PIN), ("pin", PIN)], "pin: given twice"),
        ([("pin", "sha256:12")], "not a pin"),
        ([("name", "")], "name of a host"),
        ([("name", ".lab")], "name of a host"),
        ([("proxy", "tls"), ("pin", PIN)], "proxy= is plain, ca, or the pin"),
        ([("proxy", "ca"), ("ca", "lab")], "which server behind it"),
    ],
)
def test_addresses_that_cannot_be(query: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_parameters(tls_url(*query))
    with pytest.raises(ValueError, match=words):
        ClientTls.of(tls_url(*query))


def test_addresses_that_can_be() -> None:
    check_parameters(tls_url(("proxy", PIN), ("pin", PIN), ("identity", "a"), ("token_file", "f")))
    check_parameters(tls_url(("proxy", "ca"), ("ca", "lab"), ("name", "board")))
    check_parameters(tls_url())
