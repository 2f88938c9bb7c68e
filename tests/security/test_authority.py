# SPDX-License-Identifier: Apache-2.0
"""A small authority: what it issues and revokes, and what OpenSSL makes of that."""

from __future__ import annotations

import datetime
import os
import ssl
import stat
import threading
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography import x509

from rpcflow.security import authority as under_test
from rpcflow.security.authority import Authority, authorities, init_authority, issue, load_authority, revoke
from rpcflow.security.identity import Identity, identities, init_identity, load_identity

from .handshakes import Outcome, client_context, handshake, server_context

pytestmark = pytest.mark.usefixtures("config")
posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")


@attrs.frozen
class Lab:
    """An authority, a server of it, and the server's check of clients by OpenSSL, list of the revoked included."""

    made: Authority
    server: Identity

    def admits(self, client: Identity | None, strict: bool = False) -> Outcome:
        accepting = server_context(self.server.path, self.made.certificate, self.made.crl)
        asking = client_context(self.made.certificate, client.path if client else None)
        if strict:
            for context in (accepting, asking):
                context.verify_flags |= ssl.VERIFY_X509_STRICT
        outcome = handshake(accepting, asking)
        assert not isinstance(outcome.client_error, ssl.SSLCertVerificationError), "the server is good"
        return outcome


@pytest.fixture(params=["p256", "ed25519"])
def lab(request: pytest.FixtureRequest) -> Lab:
    made = init_authority("lab", algorithm=request.param)
    return Lab(made, issue("server", "lab", hosts=["localhost", "127.0.0.1"], client=False, algorithm=request.param))


@pytest.fixture
def plain() -> Authority:
    return init_authority("lab")


def crl_of(made: Authority) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(made.crl.read_bytes())


@pytest.mark.parametrize("strict", [False, True])
def test_whom_it_has_issued_a_certificate_is_let_in(lab: Lab, strict: bool) -> None:
    client = issue("ada", "lab", server=False)
    outcome = lab.admits(client, strict)
    assert outcome.good, outcome
    assert outcome.version == "TLSv1.3"
    assert outcome.client_certificate == client.certificate


def test_others_are_not(lab: Lab) -> None:
    init_authority("other")
    namesake = issue("ada", "other")
    for client in (None, namesake, init_identity("self"), issue("late", "lab", days=0), issue("later", "lab", days=-3)):
        outcome = lab.admits(client)
        assert isinstance(outcome.server_error, ssl.SSLError), client
        assert outcome.client_certificate is None
    assert "expired" in str(lab.admits(load_identity("late")).server_error)


def test_another_authority_of_the_same_name_is_another(lab: Lab) -> None:
    before = issue("ada", "lab")
    init_authority("lab", replace=True)
    client = issue("bob", "lab")
    with pytest.raises(ValueError, match="not by this authority"):
        revoke("ada", "lab")
    old = attrs.evolve(lab, made=load_authority("lab"))
    accepting = server_context(lab.server.path, old.made.certificate, old.made.crl)
    assert not handshake(accepting, client_context(old.made.certificate, before.path)).good
    assert load_identity("bob") == client


def test_who_is_revoked_is_refused_and_the_others_are_not(lab: Lab) -> None:
    ada, bob = issue("ada", "lab"), issue("bob", "lab")
    assert lab.admits(ada).good
    assert revoke("ada", "lab") == ada.serial
    outcome = lab.admits(ada)
    assert "revoked" in str(outcome.server_error)
    assert lab.admits(bob).good
    assert load_authority("lab").revoked == (ada.serial,)


def test_what_one_end_is_for_is_not_for_the_other(lab: Lab) -> None:
    assert not lab.admits(lab.server).good  # a server's alone
    client = issue("ada", "lab", server=False, hosts=["localhost"])
    accepting = server_context(client.path)
    outcome = handshake(accepting, client_context(lab.made.certificate))
    assert isinstance(outcome.client_error, ssl.SSLCertVerificationError)


