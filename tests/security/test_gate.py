# SPDX-License-Identifier: Apache-2.0
"""A gate among clients that do what they like: handshakes, deadlines, certificates that change."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import resource
import socket
import ssl
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from rpcflow.errors import AuthenticationError
from rpcflow.security.authority import init_authority, issue, revoke
from rpcflow.security.door import DoorLimits, Visitor
from rpcflow.security.folder import authority_file
from rpcflow.security.identity import identity_path, init_identity, renew
from rpcflow.security.known import KnownClients
from rpcflow.security.server_context import TlsSettings
from tests.certificates import write_pem
from tests.server.support import until

from .doors import OTHER, Opened, client_context, client_hello, opened, over

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="gates are for Linux")


@pytest.fixture(params=["trio", "asyncio"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_pem(tmp_path / "own.pem")


@pytest.fixture
def door(own: Path) -> Iterator[Opened]:
    with opened("trio", TlsSettings(str(own))) as found:
        yield found


def certificate(door: Opened) -> bytes:
    """What the server shows."""
    with door.enter() as line:
        shown = line.getpeercert(True)
        assert shown is not None
        return shown


def said(caplog: pytest.LogCaptureFixture, words: str) -> None:
    until(lambda: words in caplog.text, f"{words!r} in the log")


# ---------------------------------------------------------------------------------------------- handshakes


@pytest.mark.parametrize(
    "begin",
    [b"", b"\x16", client_hello()[:100], client_hello(), client_hello() + b"\x14\x03\x03"],
    ids=["nothing", "a byte", "half a ClientHello", "a ClientHello", "no Finished"],
)
def test_half_open_lines_have_a_deadline(own: Path, begin: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with opened("trio", TlsSettings(str(own)), handshake_timeout=0.1) as door, door.knock() as line:
        line.sendall(begin)
        assert over(line)
        said(caplog, "did not finish the TLS handshake in time")
        assert not door.lines


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: there\r\n\r\n", "spoke HTTP, not TLS"),
        (b"\x71\xff\x00\x00\x06\x00\x00\x00client", "does not speak TLS"),
        (bytes(range(256)) * 1000, "does not speak TLS"),
        (b"\x16\x03\x01\xff\xff" + b"\x01" * 70000, ""),
        (client_hello()[:43] + b"\xff" * (len(client_hello()) - 43), "TLS handshake failed"),
    ],
    ids=["HTTP", "plain rpcflow", "garbage", "an overlong record", "a broken ClientHello"],
)
def test_what_is_no_tls(door: Opened, begin: bytes, words: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with door.knock() as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(begin)
        assert over(line)
        said(caplog, f"127.0.0.1:{line.getsockname()[1]}: ")
        assert words in caplog.text
    with door.enter() as line:
        door.served(line)
    assert len(door.lines) == 1


def test_tls_1_2_and_another_protocol(door: Opened, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol version"), door.enter(most="TLSv1_2"):
        pass
    said(caplog, "does not speak TLS 1.3")
    with door.enter(alpn="http/1.1") as line:
        assert over(line)
    said(caplog, "spoke TLS, but not for rpcflow")
    assert not door.lines


def test_a_hello_byte_by_byte(door: Opened) -> None:
    """Each of them is a turn of its own, and the others have theirs."""
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(into, out)
    with door.knock() as line, door.knock(OTHER) as other:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        other.sendall(client_hello()[:50])
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                for byte in out.read():
                    line.sendall(bytes([byte]))
                into.write(line.recv(65536))
            else:
                break
        for byte in out.read():
            line.sendall(bytes([byte]))
        until(lambda: door.lines, "the line coming in")


def test_words_that_come_with_the_last_of_the_handshake(door: Opened) -> None:
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(into, out)
    with door.knock() as line:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                line.sendall(out.read())
                into.write(line.recv(65536))
            else:
                break
        tls.write(b"at once")
        line.sendall(out.read())
        sock, _ = until(lambda: door.lines and door.lines[0], "the line coming in")
        sock.setblocking(True)
        assert sock.recv(100) == b"at once"


def test_many_at_once(door: Opened) -> None:
    def one(number: int) -> Visitor:
        with door.enter(f"127.0.0.{2 + number % 20}") as line:
            visitor = door.served(line)
            visitor.known()
            return visitor

    with ThreadPoolExecutor(12) as pool:
        visitors = list(pool.map(one, range(60)))
    assert len({visitor._number for visitor in visitors}) == 60
    assert [visitor.host for visitor in visitors] == [f"127.0.0.{2 + number % 20}" for number in range(60)]


def test_a_flood_is_shed_and_said(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = DoorLimits(most=40, strangers=20, per_address=30, strangers_per_address=10)
    with opened("trio", TlsSettings(str(own)), limits) as door, contextlib.ExitStack() as stack:
        with door.enter() as line:
            door.served(line).known()
            for number in range(120):
                stranger = stack.enter_context(door.knock(f"127.0.0.{2 + number % 12}"))
                with contextlib.suppress(ConnectionError):
                    stranger.sendall(client_hello()[: 20 + number])
            for _ in range(3):
                with door.enter() as more:
                    door.served(more).known()
            door.served(line)
            assert len(os.listdir(f"/proc/{door.gate}/fd")) < 2 * limits.most + 20
        said(caplog, "turned away")
        lines = [record for record in caplog.records if "turned away" in record.getMessage()]
        assert len(lines) < 4


# ---------------------------------------------------------------------------------------------- lines from elsewhere


def test_lines_that_the_service_has_got_elsewhere(door: Opened) -> None:
    async def secure(sock: socket.socket) -> tuple[socket.socket, Visitor]:
        return await door.door.secure(sock, OTHER, 17)

    near, far = socket.socketpair()
    with near, far:
        near.sendall(b"GET / HTTP/1.1\r\n\r\n")
        far.setblocking(False)
        with pytest.raises(AuthenticationError, match="spoke HTTP"):
            door.call(secure, far)
    near, far = socket.socketpair()
    with ThreadPoolExecutor(1) as pool, far:
        client = pool.submit(client_context().wrap_socket, near)
        plain, visitor = door.call(secure, far)
        with plain, client.result() as line:
            assert (visitor.host, visitor.port, visitor.listener, visitor.encrypted) == (OTHER, 17, -1, True)
            line.sendall(b"hello")
            plain.setblocking(True)
            assert plain.recv(100) == b"hello"


# ---------------------------------------------------------------------------------------------- files that change


def test_a_renewed_certificate_is_served_and_a_broken_one_is_not(
    backend: str, config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = Path(init_identity("own").path)
    with opened(backend, TlsSettings(str(path))) as door:
        first = certificate(door)
        renew("own")
        until(lambda: certificate(door) != first, "the renewed certificate")
        said(caplog, "TLS goes on with new certificates")
        caplog.clear()
        second = certificate(door)
        good = path.read_bytes()
        path.write_bytes(b"nothing of use")
        until(
            lambda: certificate(door) == second and "TLS goes on with what it had" in caplog.text, "a line in the log"
        )
        assert certificate(door) == second
        assert "nothing of use" not in caplog.text
        path.write_bytes(good)
        until(lambda: certificate(door) == second and "with new certificates" in caplog.text, "a line in the log")


def shown(identity: str) -> bytes:
    data = identity_path(identity).read_bytes()
    return data[data.index(b"-----BEGIN CERTIFICATE") :]


def test_a_client_that_has_just_paired(backend: str, config: Path) -> None:
    """However long the gate has slept."""
    init_identity("own")
    pin = init_identity("friend").pin
    settings = TlsSettings(str(identity_path("own")), known_clients=str(config / "known_clients"), require_client=True)
    with opened(backend, settings) as door:
        with door.enter(identity=identity_path("friend")) as line:
            assert "required" in str(door.served(line).refused)
        KnownClients().add("friend", shown("friend"))
        until(lambda: _refused(door, "friend") is None, "the friend being known")
        with door.enter(identity=identity_path("friend")) as line:
            visitor = door.served(line)
        assert (visitor.certificate, visitor.subject, visitor.refused) == (pin, "", None)
        KnownClients().remove("friend")
        until(lambda: _refused(door, "friend") is not None, "the friend being forgotten")


def _refused(door: Opened, identity: str) -> str | None:
    """Why it is not served; None if it is."""
    try:
        with door.enter(identity=identity_path(identity)) as line:
            return door.served(line).refused
    except (OSError, AssertionError) as error:
        return str(error)


def test_revoked_while_it_runs(backend: str, config: Path, caplog: pytest.LogCaptureFixture) -> None:
    init_authority("lab")
    issue("own", "lab", hosts=["localhost"], client=False)
    issue("ada", "lab", server=False)
    settings = TlsSettings(str(identity_path("own")), client_ca=authority_file("lab"), require_client=True)
    with opened(backend, settings) as door:
        with door.enter(identity=identity_path("ada")) as line:
            assert door.served(line).subject == "ada"
        revoke("ada", "lab")
        until(lambda: "revoked" in (_refused(door, "ada") or ""), "her being refused")
        (config / "authorities" / "lab.crl").unlink()  # and not before another has its place
        until(lambda: _refused(door, "ada") is None or "has gone" in caplog.text, "the gate looking again")
        assert "revoked" in (_refused(door, "ada") or "")


def test_a_certificate_that_openssl_alone_understands(config: Path, tmp_path: Path) -> None:
    """An authority has signed it, version 2 of what has three."""
    init_authority("lab")
    issue("own", "lab", hosts=["localhost"], client=False)
    issue("ada", "lab", server=False)
    signing = load_pem_private_key((config / "authorities" / "lab.pem").read_bytes(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    mine = identity_path("ada").read_bytes()
    made = x509.load_pem_x509_certificate(mine)
    to_sign = made.tbs_certificate_bytes.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020101"), 1)
    body = to_sign + made.public_bytes(Encoding.DER)[4 + len(to_sign) :][:12]
    signature = b"\0" + signing.sign(to_sign, ec.ECDSA(SHA256()))
    body += bytes((3, len(signature))) + signature
    path = tmp_path / "odd.pem"
    key = mine[: mine.index(b"-----BEGIN CERTIFICATE")]
    path.write_bytes(key + ssl.DER_cert_to_PEM_cert(b"\x30\x82" + len(body).to_bytes(2, "big") + body).encode())
    with opened("trio", TlsSettings(str(identity_path("own")), client_ca=authority_file("lab"))) as door:
        gate = door.gate
        with door.enter(identity=path) as line:
            assert "makes no sense" in str(door.served(line).refused)
        assert door.gate == gate


def test_a_gate_without_descriptors(door: Opened, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody is turned away then, and nobody else has to suffer for it."""
    gate = door.gate
    with door.enter() as first:
        door.served(first)
        soft, hard = resource.prlimit(gate, resource.RLIMIT_NOFILE)
        taken = {int(name) for name in os.listdir(f"/proc/{gate}/fd")}
        free = [number for number in range(max(taken) + 3) if number not in taken]
        resource.prlimit(gate, resource.RLIMIT_NOFILE, (free[1] + 1, hard))  # enough for a line, not for its plain end
        with door.enter() as second:
            assert over(second)
        said(caplog, "Too many open files")
        resource.prlimit(gate, resource.RLIMIT_NOFILE, (soft, hard))
        with door.enter() as third:
            door.served(third)
        first.sendall(b"still here")
        assert door.lines[0][0].recv(100) == b"still here"
    assert door.gate == gate


def test_a_name_that_is_too_long_for_a_message(config: Path, tmp_path: Path) -> None:
    """An authority has signed it; the service could not be told of it."""
    init_authority("lab")
    issue("own", "lab", hosts=["localhost"], client=False)
    authority = (config / "authorities" / "lab.pem").read_bytes()
    signer, key = x509.load_pem_x509_certificate(authority), ec.generate_private_key(ec.SECP256R1())
    signing = load_pem_private_key(authority, None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.UTC)
    with pytest.warns(UserWarning, match="length"):
        long = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "\u2028" * 20000, _validate=False)])
    made = (
        x509.CertificateBuilder(signer.subject, long, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(signing, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path / "long.pem"
    path.write_bytes(private + made.public_bytes(Encoding.PEM))
    with opened("trio", TlsSettings(str(identity_path("own")), client_ca=authority_file("lab"))) as door:
        gate = door.gate
        with door.enter(identity=path) as line:
            assert "too long" in str(door.served(line).refused)
        assert door.gate == gate
