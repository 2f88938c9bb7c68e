# SPDX-License-Identifier: Apache-2.0
"""Who is not let in by a server with TLS, certificates, tokens and a policy: the right error there, one line in the log
here, and nothing has happened."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.errors import AuthenticationError, ConnectionLostError, PermissionDeniedError, ProtocolError, RPCError
from rpcflow.protocol.credentials import encode_credentials
from rpcflow.protocol.handshake import encode_hello
from rpcflow.security.authority import init_authority, issue, revoke
from rpcflow.security.identity import init_identity
from rpcflow.security.tokens import hash_token, new_token
from tests.eavesdropper import listening

from .conftest import Host
from .support import until

POLICY = """
[policy.engineer]
keys = ["board"]
constructors = ["rpc.LocalSession"]
functions = ["*", "!t.segfault"]
max_sessions = 1

[client.ada]
policy = "engineer"
token = "{token}"
subject = "ada"
"""


@attrs.frozen
class Lab:
    """A server that lets in its lab's people alone, and what they have."""

    server: rpcflow.Server
    token: str

    @property
    def url(self) -> str:
        return f"tls://localhost:{self.server.port}"

    @property
    def good(self) -> dict[str, Any]:
        """What somebody of the lab connects with."""
        return {"ca": "lab", "identity": "ada", "token": self.token}

    def connect(self, **options: Any) -> sync.RPCSession:
        given = {**self.good, **options}
        return sync.connect(
            given.pop("url", self.url), key=given.pop("key", "board"), wait_timeout=30, **_without_none(given)
        )


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A configuration folder with all that these tests want."""
    home = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RPCFLOW_HOME", str(home))
        init_authority("lab")
        init_authority("elsewhere")
        issue("board", "lab", hosts=["localhost"], client=False)
        for name in ("ada", "gone", "eve"):
            issue(name, "lab", server=False)
        issue("late", "lab", server=False, days=-1)
        issue("stranger", "elsewhere", server=False)
        init_identity("self")
        revoke("gone", "lab")
        yield home, new_token()


@pytest.fixture
def lab(host: Host, keys: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    home, token = keys
    monkeypatch.setenv("RPCFLOW_HOME", str(home))
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.format(token=hash_token(token)))
    options = {"identity": "board", "client_ca": "lab", "require_client": True, "policy": policy, "key": "board"}
    with host(**options) as server:
        yield Lab(server, token)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the server has logged about people at its door."""
    caplog.set_level(logging.INFO, "rpcflow")
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.name in ("rpcflow.server", "rpcflow.gate")
        and not record.getMessage().startswith(("serving", "session"))
    ]


def nobody_was_served(lab: Lab) -> bool:
    return lab.server._numbers == 0


def test_somebody_of_the_lab(lab: Lab) -> None:
    with lab.connect() as session:
        assert session.get_function("t.echo")(17) == 17


CASES: list[tuple[str, dict[str, Any], type[RPCError], str, str]] = [
    # what, options, error, words of it, words in the log
    ("no certificate", {"identity": ""}, AuthenticationError, "certificate", "certificate is required"),
    ("a certificate of another authority", {"identity": "stranger"}, AuthenticationError, "", "certificate"),
    ("a self-signed certificate", {"identity": "self"}, AuthenticationError, "", "certificate"),
    ("a revoked certificate", {"identity": "gone"}, AuthenticationError, "revoked", "has been revoked"),
    ("a wrong token", {"token": "wrong" * 8}, AuthenticationError, "", "AuthenticationError"),
    ("somebody else's token", {"identity": "eve", "token": None}, AuthenticationError, "", "AuthenticationError"),
    ("another key", {"key": "desk"}, rpcflow.KeyMismatchError, "", "asked for another key"),
]


