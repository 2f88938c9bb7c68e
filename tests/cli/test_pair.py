# SPDX-License-Identifier: Apache-2.0
"""``rpcflow pair``, against a desk over real TLS."""

from __future__ import annotations

import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio.from_thread
import attrs
import pytest
from click.testing import CliRunner, Result

from rpcflow.cli import cli
from rpcflow.security.identity import load_identity
from rpcflow.security.known import KnownClients, KnownHosts
from rpcflow.security.pairing_desk import PairingDesk
from rpcflow.security.pins import pin_of
from rpcflow.transports.tcp import listen
from tests.security.pairing_support import MALLORY, SERVER, Clock, StreamChannel, pin
from tests.security.test_pairing_client import listening, over_tls, server_context


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client's folder."""
    folder = tmp_path / "home"
    monkeypatch.setenv("RPCFLOW_HOME", str(folder))
    return folder


@attrs.frozen
class Server:
    """A server that pairs."""

    desk: PairingDesk
    port: int
    clients: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def wrong(self) -> str:
        return f"{(int(self.desk.code) + 1) % 10**8:08d}"


@pytest.fixture(params=["rpcflow-pair/1"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    clock, folder = Clock(), tmp_path / "server"
    desk = PairingDesk(pin(SERVER), KnownClients(folder), clock=clock, sleep=clock.sleep)
    accept = over_tls(
        server_context(SERVER, tmp_path, request.param),
        lambda stream: desk.serve(StreamChannel(stream), "somebody"),
    )
    with anyio.from_thread.start_blocking_portal("trio") as portal:
        with portal.wrap_async_context_manager(listening(accept)) as url:
            yield Server(desk, url.port, folder)


def run(*arguments: str, words: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["pair", *arguments], input=words)


def stored(server: Server, home: Path) -> tuple[list[str], list[str]]:
    """The lines of our known hosts, and the files of the server's known clients."""
    hosts = home / "known_hosts"
    lines = hosts.read_text().splitlines() if hosts.exists() else []
    return [line for line in lines if line and not line.startswith("#")], [p.name for p in server.clients.glob("*")]


def kept_pins(server: Server) -> list[str]:
    """Of the clients that the server knows."""
    known = KnownClients(server.clients)
    return [pin_of(ssl.PEM_cert_to_DER_cert(known.certificate(name).decode())) for name in known.names()]


def failed(result: Result, status: int, words: str) -> None:
    assert result.exit_code == status, result.output
    assert words in result.stderr
    assert result.stdout == ""
    if status == 1:
        assert len(result.stderr.splitlines()) == 1


def test_pairing(server: Server, home: Path) -> None:
    result = run(server.address, "--code", server.desk.code, "--name", "laptop")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"tls://{server.address} knows us as laptop",
        f"its key, {pin(SERVER)}, is in {home / 'known_hosts'}",
        f"connect to tls://{server.address}",
    ]
    assert stored(server, home) == ([f"{server.address} {pin(SERVER)}"], ["laptop.crt"])
    own = load_identity("default")
    assert kept_pins(server) == [own.pin]
    assert stat.S_IMODE((home / "identities" / "default.pem").stat().st_mode) == 0o600
    failed(run(server.address, "--code", server.desk.code), 1, "takes no new clients now")


def test_the_code_is_asked_for(server: Server, home: Path) -> None:
    code = f"{server.desk.code[:4]} {server.desk.code[4:]}"
    result = run(f"tls://{server.address}", words=f"{code}\n")
    assert result.exit_code == 0, result.output
    assert "Code that the server shows" in result.stderr
    lines, files = stored(server, home)
    assert lines == [f"{server.address} {pin(SERVER)}"]
    assert len(files) == 1


def test_a_wrong_code(server: Server, home: Path) -> None:
    failed(run(server.address, "--code", server.wrong), 1, "the code was wrong, or somebody sits between")
    assert stored(server, home) == ([], [])
    assert server.desk.on


def test_no_code(server: Server, home: Path) -> None:
    result = run(server.address, "--code", "12a")
    failed(result, 2, "6 to 8 digits")
    assert "12a" not in result.output
    assert stored(server, home) == ([], [])


def test_a_key_that_is_known_otherwise(server: Server, home: Path) -> None:
    KnownHosts().add("127.0.0.1", server.port, pin(MALLORY))
    failed(run(server.address, "--code", server.desk.code), 1, "--replace")
    assert stored(server, home) == ([f"{server.address} {pin(MALLORY)}"], [])
    assert run(server.address, "--code", server.desk.code, "--replace", "--name", "x").exit_code == 0
    assert stored(server, home) == ([f"{server.address} {pin(SERVER)}"], ["x.crt"])


def test_another_identity(server: Server, home: Path) -> None:
    assert run(server.address, "--code", server.desk.code, "--identity", "work").exit_code == 0
    assert kept_pins(server) == [load_identity("work").pin]
    assert not (home / "identities" / "default.pem").exists()


@pytest.mark.parametrize("server", ["rpcflow"], indirect=True)
def test_a_server_that_does_not_pair(server: Server, home: Path) -> None:
    failed(run(server.address, "--code", "12345678"), 1, "is not pairing: start the server with --pair")
    assert stored(server, home) == ([], [])


def test_nobody_there(home: Path) -> None:
    (listener,) = listen("127.0.0.1", 0, 1)
    with listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "rpcflow", "pair", f"127.0.0.1:{port}", "--code", "12345678"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"rpcflow: nobody answers at tls://127.0.0.1:{port}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "address",
    [
        "tcp://host:1",
        "unix:/x",
        "ws://host:1/ws",
        "tls://host:1/x",
        "tls://host:1?pin=sha256:00",
        "popen:/bin/x",
        "tls://",
        "",
    ],
)
def test_addresses_that_cannot_be(address: str, home: Path) -> None:
    result = run(address, "--code", "12345678")
    assert result.exit_code == 2
    assert not home.exists()
