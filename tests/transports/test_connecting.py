# SPDX-License-Identifier: Apache-2.0
"""How connections are made and listened for, and what goes wrong then."""

import errno
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from rpcflow.errors import ConnectionLostError
from rpcflow.transports import Url, find_transport, tcp, unix
from rpcflow.transports.connecting import resolve, resolve_blocking
from rpcflow.transports.sockets import tune

from .conftest import accept, has_ipv6


class TestListen:
    def test_the_first_free_port_is_taken(self) -> None:
        (first,) = tcp.listen("127.0.0.1", 0, 1)
        with first:
            port = first.getsockname()[1]
            (second,) = tcp.listen("127.0.0.1", port, port + 20)
            with second:
                assert port < second.getsockname()[1] < port + 20

    def test_the_range_is_half_open(self) -> None:
        (first,) = tcp.listen("127.0.0.1", 0, 1)
        with first:
            port = first.getsockname()[1]
            with pytest.raises(OSError, match="is free") as caught:
                tcp.listen("127.0.0.1", port, port + 1)
            assert caught.value.errno == errno.EADDRINUSE
            with pytest.raises(OSError, match="is free"):
                tcp.listen("127.0.0.1", port, port)

    def test_zero_lets_the_system_choose(self) -> None:
        (sock,) = tcp.listen("127.0.0.1", 0, 9199)
        with sock:
            assert sock.getsockname()[1] > 0
            assert not sock.getblocking()

    def test_a_host_that_is_not_ours(self) -> None:
        with pytest.raises(OSError) as caught:
            tcp.listen("192.0.2.1", 9091, 9199)
        assert caught.value.errno == errno.EADDRNOTAVAIL

    def test_all_addresses_of_a_name_on_one_port(self) -> None:
        sockets = tcp.listen("localhost", 0, 1)
        try:
            assert len({sock.getsockname()[1] for sock in sockets}) == 1
        finally:
            for sock in sockets:
                sock.close()

    @pytest.mark.parametrize("reuse", [True, False])
    def test_reuse_addr(self, reuse: bool) -> None:
        (sock,) = tcp.listen("127.0.0.1", 0, 1, reuse_addr=reuse)
        with sock:
            assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)) is reuse

    def test_ipv6(self) -> None:
        if not has_ipv6():
            pytest.skip("this machine has no IPv6")
        (sock,) = tcp.listen("::1", 0, 1)
        with sock:
            assert sock.family == socket.AF_INET6

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [
            *((name, True) for name in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
            *((name, False) for name in ("0.0.0.0", "", "::", "192.0.2.1", "board.lan")),
        ],
    )
    def test_loopback(self, host: str, loopback: bool) -> None:
        assert tcp.is_loopback(host) is loopback


class TestUnix:
    def test_a_stale_socket_file_is_replaced(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        unix.listen(path).close()
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        with unix.listen(path):
            pass

    def test_one_in_use_is_not(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        with unix.listen(path):
            with pytest.raises(OSError) as caught:
                unix.listen(path)
            assert caught.value.errno == errno.EADDRINUSE

    def test_nor_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "s").write_text("precious")
        with pytest.raises(OSError):
            unix.listen(str(tmp_path / "s"))
        assert (tmp_path / "s").read_text() == "precious"

    def test_no_path(self) -> None:
        with pytest.raises(ValueError, match="path"):
            unix.transport.connect_blocking(Url("unix"))


def refused_urls(tmp_path: Path) -> list[str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    return [f"tcp://127.0.0.1:{port}", "tcp://no-such-host.invalid:1", f"unix://{tmp_path}/nobody"]


def test_nobody_there_blocking(tmp_path: Path) -> None:
    for text in refused_urls(tmp_path):
        url = Url.parse(text)
        with pytest.raises(ConnectionLostError):
            find_transport(url.scheme).connect_blocking(url, deadline=time.monotonic() + 20)


@pytest.mark.anyio
async def test_nobody_there(tmp_path: Path) -> None:
    for text in refused_urls(tmp_path):
        url = Url.parse(text)
        with pytest.raises(ConnectionLostError):
            await find_transport(url.scheme).connect(url)


@pytest.mark.anyio
async def test_tcp_wants_a_host() -> None:
    with pytest.raises(ValueError, match="no host"):
        tcp.transport.connect_blocking(Url.parse("tcp:///path"))
    with pytest.raises(ValueError, match="no host"):
        await tcp.transport.connect(Url.parse("tcp:///path"))


@pytest.fixture
def crowded(tmp_path: Path) -> Any:
    """A Unix listener whose queue is full and never served."""
    path = str(tmp_path / "crowded")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        waiting = []
        while True:
            sock = socket.socket(socket.AF_UNIX)
            waiting.append(sock)
            sock.setblocking(False)
            if sock.connect_ex(path):
                break
        yield Url("unix", path=path), listener
        for sock in waiting:
            sock.close()


def test_a_full_queue_is_waited_for(crowded: Any) -> None:
    """The kernel says EAGAIN for a Unix socket, which does not mean that anything is under way."""
    url, listener = crowded
    with pytest.raises(TimeoutError):
        unix.transport.connect_blocking(url, deadline=time.monotonic() + 0.05)
    listener.settimeout(10)
    listener.accept()[0].close()
    unix.transport.connect_blocking(url, deadline=time.monotonic() + 20).close()


@pytest.mark.anyio
async def test_a_full_queue_is_waited_for_in_a_task(crowded: Any) -> None:
    url, listener = crowded
    with anyio.move_on_after(0.05) as scope:
        await unix.transport.connect(url)
    assert scope.cancelled_caught
    listener.settimeout(10)
    listener.accept()[0].close()
    with anyio.fail_after(20):
        (await unix.transport.connect(url)).close()


def test_resolving() -> None:
    assert resolve_blocking("127.0.0.1", 5)[0][3] == ("127.0.0.1", 5)
    with pytest.raises(ConnectionLostError, match="cannot be resolved"):
        resolve_blocking("x" * 300, 5)


@pytest.mark.anyio
async def test_resolving_in_a_task() -> None:
    assert (await resolve("127.0.0.1", 5))[0][3] == ("127.0.0.1", 5)
    assert any(address[3][0] in ("127.0.0.1", "::1") for address in await resolve("localhost", 5))
    with pytest.raises(ConnectionLostError, match="cannot be resolved"):
        await resolve("x" * 300, 5)


def test_settings_of_tcp_lines(listening: Callable[[str], Any]) -> None:
    listener, text = listening("ipv4")
    channel = tcp.transport.connect_blocking(Url.parse(text))
    with accept(listener) as far:
        tune(far, 30.0)
        for sock in (channel.socket, far):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30000
    channel.close()


@pytest.mark.anyio
async def test_a_cancelled_connect_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    class Slow(socket.socket):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

        def connect_ex(self, address: Any) -> int:
            return errno.EINPROGRESS

    async def never(sock: Any) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr("rpcflow.transports.connecting.socket.socket", Slow)
    monkeypatch.setattr(anyio, "wait_writable", never)
    with anyio.move_on_after(0.02) as scope:
        await tcp.transport.connect(Url("tcp", "127.0.0.1", 1))
    assert scope.cancelled_caught
    assert [sock.fileno() for sock in made] == [-1]
