# SPDX-License-Identifier: Apache-2.0
"""Identities: made, loaded, renewed; and what OpenSSL makes of them."""

from __future__ import annotations

import datetime
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from rpcflow.security import identity as under_test
from rpcflow.security.authority import init_authority, issue
from rpcflow.security.identity import Identity, ensure_identity, identities, init_identity, load_identity, renew

from .handshakes import client_context, handshake, server_context

pytestmark = pytest.mark.usefixtures("config")
posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
both = pytest.mark.parametrize("algorithm", ["p256", "ed25519"])


def in_days(days: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


def secret_lines(path: Path) -> list[str]:
    """What of a key's file must be seen nowhere else."""
    key = path.read_text().partition("-----END PRIVATE KEY-----")[0]
    return [line for line in key.splitlines() if line]


@both
def test_made_and_loaded(config: Path, algorithm: str) -> None:
    made = init_identity("board", algorithm=algorithm, hosts=["board.example", "10.0.0.7", "[fd00::7]"], days=10)
    assert made == load_identity("board") == load_identity(config / "identities" / "board.pem")
    assert made.hosts == ("board.example", "10.0.0.7", "fd00::7")
    assert made.subject == made.issuer == "board"
    assert made.self_signed
    assert not made.expired()
    assert made.expired(in_days(11))
    assert in_days(9) < made.not_after < in_days(11)
    assert made.not_before < in_days(0)
    assert identities() == ["board"]


def test_by_default_it_is_this_machines() -> None:
    made = init_identity()
    assert {"localhost", "127.0.0.1", "::1"} <= set(made.hosts)
    assert made.subject.startswith("default@")


@pytest.mark.parametrize("name", ["", "a name", "b\xe4r", "x" * 64 + ".local"])
def test_a_machine_with_a_name_that_certificates_cannot_hold(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    made = init_identity()
    assert made.hosts == ("localhost", "127.0.0.1", "::1")
    assert made == load_identity()


@posix
@pytest.mark.usefixtures("open_umask")
def test_for_its_owner_alone(config: Path) -> None:
    made = init_identity()
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    made = renew()
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.stat().st_mode) == 0o700


def test_the_key_is_not_in_it() -> None:
    made = init_identity()
    for line in secret_lines(made.path):
        assert line not in repr(made)
    held = [value for value in vars_of(made) if isinstance(value, bytes)]
    assert held == [made.certificate]
    assert "certificate" not in repr(made)


def vars_of(made: Identity) -> list[Any]:
    return [getattr(made, name) for name in made.__slots__ if name != "__weakref__"]


def test_one_that_is_there_is_kept() -> None:
    made = init_identity()
    with pytest.raises(FileExistsError, match="already"):
        init_identity()
    assert load_identity() == made
    assert init_identity(replace=True).pin != made.pin


@pytest.mark.parametrize(
    "wrong",
    [
        {"algorithm": "rsa"},
        {"hosts": ["two words"]},
        {"hosts": ["b\xe4r"]},
        {"hosts": ["host:9091"]},
        {"hosts": [""]},
        {"hosts": ["a..b"]},
        {"hosts": ["x" * 64]},
        {"hosts": ["a" * 300 + "!"]},
        {"hosts": ["tls://board"]},
        {"days": float("nan")},
        {"days": float("inf")},
        {"days": 1e12},
        {"name": "../up"},
    ],
)
def test_arguments_that_cannot_be(config: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        init_identity(**wrong)
    assert not config.exists()


def test_none_there_says_how_to_make_one(config: Path) -> None:
    with pytest.raises(FileNotFoundError, match="rpcflow identity init board"):
        load_identity("board")
    with pytest.raises(FileNotFoundError, match=r"board\.pem"):
        load_identity("board.pem")
    assert not config.exists()


@posix
def test_a_key_that_others_can_read() -> None:
    made = init_identity()
    made.path.chmod(0o640)
    for use in (load_identity, ensure_identity, renew):
        with pytest.raises(PermissionError, match="chmod 600"):
            use()


def damaged(pem: str, other: str) -> dict[str, str]:
    end = "-----END PRIVATE KEY-----\n"
    key, _, certificate = pem.partition(end)
    return {
        "empty": "",
        "no PEM": "hello\n",
        "no key": certificate,
        "no certificate": key + end,
        "half a key": key[: len(key) // 2] + "\n" + end + certificate,
        "half a certificate": pem[:-80],
        "the key of another": other.partition(end)[0] + end + certificate,
        "a locked key": pem.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
        "bytes": "\x00\xff" * 100,
    }


@pytest.mark.parametrize("how", list(damaged("", "")))
def test_a_file_that_makes_no_sense(how: str) -> None:
    made, other = init_identity("a"), init_identity("b")
    text = damaged(made.path.read_text(), other.path.read_text())[how]
    made.path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.pem") as caught:
        load_identity("a")
    assert not any(line in str(caught.value) for line in secret_lines(other.path))


@both
def test_renewed_with_the_same_key(algorithm: str) -> None:
    before = init_identity("board", algorithm=algorithm, hosts=["board.example", "::1"], days=-1)
    assert before.expired()
    after = renew("board", days=5)
    assert after == load_identity("board")
    assert (after.pin, after.hosts, after.subject) == (before.pin, before.hosts, before.subject)
    assert after.serial != before.serial
    assert not after.expired()
    assert after.not_after < in_days(6)


def test_what_others_have_issued_is_not_renewed_by_ourselves() -> None:
    init_authority("lab")
    made = issue("lab", "lab", days=1)  # the authority's own name makes nobody the authority
    assert not made.self_signed
    with pytest.raises(ValueError, match="issued by 'lab'"):
        renew("lab")
    assert ensure_identity("lab") == made


def test_an_authority_is_not_made_an_identity() -> None:
    made = init_authority("lab")
    key = made.certificate.with_suffix(".pem")
    before = key.read_bytes()
    with pytest.raises(ValueError, match="authority"):
        renew(key)
    assert key.read_bytes() == before


def test_ensured() -> None:
    made = ensure_identity("board")
    assert ensure_identity("board") == made
    soon = init_identity("board", replace=True, days=29)
    renewed = ensure_identity("board")
    assert renewed.pin == soon.pin
    assert renewed.left() > datetime.timedelta(days=300)
    later = init_identity("board", replace=True, days=31)
    assert ensure_identity("board") == later


def test_ensured_by_many_at_once_there_is_one() -> None:
    found: list[Identity] = []
    threads = [threading.Thread(target=lambda: found.append(ensure_identity())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [load_identity()] * 6


def test_what_cannot_be_renewed_serves_until_it_expires(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(30, "read-only file system")

    soon, late = init_identity("soon", days=3), init_identity("late", days=-1)
    monkeypatch.setattr(under_test, "write_file", read_only)
    assert ensure_identity("soon") == soon
    assert "cannot be renewed" in caplog.text
    with pytest.raises(OSError, match="read-only"):
        ensure_identity("late")
    assert load_identity("late") == late


@both
@pytest.mark.parametrize("strict", [False, True])
def test_each_end_trusts_the_others_certificate_itself(tmp_path: Path, algorithm: str, strict: bool) -> None:
    server, client = (init_identity(name, algorithm=algorithm, hosts=["localhost"]) for name in ("server", "client"))
    anchor = tmp_path / "client.crt"
    anchor.write_text(ssl.DER_cert_to_PEM_cert(client.certificate))
    accepting, asking = server_context(server.path, anchor), client_context(server.certificate, client.path)
    if strict:  # as some versions of Python have it by default
        for context in (accepting, asking):
            context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    outcome = handshake(accepting, asking)
    assert outcome.good, outcome
    assert outcome.version == "TLSv1.3"
    assert outcome.client_certificate == client.certificate


def test_whom_it_does_not_know(tmp_path: Path) -> None:
    server, client, other = (init_identity(name, hosts=["localhost"]) for name in ("server", "client", "other"))
    anchor = tmp_path / "client.crt"
    anchor.write_text(ssl.DER_cert_to_PEM_cert(client.certificate))
    accepting = server_context(server.path, anchor)
    assert not handshake(accepting, client_context(server.certificate)).good
    outcome = handshake(accepting, client_context(server.certificate, other.path))
    assert isinstance(outcome.server_error, ssl.SSLCertVerificationError)
    outcome = handshake(accepting, client_context(other.certificate, client.path))
    assert isinstance(outcome.client_error, ssl.SSLCertVerificationError)
    outcome = handshake(accepting, client_context(server.certificate, client.path), "board.example")
    assert isinstance(outcome.client_error, ssl.SSLCertVerificationError)
    assert "Hostname mismatch" in str(outcome.client_error)


def test_one_that_has_expired_is_refused(tmp_path: Path) -> None:
    server, client = init_identity("server"), init_identity("client", days=-1)
    anchor = tmp_path / "client.crt"
    anchor.write_text(ssl.DER_cert_to_PEM_cert(client.certificate))
    outcome = handshake(server_context(server.path, anchor), client_context(server.certificate, client.path))
    assert "expired" in str(outcome.server_error)


def test_whoever_it_has_paired_with_knows_only_the_certificate_it_had(tmp_path: Path) -> None:
    """The key stays when it is renewed, but OpenSSL takes no other self-signed certificate for the one it trusts: this
    is why those last."""
    server, client = init_identity("server"), init_identity("client")
    anchor = tmp_path / "client.crt"
    anchor.write_text(ssl.DER_cert_to_PEM_cert(client.certificate))
    accepting = server_context(server.path, anchor)
    assert handshake(accepting, client_context(server.certificate, client.path)).good
    renewed = renew("client")
    assert not handshake(accepting, client_context(server.certificate, renewed.path)).good


def test_it_vouches_for_nobody_else(tmp_path: Path) -> None:
    """Who is trusted as a client cannot issue certificates to others."""
    from rpcflow.security import certificates as x
    from rpcflow.security.folder import read_secret, write_file

    server, client = init_identity("server"), init_identity("client")
    key, chain = x.read_pem(client.path, read_secret(client.path))
    made_key = x.make_key("p256")
    made = x.make_certificate(made_key, "mallory", days=1, issuer=(key, chain[0]))
    path = tmp_path / "mallory.pem"
    write_file(path, x.key_pem(made_key) + x.pem(made) + x.pem(chain[0]), secret=True)
    anchor = tmp_path / "client.crt"
    anchor.write_bytes(x.pem(chain[0]))
    accepting = server_context(server.path, anchor)
    assert handshake(accepting, client_context(server.certificate, client.path)).good
    assert not handshake(accepting, client_context(server.certificate, path)).good


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_openssl_reads_the_file() -> None:
    made = init_identity(hosts=["board.example"])
    done = subprocess.run(
        ["openssl", "x509", "-in", made.path, "-noout", "-text"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "DNS:board.example" in done.stdout
    assert "TLS Web Client Authentication" in done.stdout
    assert "CA:FALSE" in done.stdout


def test_it_says_what_it_is_for() -> None:
    made = x509.load_der_x509_certificate(init_identity().certificate)
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    kinds = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {kind._name for kind in kinds} == {"serverAuth", "clientAuth"}
    assert made.version is x509.Version.v3


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_who_does_not_need_it_does_not_import_the_library() -> None:
    done = python(
        "import sys, rpcflow, rpcflow.cli, rpcflow.security.known, rpcflow.security.folder, rpcflow.security.pins\n"
        "import rpcflow.cli.identity\n"
        "rpcflow.security.known.KnownHosts().lookup('board', 9091)\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'cryptography']"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "use", ["import rpcflow.security.identity", "from rpcflow.security.pins import *; pin_of(b'')"]
)
def test_without_the_library(use: str) -> None:
    done = python(f"import sys; sys.modules['cryptography'] = None\n{use}")
    assert "ImportError" in done.stderr
    assert "pip install 'rpcflow[security]'" in done.stderr