def test_a_server_goes_by_its_names_alone(lab: Lab) -> None:
    accepting, asking = server_context(lab.server.path), client_context(lab.made.certificate)
    assert handshake(accepting, asking, "localhost").good
    assert handshake(accepting, asking, "127.0.0.1").good
    for name in ("board.example", "127.0.0.2", "server"):
        outcome = handshake(accepting, asking, name)
        assert isinstance(outcome.client_error, ssl.SSLCertVerificationError), name


def test_whom_it_has_issued_a_certificate_issues_none(lab: Lab, tmp_path: Path) -> None:
    from rpcflow.security import certificates as x
    from rpcflow.security.folder import read_secret, write_file

    ada = issue("ada", "lab")
    key, chain = x.read_pem(ada.path, read_secret(ada.path))
    new = x.make_key("p256")
    made = x.make_certificate(new, "mallory", days=1, issuer=(key, chain[0]))
    path = tmp_path / "mallory.pem"
    write_file(path, x.key_pem(new) + x.pem(made) + b"".join(map(x.pem, chain)), secret=True)
    assert not lab.admits(load_identity(path)).good


def test_revoked_by_name_by_file_or_by_number(plain: Authority, tmp_path: Path) -> None:
    named, numbered = issue("named", "lab"), issue("numbered", "lab")
    filed = issue("filed", "lab", path=tmp_path / "filed.pem")
    assert revoke("named", "lab") == named.serial
    assert revoke(str(numbered.serial), "lab") == numbered.serial
    assert revoke(str(tmp_path / "filed.pem"), "lab") == filed.serial
    assert set(load_authority("lab").revoked) == {named.serial, numbered.serial, filed.serial}
    key = x509.load_pem_x509_certificate(plain.certificate.read_bytes()).public_key()
    assert crl_of(plain).is_signature_valid(key)  # type: ignore[arg-type]


def test_a_name_of_digits_is_a_name(plain: Authority) -> None:
    made = issue("2024", "lab")
    assert revoke("2024", "lab") == made.serial
    assert load_authority("lab").revoked == (made.serial,)


def test_revoked_once_is_enough_and_since_then(plain: Authority) -> None:
    made = issue("ada", "lab")
    revoke("ada", "lab")
    before = crl_of(plain).get_revoked_certificate_by_serial_number(made.serial)
    assert before is not None
    revoke("ada", "lab")
    revoke(str(made.serial + 1), "lab")
    after = crl_of(plain)
    assert [entry.serial_number for entry in after] == [made.serial, made.serial + 1]
    assert after[0].revocation_date_utc == before.revocation_date_utc


def test_each_use_writes_the_list_anew(plain: Authority) -> None:
    def number() -> int:
        return crl_of(plain).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    assert number() == 1
    issue("ada", "lab")
    assert number() == 2
    revoke("ada", "lab")
    assert number() == 3
    until = crl_of(plain).next_update_utc
    assert until is not None
    assert until > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=365)


