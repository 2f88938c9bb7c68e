# SPDX-License-Identifier: Apache-2.0
"""``rpcflow identity``."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rpcflow.cli import cli
from rpcflow.security import folder
from rpcflow.security.authority import load_authority
from rpcflow.security.identity import init_identity, load_identity
from rpcflow.security.known import KnownClients, KnownHosts
from rpcflow.security.tokens import token_matches
from tests.security.pairing_support import CLIENT, MALLORY, der, pin

PIN = "sha256:" + "0a" * 32


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config"
    monkeypatch.setenv("RPCFLOW_HOME", str(path))
    monkeypatch.chdir(tmp_path)
    return path


def ask(*words: str) -> Result:
    """Runs it, and sees to it that no key is shown, whatever comes of it."""
    result = CliRunner().invoke(cli, ["identity", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "PRIVATE" not in result.output
    for path in Path.cwd().rglob("*.pem"):
        key = path.read_text().partition("-----END PRIVATE KEY-----")[0]
        assert not any(line in result.output for line in key.splitlines()[1:] if line)
    return result


def done(*words: str) -> str:
    result = ask(*words)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def refused(*words: str, status: int = 2) -> str:
    """What it says: one sentence, and nothing on standard output."""
    before = files()
    result = ask(*words)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert files() == before
    return result.stderr.splitlines()[-1]


def files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.mark.parametrize("algorithm", ["p256", "ed25519"])
def test_init(config: Path, algorithm: str) -> None:
    said = done("init", "--algorithm", algorithm, "--days", "20", "--host", "board.example", "--host", "::1")
    made = load_identity()
    assert made.pin in said
    assert str(config / "identities" / "default.pem") in said
    assert f"valid until {made.not_after:%Y-%m-%d}" in said
    assert made.hosts == ("board.example", "::1")


def test_init_again_only_by_force() -> None:
    done("init", "board")
    before = load_identity("board")
    assert "there is an identity 'board' already" in refused("init", "board")
    done("init", "board", "--force")
    assert load_identity("board").pin != before.pin


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["init", "../up"], "cannot be a name"),
        (["init", "board", "--host", "a b"], "not the name or address of a host"),
        (["init", "board", "--host", "board:9091"], "without a port"),
        (["init", "board", "--days", "0"], "--days"),
        (["init", "board", "--days", "nan"], "days"),
        (["init", "board", "--algorithm", "rsa"], "--algorithm"),
        (["init", "lab", "--ca", "--host", "board"], "not reached anywhere"),
        (["issue", "ada"], "--ca"),
        (["issue", "ada", "--ca", "lab"], "rpcflow identity init lab --ca"),
        (["revoke", "ada", "--ca", "lab"], "rpcflow identity init lab --ca"),
        (["revoke", "ada"], "no paired client 'ada'"),
        (["renew", "ada"], "rpcflow identity init ada makes one"),
        (["show", "ada"], "rpcflow identity init ada makes one"),
        (["show", "nothing.pem"], "nothing.pem"),
        (["forget", "board:9091"], "no server is known at board:9091"),
        (["forget", "board:x"], "board:x"),
        (["forget", "unix:///tmp/socket"], "not a host"),
    ],
)
def test_what_cannot_be(config: Path, words: list[str], said: str) -> None:
    assert said in refused(*words)
    assert not config.exists()


def test_by_itself_it_says_so_in_one_line() -> None:
    init_identity("board")
    ran = subprocess.run(
        [sys.executable, "-m", "rpcflow", "identity", "init", "board"], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert re.fullmatch(r"rpcflow: there is an identity 'board' already: .*\n", ran.stderr)


def test_an_authority(config: Path, tmp_path: Path) -> None:
    said = done("init", "lab", "--ca")
    made = load_authority("lab")
    assert str(config / "authorities" / "lab.crt") in said
    assert f"valid until {made.not_after:%Y-%m-%d}" in said
    assert "already" in refused("init", "lab", "--ca")
    tmp_path.chmod(0o755)
    said = done("issue", "board", "--ca", "lab", "--server", "--host", "board.example", "-o", "board.pem")
    filed = load_identity(tmp_path / "board.pem")
    assert filed.pin in said
    assert f"serial {filed.serial}" in said
    if sys.platform != "win32":
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755  # a folder elsewhere is nobody's business
        assert stat.S_IMODE((tmp_path / "board.pem").stat().st_mode) == 0o600
    assert "already" in refused("issue", "board", "--ca", "lab", "-o", "board.pem")
    done("issue", "ada", "--ca", "lab", "--client", "--days", "3")
    ada = load_identity("ada")
    assert ada.issuer == "lab"
    assert "issued by 'lab'" in refused("renew", "ada")
    assert "there is no identity 'board' here" in refused("revoke", "board", "--ca", "lab")
    assert str(filed.serial) in done("revoke", str(filed.serial), "--ca", "lab")
    said = done("revoke", "ada", "--ca", "lab")
    assert str(made.crl) in said
    assert load_authority("lab").revoked == (filed.serial, ada.serial)


def test_issue_is_for_somebody() -> None:
    done("init", "lab", "--ca")
    assert "good for both" in refused("issue", "a", "--ca", "lab", "--server", "--client", "--host", "a")
    assert "--host" in refused("issue", "a", "--ca", "lab", "--server")
    assert "not by this authority" in (done("init", "b"), refused("revoke", "b", "--ca", "lab"))[1]


def test_renew() -> None:
    before = init_identity(days=-1)
    assert before.pin in done("renew", "--days", "7")
    after = load_identity()
    assert after.pin == before.pin
    assert after.serial != before.serial
    assert not after.expired()


def test_show_nothing(config: Path) -> None:
    assert done("show") == f"in {config}\n"
    assert not config.exists()


def test_show(config: Path) -> None:
    own, late = init_identity("own", hosts=["board.example"]), init_identity("late", days=-1)
    done("init", "lab", "--ca")
    done("issue", "ada", "--ca", "lab")
    KnownHosts().add("::1", 9091, PIN)
    KnownClients().add("phone", der(CLIENT))
    lines = done("show").splitlines()
    assert lines[0] == f"in {config}"
    assert f"identity own  {own.pin}  valid until {own.not_after:%Y-%m-%d}  signed by itself" in lines
    assert f"  subject own  hosts board.example  serial {own.serial}" in lines
    assert f"identity late  {late.pin}  expired {late.not_after:%Y-%m-%d}  signed by itself" in lines
    assert any(line.startswith("identity ada") and line.endswith("signed by lab") for line in lines)
    assert any(line.startswith(f"authority lab  {load_authority('lab').pin}  valid until") for line in lines)
    assert f"server [::1]:9091  {PIN}" in lines
    assert f"client phone  {pin(CLIENT)}" in lines
    assert done("show", "own").splitlines() == [line for line in lines if " own" in line]
    assert done("show", str(own.path)) == done("show", "own")
    assert done("show", "lab").startswith("authority lab  ")


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
def test_show_goes_on_where_something_cannot_be_read() -> None:
    wide, half, fine = (init_identity(name) for name in ("a", "b", "c"))
    wide.path.chmod(0o644)
    half.path.write_bytes(half.path.read_bytes()[:100])
    (KnownClients().folder).mkdir()
    (KnownClients().folder / "d.crt").write_bytes(b"half")
    result = ask("show")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert any(line.startswith("identity a  ") and "chmod 600" in line for line in lines)
    assert any(line.startswith("identity b  ") and "b.pem" in line for line in lines)
    assert any(line.startswith(f"identity c  {fine.pin}") for line in lines)
    assert any(line.startswith("client d  ") and "d.crt" in line for line in lines)
    assert "chmod 600" in refused("show", "a", status=1)
    assert "b.pem" in refused("show", "b")


def test_a_paired_client_is_taken_out() -> None:
    clients = KnownClients()
    for name, whose in (("ada", CLIENT), ("ada-phone", CLIENT), ("bob", MALLORY)):
        clients.add(name, der(whose))
    assert done("revoke", "ada") == "client ada is not known any more\nclient ada-phone is not known any more\n"
    assert clients.names() == ["bob"]


@pytest.mark.parametrize("place", ["board:9092", "tls://Board:9092"])
def test_forget(place: str) -> None:
    KnownHosts().add("board", 9092, PIN)
    KnownHosts().add("board", 9091, PIN)
    assert "forgotten" in done("forget", place)
    assert KnownHosts().read() == {"board:9091": PIN}
    done("forget", "board")
    assert KnownHosts().read() == {}


def test_a_list_that_makes_no_sense_is_named(config: Path) -> None:
    KnownHosts().add("board", 9091, PIN)
    with (config / "known_hosts").open("a") as file:
        file.write("nonsense\n")
    assert "known_hosts, line 3" in refused("forget", "board:9091")


def test_token(config: Path) -> None:
    token, line = done("token").splitlines()
    match = re.fullmatch(r'token = "(sha256:[0-9a-f]{64})"', line)
    assert match is not None
    assert token_matches(token, match[1])
    assert not config.exists()
    assert done("token").splitlines()[0] != token


def test_a_full_disk_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(folder.os, "fsync", full)
    assert "no space left" in refused("init", status=1)


@pytest.mark.parametrize("words", [["init"], ["show"], ["renew"], ["issue", "a", "--ca", "lab"], ["token"]])
def test_without_the_library(config: Path, words: list[str]) -> None:
    code = "import sys; sys.modules['cryptography'] = None; import rpcflow.cli; rpcflow.cli.main()"
    ran = subprocess.run([sys.executable, "-c", code, "identity", *words], capture_output=True, text=True, timeout=60)
    assert not config.exists()
    if words == ["token"]:  # which needs none
        assert ran.returncode == 0, ran.stderr
        return
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert re.fullmatch(r"rpcflow: .*pip install 'rpcflow\[security\]'\n", ran.stderr)