@pytest.mark.parametrize(("options", "kind", "words", "line"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_refused_by_the_server(
    lab: Lab, said: Callable[[], list[str]], options: dict[str, Any], kind: type[RPCError], words: str, line: str
) -> None:
    with pytest.raises(kind, match=words or ".+"):
        lab.connect(**options)
    until(said, "a line in the log")
    assert [text for text in said() if line in text]
    assert len(said()) == 1
    assert nobody_was_served(lab)
    assert lab.token not in "".join(said())
    with lab.connect() as session:  # and the next one is served
        assert session.get_function("t.echo")(1) == 1


def test_an_expired_certificate(lab: Lab, said: Callable[[], list[str]]) -> None:
    """Which our own client does not even show; somebody else's does."""
    with pytest.raises((ValueError, AuthenticationError), match="expired"):
        lab.connect(identity="late")
    assert nobody_was_served(lab)
    with raw(lab, identity="late") as tls, pytest.raises(ssl.SSLError, match=r"(?i)expired"):
        tls.recv(1)
    until(said, "a line in the log")
    assert "certificate" in said()[0]
    assert nobody_was_served(lab)


def test_refused_by_the_client(lab: Lab) -> None:
    """A server that is not who it should be hears nothing of ours."""
    for options, words in (
        ({"ca": "elsewhere"}, ""),
        ({"url": f"tls://127.0.0.1:{lab.server.port}"}, ""),  # a name that the certificate has not
        ({"ca": None, "pin": "sha256:" + "0" * 64}, "0000"),
    ):
        with pytest.raises(AuthenticationError, match=words or ".+"):
            lab.connect(**options)
    assert nobody_was_served(lab)


def raw(lab: Lab, identity: str = "ada", most: ssl.TLSVersion | None = None, alpn: str = "rpcflow") -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    from rpcflow.security.identity import load_identity

    context.load_cert_chain(load_identity(identity).path)
    if most is not None:
        context.maximum_version = most
    if alpn:
        context.set_alpn_protocols([alpn])
    sock = socket.create_connection(("127.0.0.1", lab.server.port), 30)
    try:
        return context.wrap_socket(sock)
    except BaseException:
        sock.close()
        raise


def test_tls_1_2(lab: Lab, said: Callable[[], list[str]]) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)version"):
        raw(lab, most=ssl.TLSVersion.TLSv1_2)
    until(said, "a line in the log")
    assert "TLS 1.3" in said()[0]
    assert nobody_was_served(lab)


def test_tls_for_something_else(lab: Lab, said: Callable[[], list[str]]) -> None:
    for alpn in ("", "h2"):
        with raw(lab, alpn=alpn) as tls:
            tls.sendall(encode_hello("client:board"))
            assert tls.recv(1) == b""
    until(lambda: len(said()) == 2, "two lines in the log")
    assert nobody_was_served(lab)


def test_a_plain_client(lab: Lab, said: Callable[[], list[str]]) -> None:
    """A stock one, say."""
    with pytest.raises((ConnectionLostError, ProtocolError)):
        sync.connect("127.0.0.1", lab.server.port, "board", wait_timeout=30)
    until(said, "a line in the log")
    assert "TLS" in said()[0]
    assert len(said()) == 1
    assert nobody_was_served(lab)


def test_a_replayed_handshake(lab: Lab, said: Callable[[], list[str]]) -> None:
    """All that a good client has said, said again: TLS makes of it what it makes of noise."""
    with listening(lab.server.port) as (port, heard):
        with lab.connect(url=f"tls://localhost:{port}") as session:
            assert session.get_function("t.echo")(1) == 1
    served = lab.server._numbers
    with socket.create_connection(("127.0.0.1", lab.server.port), 30) as sock:
        sock.sendall(heard["client"])
        sock.settimeout(30)
        try:
            while sock.recv(65536):
                pass
        except ConnectionError:
            pass
    until(said, "a line in the log")
    assert lab.server._numbers == served


def test_a_token_on_a_line_that_others_can_read(lab: Lab) -> None:
    """The client does not send it, wherever it was to go."""
    for url in ("tcp://192.0.2.1:9091", "ws://192.0.2.1:80/ws", "tcp://board.example:9091"):
        with pytest.raises(AuthenticationError, match="token"):
            sync.connect(url, token=lab.token, wait_timeout=5)


def test_a_token_that_came_over_such_a_line() -> None:
    """And a server that is sent one does not take it."""
    from rpcflow.security.door import Visitor
    from rpcflow.security.rights import Rights

    with pytest.raises(AuthenticationError, match="others can read"):
        Rights(None).identify(Visitor("192.0.2.1", 4000), "a-token")
    assert Rights(None).identify(Visitor("127.0.0.1", 4000), "a-token") is None
    assert Rights(None).identify(Visitor("", 0), "a-token") is None


def test_a_function_outside_the_policy(lab: Lab) -> None:
    with lab.connect() as session:
        with pytest.raises(PermissionDeniedError, match=r"t\.segfault"):
            session.get_function("t.segfault")
        assert session.get_function("t.echo")(2) == 2


@pytest.mark.parametrize("name", ["rpc.Connect", "rpc.PopenSession", "rpc.CreatePipeClient"])
def test_a_constructor_outside_the_policy(lab: Lab, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        port = elsewhere.getsockname()[1]
        args = {"rpc.Connect": ["127.0.0.1", port, "", False], "rpc.PopenSession": [b"#!/bin/sh\ntouch made\n"]}
        with pytest.raises(PermissionDeniedError, match=name):
            lab.connect(session_constructor_args=[name, *args.get(name, ["/bin/true"])])
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


def test_more_sessions_than_the_policy_lets_one_have(lab: Lab) -> None:
    with lab.connect() as first:
        with pytest.raises(PermissionDeniedError, match="1 session"):
            lab.connect()
        assert first.get_function("t.echo")(3) == 3

    def again() -> bool:
        try:
            lab.connect().close()
        except PermissionDeniedError:
            return False  # the first one's end is being seen to
        return True

    until(again)


def test_a_half_sent_token(host: Host, tmp_path: Path) -> None:
    """A line that ends, or stands, in the middle of its credentials holds up nobody."""
    policy = tmp_path / "policy.toml"
    token = new_token()
    policy.write_text(POLICY.format(token=hash_token(token)))
    whole = encode_credentials(token) + encode_hello("client:board")
    with host(policy=policy, key="board", timeout=0.5) as server:
        for cut in (1, 4, 8, 11, 12, 30, len(whole) - 1):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.sendall(whole[:cut])
                sock.settimeout(30)
                assert sock.recv(1) == b""
        for magic in (b"rpcflow\x02", b"rpcflow\x01\xff\xff\xff\xff", b"rpcflow\x01\x00\x00\x00\x00"):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.sendall(magic.ljust(12, b"\0"))
                sock.settimeout(30)
                assert sock.recv(1) == b""
        with sync.connect("127.0.0.1", server.port, "board", token=token, wait_timeout=30) as session:
            assert session.get_function("t.echo")(1) == 1


def test_what_a_stock_client_reads(host: Host, tmp_path: Path) -> None:
    """Words, behind a key that was answered."""
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.format(token=hash_token("x" * 40)))
    with host(policy=policy, key="board") as server:
        with pytest.raises(AuthenticationError):
            sync.connect("127.0.0.1", server.port, "board", wait_timeout=30)
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(encode_hello("client:board"))
            data = b""
            while piece := sock.recv(4096):
                data += piece
        assert data.startswith(encode_hello("server:board"))
        assert b"AuthenticationError: " in data
        assert server._numbers == 0


def test_files_of_clients_are_kept_private(keys: tuple[Path, str]) -> None:
    home, _ = keys
    found = list(home.rglob("*.pem"))
    assert found
    for path in found:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_token_that_is_taken_back_while_its_client_waits(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token, other = new_token(), new_token()
    policy = tmp_path / "policy.toml"
    text = '[policy.some]\n[client.ada]\npolicy = "some"\ntoken = "{}"\n'
    policy.write_text(text.format(hash_token(token)))
    with host(policy=policy) as server:
        first = sync.connect(f"tcp://127.0.0.1:{server.port}", token=token)
        with socket.create_connection(("127.0.0.1", server.port), 30) as second:
            second.sendall(encode_credentials(token) + encode_hello("client:"))
            until(lambda: server._queue.waiting == 1, "the second waiting")
            policy.write_text(text.format(hash_token(other)))
            first.close()
            heard = b""
            while piece := second.recv(4096):
                heard += piece
        assert b"AuthenticationError" in heard
        assert not any("session 2" in record.getMessage() for record in caplog.records)
        until(lambda: not server._rights._sessions, "all being forgotten")
        sync.connect(f"tcp://127.0.0.1:{server.port}", token=other).close()
