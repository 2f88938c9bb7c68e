# SPDX-License-Identifier: Apache-2.0
"""Whom we have met: servers by their pins, clients by their certificates."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.security import folder
from rpcflow.security.authority import init_authority
from rpcflow.security.identity import init_identity, renew
from rpcflow.security.known import KnownClients, KnownHosts

from .pairing_support import CLIENT, MALLORY, SERVER, certificate, der, pin

pytestmark = pytest.mark.usefixtures("config")
PINS = [f"sha256:{digit * 64}" for digit in "0a7"]


@pytest.fixture
def hosts(tmp_path: Path) -> KnownHosts:
    return KnownHosts(tmp_path / "known_hosts")


def test_nothing_is_known_at_first(config: Path) -> None:
    hosts = KnownHosts()
    assert hosts.path == config / "known_hosts"
    assert hosts.lookup("board", 9091) is None
    assert hosts.read() == {}
    assert hosts.remove("board", 9091) is False
    assert not config.exists()


def test_known_from_then_on(hosts: KnownHosts) -> None:
    hosts.add("board", 9091, PINS[0])
    hosts.add("board", 9092, PINS[1].upper())
    assert hosts.lookup("board", 9091) == KnownHosts(hosts.path).lookup("board", 9091) == PINS[0]
    assert hosts.lookup("board", 9092) == PINS[1]
    assert hosts.lookup("board", 9093) is None
    hosts.add("board", 9091, PINS[2])
    assert hosts.read() == {"board:9091": PINS[2], "board:9092": PINS[1]}
    assert hosts.remove("board", 9091) is True
    assert hosts.remove("board", 9091) is False
    assert hosts.read() == {"board:9092": PINS[1]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Board.Example", "board.example"),
        ("::1", "[::1]"),
        ("::1", "0:0:0:0:0:0:0:1"),
        ("FE80::A%eth0", "[fe80::a%eth0]"),
    ],
)
def test_one_host_by_two_names(hosts: KnownHosts, one: str, other: str) -> None:
    hosts.add(one, 9091, PINS[0])
    assert hosts.lookup(other, 9091) == PINS[0]
    assert hosts.remove(other, 9091)


def test_what_people_have_written_stays(hosts: KnownHosts) -> None:
    before = f"# the lab's\r\n\n  Board:9091\t{PINS[0].upper()}  \n# \xff\n[0::1]:1 {PINS[1]}"
    hosts.path.write_bytes(before.encode("latin-1"))
    assert hosts.read() == {"board:9091": PINS[0], "[::1]:1": PINS[1]}
    hosts.add("new", 2, PINS[2])
    assert hosts.path.read_bytes() == f"{before}\nnew:2 {PINS[2]}\n".encode("latin-1")
    hosts.remove("board", 9091)
    assert hosts.path.read_bytes() == f"# the lab's\r\n\n# \xff\n[0::1]:1 {PINS[1]}\nnew:2 {PINS[2]}\n".encode(
        "latin-1"
    )


WRONG = [
    "board",
    "board:9091",
    f"board {PINS[0]}",
    f":9091 {PINS[0]}",
    f"board: {PINS[0]}",
    f"board:0 {PINS[0]}",
    f"board:65536 {PINS[0]}",
    f"board:-1 {PINS[0]}",
    f"a:b:1 {PINS[0]}",
    f"[a:b:1 {PINS[0]}",
    f"[zz::1]:1 {PINS[0]}",
    f"user@board:1 {PINS[0]}",
    f"board:9091 {PINS[0][:-1]}",
    f"board:9091 sha1:{'0' * 40}",
    f"board:9091 {PINS[0]} # mine",
    f"board:9091 {PINS[0]}\0",
    f"\xff:9091 {PINS[0]}",
    f"known:1 {PINS[1]}",  # the first line says otherwise
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_line_that_makes_no_sense_is_named(hosts: KnownHosts, wrong: str) -> None:
    data = f"known:1 {PINS[0]}\n# a remark\n{wrong}\nlast:1 {PINS[2]}\n".encode("latin-1")
    hosts.path.write_bytes(data)
    for use in (
        hosts.read,
        lambda: hosts.lookup("known", 1),
        lambda: hosts.add("new", 1, PINS[0]),
        lambda: hosts.remove("known", 1),
    ):
        with pytest.raises(ValueError, match="known_hosts, line 3: "):
            use()
    assert hosts.path.read_bytes() == data


@pytest.mark.parametrize(
    ("host", "port", "pin"),
    [
        ("", 1, PINS[0]),
        ("a b", 1, PINS[0]),
        ("#a", 1, PINS[0]),
        ("a\nb", 1, PINS[0]),
        ("a:b", 1, PINS[0]),
        ("a", 0, PINS[0]),
        ("a", 65536, PINS[0]),
        ("a", 1, "sha256:0"),
        ("a", 1, ""),
    ],
)
def test_what_cannot_be_known(hosts: KnownHosts, host: str, port: int, pin: str) -> None:
    with pytest.raises(ValueError):
        hosts.add(host, port, pin)
    assert not hosts.path.exists()


@given(st.binary(max_size=200) | st.lists(st.sampled_from([*WRONG[:6], f"board:1 {PINS[0]}", "#", ""])).map("\n".join))
def test_any_file_is_understood_or_refused(data: bytes | str) -> None:
    with tempfile.TemporaryDirectory() as where:
        hosts = KnownHosts(Path(where) / "known_hosts")
        hosts.path.write_bytes(data if isinstance(data, bytes) else data.encode("latin-1"))
        try:
            known = hosts.read()
        except ValueError:
            with pytest.raises(ValueError, match=r"known_hosts, line [0-9]+: "):
                hosts.read()
            return
        hosts.add("new.example", 9, PINS[2])
        assert hosts.read() == {**known, "new.example:9": PINS[2]}


names = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,10}[a-zA-Z0-9])?", fullmatch=True)
places = st.tuples(names | st.ip_addresses().map(str), st.integers(1, 65535))


@given(st.lists(st.tuples(places, st.none() | st.sampled_from(PINS)), max_size=12))
def test_it_keeps_what_it_is_told(told: list[tuple[tuple[str, int], str | None]]) -> None:
    with tempfile.TemporaryDirectory() as where:
        expected: dict[tuple[str, int], str] = {}
        for (host, port), pin in told:
            hosts = KnownHosts(Path(where) / "known_hosts")
            if pin is None:
                assert hosts.remove(host, port) is (expected.pop((host.lower(), port), None) is not None)
            else:
                hosts.add(host, port, pin)
                expected[host.lower(), port] = pin
        hosts = KnownHosts(Path(where) / "known_hosts")
        assert len(hosts.read()) == len(expected)
        for (host, port), pin in expected.items():
            assert hosts.lookup(host, port) == pin


@pytest.mark.skipif(folder.fcntl is None, reason="no locks here")
def test_many_writers_lose_nothing(hosts: KnownHosts) -> None:
    code = (
        "import sys; from rpcflow.security.known import KnownHosts; hosts = KnownHosts(sys.argv[1])\n"
        f"for port in range(1, 21): hosts.add(sys.argv[2], port, {PINS[0]!r})"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, hosts.path, f"process{number}"]) for number in range(2)]

    def write(number: int) -> None:
        for port in range(1, 11):
            hosts.add(f"thread{number}", port, PINS[1])

    threads = [threading.Thread(target=write, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [other.wait(60) for other in others] == [0, 0]
    assert len(hosts.read()) == 2 * 20 + 4 * 10


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.usefixtures("open_umask")
def test_others_may_not_write_it(config: Path) -> None:
    KnownHosts().add("board", 1, PINS[0])
    KnownClients().add("ada", der(CLIENT))
    assert stat.S_IMODE(config.stat().st_mode) == 0o700
    for path in config.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0


def test_clients() -> None:
    clients = KnownClients()
    assert clients.names() == clients.all() == clients.certificates() == []
    assert clients.add("ada", der(CLIENT)) == "ada"
    assert clients.add("bob", ssl.DER_cert_to_PEM_cert(der(MALLORY)).encode()) == "bob"
    assert clients.names() == ["ada", "bob"]
    assert [client.pin for client in clients.all()] == [pin(CLIENT), pin(MALLORY)]
    assert [ssl.PEM_cert_to_DER_cert(pem.decode()) for pem in clients.certificates()] == [der(CLIENT), der(MALLORY)]
    assert clients.certificate("ada") == clients.certificates()[0]
    assert "certificate" not in repr(clients.load("ada"))
    assert clients.remove("ada") == ["ada"]
    assert KnownClients().names() == ["bob"]
    with pytest.raises(FileNotFoundError, match="no paired client 'ada'"):
        clients.remove("ada")


def test_two_of_one_name_and_one_twice() -> None:
    clients = KnownClients()
    assert clients.add("ada", der(CLIENT)) == "ada"
    assert clients.add("ada", der(CLIENT)) == "ada"
    assert clients.add("ada", der(MALLORY)) == "ada-2"
    assert clients.add("ada", der(SERVER)) == "ada-3"
    assert clients.names() == ["ada", "ada-2", "ada-3"]
    assert clients.load("ada").pin == pin(CLIENT)


@pytest.mark.parametrize(
    "name", ["", "..", "../../up", "/etc/passwd", "a/b", "x" * 200, "\0", ".hidden", "\x1b[2J", "-"]
)
def test_a_client_cannot_choose_its_place(name: str) -> None:
    clients = KnownClients()
    kept = clients.add(name, der(CLIENT))
    assert clients.names() == [kept]
    assert (clients.folder / f"{kept}.crt").is_file()
    assert kept.isprintable()


@pytest.mark.parametrize("name", ["../known_clients/ada", "./ada", "nobody", "", ".", "ad*", "ada.crt"])
def test_no_other_file_is_read_or_removed(name: str) -> None:
    clients = KnownClients()
    clients.add("ada", der(CLIENT))
    for use in (clients.remove, clients.load, clients.certificate):
        with pytest.raises(FileNotFoundError):
            use(name)
    assert clients.names() == ["ada"]


def test_who_is_taken_out_is_out_by_every_name() -> None:
    clients = KnownClients()
    before = init_identity("phone")
    clients.add("ada", before.certificate)
    clients.add("ada-phone", before.certificate)
    clients.add("ada-phone", renew("phone").certificate)
    clients.add("bob", der(CLIENT))
    assert clients.remove("ada-phone") == ["ada", "ada-phone", "ada-phone-2"]
    assert clients.names() == ["bob"]


def test_a_damaged_file_is_named_and_can_be_removed() -> None:
    clients = KnownClients()
    clients.add("ada", der(CLIENT))
    clients.add("bob", der(MALLORY))
    (clients.folder / "ada.crt").write_bytes(b"-----BEGIN CERTIFICATE-----\nhalf")
    with pytest.raises(ValueError, match=r"ada\.crt"):
        clients.all()
    assert clients.remove("bob") == ["bob"]
    assert clients.remove("ada") == ["ada"]


@given(st.binary(max_size=64))
def test_what_is_no_certificate_is_not_kept(data: bytes) -> None:
    clients = KnownClients()
    with pytest.raises(ValueError, match="no certificate"):
        clients.add("ada", data)
    assert clients.names() == []


@given(st.data())
def test_a_damaged_certificate_is_kept_only_if_it_can_be_read(data: st.DataObject) -> None:
    damaged = bytearray(der(CLIENT))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as where:
        clients = KnownClients(where)
        try:
            name = clients.add("ada", bytes(damaged))
        except ValueError:
            assert clients.names() == []
        else:
            assert ssl.PEM_cert_to_DER_cert(clients.certificate(name).decode()) == bytes(damaged)


def test_who_could_vouch_for_others_is_no_client() -> None:
    clients = KnownClients()
    for made in (certificate("authority", True)[0], init_authority("lab").certificate.read_bytes()):
        with pytest.raises(ValueError, match="authority"):
            clients.add("ada", made)
    assert clients.names() == []