def test_at_once_nothing_is_lost(plain: Authority) -> None:
    threads = [threading.Thread(target=revoke, args=[str(number), "lab"]) for number in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(load_authority("lab").revoked) == list(range(1, 13))


@pytest.mark.parametrize("what", ["0", str(1 << 160), "nobody", "nothing.pem", "../up"])
def test_what_cannot_be_revoked(plain: Authority, what: str) -> None:
    before = plain.crl.read_bytes()
    with pytest.raises((ValueError, FileNotFoundError)):
        revoke(what, "lab")
    assert plain.crl.read_bytes() == before


def test_what_others_have_issued_cannot_be_revoked(plain: Authority) -> None:
    init_identity("lab")  # named as the authority, and yet not issued by it
    with pytest.raises(ValueError, match="not by this authority"):
        revoke("lab", "lab")
    assert load_authority("lab").revoked == ()


def test_without_its_list_nothing_is_let_in_again(plain: Authority) -> None:
    issue("ada", "lab")
    revoke("ada", "lab")
    kept = plain.crl.read_bytes()
    plain.crl.unlink()
    for use in (lambda: revoke("1", "lab"), lambda: issue("bob", "lab"), lambda: load_authority("lab")):
        with pytest.raises(FileNotFoundError, match=r"lab\.crl is missing"):
            use()
    assert not plain.crl.exists()
    assert identities() == ["ada"]
    plain.crl.write_bytes(kept)
    assert len(load_authority("lab").revoked) == 1


def test_a_list_of_anothers_is_not_ours(plain: Authority) -> None:
    other = init_authority("other")
    for data in (other.crl.read_bytes(), b"", b"no list", plain.certificate.read_bytes()):
        plain.crl.write_bytes(data)
        with pytest.raises(ValueError, match=r"lab\.crl is not the authority's list"):
            revoke("1", "lab")
        assert plain.crl.read_bytes() == data


@posix
@pytest.mark.usefixtures("open_umask")
def test_its_key_is_for_its_owner_alone(config: Path) -> None:
    made = init_authority("lab")
    key = made.certificate.with_suffix(".pem")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.certificate.stat().st_mode) == 0o644
    assert stat.S_IMODE(made.crl.stat().st_mode) == 0o644
    assert stat.S_IMODE((config / "authorities").stat().st_mode) == 0o700
    assert b"PRIVATE" not in made.certificate.read_bytes() + made.crl.read_bytes()
    key.chmod(0o644)
    for use in (lambda: load_authority("lab"), lambda: issue("ada", "lab"), lambda: revoke("1", "lab")):
        with pytest.raises(PermissionError, match="chmod 600"):
            use()
    assert not (config / "identities").exists()


def test_one_that_is_there_is_kept(plain: Authority) -> None:
    before = {path: path.read_bytes() for path in plain.certificate.parent.iterdir()}
    with pytest.raises(FileExistsError, match="already"):
        init_authority("lab")
    assert {path: path.read_bytes() for path in plain.certificate.parent.iterdir()} == before
    assert init_authority("lab", replace=True).pin != plain.pin
    assert authorities() == ["lab"]


def test_half_made_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    real = under_test.write_file

    def full(path: Path, data: bytes, **options: Any) -> None:
        if path.suffix == ".pem":
            raise OSError(28, "no space left")
        real(path, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(under_test, "write_file", full)
        with pytest.raises(OSError, match="no space"):
            init_authority("lab")
    assert authorities() == []
    assert init_authority("lab") == load_authority("lab")


def test_no_such_authority(config: Path) -> None:
    for use in (lambda: issue("ada", "lab"), lambda: revoke("ada", "lab"), lambda: load_authority("lab")):
        with pytest.raises(FileNotFoundError, match="rpcflow identity init lab --ca"):
            use()
    assert not config.exists()


def test_an_identity_that_is_there_is_kept(plain: Authority, tmp_path: Path) -> None:
    made = issue("ada", "lab")
    with pytest.raises(FileExistsError, match="already"):
        issue("ada", "lab")
    assert load_identity("ada") == made
    assert issue("ada", "lab", replace=True).pin != made.pin
    path = tmp_path / "ada.pem"
    filed = issue("ada", "lab", path=path)
    with pytest.raises(FileExistsError, match=r"ada\.pem"):
        issue("ada", "lab", path=path)
    assert load_identity(path) == filed
    assert filed.subject == "ada"
    assert filed.issuer == "lab"


def test_nothing_outlives_who_has_signed_it() -> None:
    made = init_authority("brief", days=10)
    assert issue("ada", "brief", days=365).not_after == made.not_after
    late = init_authority("late", days=-1)
    assert late.expired()
    with pytest.raises(ValueError, match="has expired"):
        issue("bob", "late")
    assert "bob" not in identities()
    assert revoke("17", "late") == 17  # taking back is always possible


@pytest.mark.parametrize("wrong", [{"name": "../up"}, {"hosts": ["a b"]}, {"algorithm": "rsa"}, {"days": 1e12}])
def test_arguments_that_cannot_be(plain: Authority, wrong: dict[str, Any]) -> None:
    before = plain.crl.read_bytes()
    with pytest.raises(ValueError):
        issue(**{"name": "ada", "authority": "lab", **wrong})
    assert identities() == []
    assert plain.crl.read_bytes() == before
