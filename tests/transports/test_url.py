# SPDX-License-Identifier: Apache-2.0
"""Addresses as users write them."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.transports import Url
from rpcflow.transports.url import tracker_url

HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.lists(st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8), min_size=1, max_size=3).map(
        ".".join
    ),
)
PORTS = st.integers(1, 65535)
PATHS = st.text(string.ascii_letters + string.digits + "/._-", max_size=30).map(lambda text: "/" + text.lstrip("/"))


@pytest.mark.parametrize(
    ("text", "port", "expected"),
    [
        ("127.0.0.1", None, Url("tcp", "127.0.0.1", 9091)),
        ("127.0.0.1", 9, Url("tcp", "127.0.0.1", 9)),
        ("board.lan", 9, Url("tcp", "board.lan", 9)),
        ("::1", 9, Url("tcp", "::1", 9)),
        ("[::1]", 9, Url("tcp", "::1", 9)),
        ("tcp://127.0.0.1:9", None, Url("tcp", "127.0.0.1", 9)),
        ("tcp://127.0.0.1", None, Url("tcp", "127.0.0.1", 9091)),
        ("tcp://127.0.0.1", 9, Url("tcp", "127.0.0.1", 9)),
        ("tcp://127.0.0.1:8", 9, Url("tcp", "127.0.0.1", 8)),
        ("tcp://[::1]:9", None, Url("tcp", "::1", 9)),
        ("tcp://[fe80::1%25eth0]:9", None, Url("tcp", "fe80::1%25eth0", 9)),
        ("tls://h:9", None, Url("tls", "h", 9)),
        ("unix:///tmp/a b", None, Url("unix", path="/tmp/a b")),
        ("unix:/tmp/s", None, Url("unix", path="/tmp/s")),
        ("unix:s", None, Url("unix", path="s")),
        ("popen:///bin/true", None, Url("popen", path="/bin/true")),
        ("popen:./x?arg=1", None, Url("popen", path="./x", query=(("arg", "1"),))),
        ("popen:x", None, Url("popen", path="x")),
        ("popen:///a#b", None, Url("popen", path="/a#b")),
        ("popen:x?arg=&arg=1", None, Url("popen", path="x", query=(("arg", ""), ("arg", "1")))),
        ("serial:/dev/ttyUSB0", None, Url("serial", path="/dev/ttyUSB0")),
        ("serial:ttyUSB0", None, Url("serial", path="ttyUSB0")),
        (
            "serial:///dev/ttyUSB0?baud=115200",
            None,
            Url("serial", path="/dev/ttyUSB0", query=(("baud", "115200"),)),
        ),
        ("ws://h/ws", None, Url("ws", "h", 80, "/ws")),
        ("wss://h/ws", None, Url("wss", "h", 443, "/ws")),
        ("ws://h:9/ws", None, Url("ws", "h", 9, "/ws")),
    ],
)
def test_parse(text: str, port: int | None, expected: Url) -> None:
    assert Url.parse(text, port) == expected


def test_default_port_of_a_tracker() -> None:
    assert Url.parse("h", None, default_port=9190).port == 9190
    assert Url.parse("tcp://h", default_port=9190).port == 9190
    assert Url.parse("ws://h", default_port=9190).port == 80


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("", None),
        ("tcp://", None),
        ("tcp://:9091", None),
        ("tcp://h:0", None),
        ("tcp://h:65536", None),
        ("tcp://h:x", None),
        ("tcp://h:-1", None),
        ("tcp://[::1", None),
        ("h", 0),
        ("h", -1),
        ("h", 65536),
        ("unix://", None),
        ("unix:", None),
        ("unix://relative/path", None),
        ("://h", None),
        ("tcp:///path", None),
        ("ws:///ws", None),
    ],
)
def test_refused(text: str, port: int | None) -> None:
    with pytest.raises(ValueError):
        Url.parse(text, port)


@pytest.mark.parametrize("port", ["9091", 9091.0, True])
def test_a_port_is_an_int(port: object) -> None:
    with pytest.raises(TypeError):
        Url.parse("h", port)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [None, 9, b"h"])
def test_a_url_is_text(text: object) -> None:
    with pytest.raises(ValueError):
        Url.parse(text)  # type: ignore[arg-type]


@given(HOSTS, PORTS, st.sampled_from(["tcp", "tls"]))
def test_printed_and_read_again_with_a_host(host: str, port: int, scheme: str) -> None:
    url = Url(scheme, host, port)
    assert Url.parse(str(url)) == url


@given(HOSTS, PORTS)
def test_a_bare_host_and_a_port(host: str, port: int) -> None:
    assert Url.parse(host, port) == Url.parse(str(Url("tcp", host, port))) == Url("tcp", host, port)


@given(
    PATHS, st.lists(st.tuples(st.text(string.ascii_letters, min_size=1), st.text(min_size=1, max_size=5)), max_size=3)
)
def test_printed_and_read_again_with_a_path(path: str, query: list[tuple[str, str]]) -> None:
    url = Url("serial", path=path, query=tuple(query))
    assert Url.parse(str(url)) == url


@given(PATHS)
def test_unix_paths_relative_and_absolute(path: str) -> None:
    for name in (path, path.lstrip("/") or "x"):
        url = Url("unix", path=name)
        assert Url.parse(str(url)) == url


@given(st.text(max_size=40) | st.text("tcpux:/[]@?#%.0123456789", max_size=40), st.none() | st.integers())
def test_anything_is_read_or_refused(text: str, port: int | None) -> None:
    try:
        url = Url.parse(text, port)
    except ValueError:
        return
    assert url.scheme
    assert url.host or url.path
    str(url)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("127.0.0.1", 9190), Url("tcp", "127.0.0.1", 9190)),
        (["box", 1], Url("tcp", "box", 1)),
        (("box", None), Url("tcp", "box", 9190)),
        (("::1", 7), Url("tcp", "::1", 7)),
        ("127.0.0.1:77", Url("tcp", "127.0.0.1", 77)),
        ("[::1]:77", Url("tcp", "::1", 77)),
        ("::1", Url("tcp", "::1", 9190)),
        ("box", Url("tcp", "box", 9190)),
        ("tcp://box", Url("tcp", "box", 9190)),
        ("tcp://box:3", Url("tcp", "box", 3)),
        ("unix:/run/t", Url("unix", path="/run/t")),
        (Url("tcp", "box", 5), Url("tcp", "box", 5)),
    ],
)
def test_addresses_of_trackers(address: object, expected: Url) -> None:
    assert tracker_url(address) == expected


@pytest.mark.parametrize(
    "address",
    [None, 9190, "", (), ("box",), ("box", "x"), ("box", 0), ("box", True), ("", 5), "box:65536", {}],
)
def test_no_addresses(address: object) -> None:
    with pytest.raises(ValueError, match="not an address"):
        tracker_url(address)
