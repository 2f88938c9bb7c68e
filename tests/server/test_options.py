# SPDX-License-Identifier: Apache-2.0
"""Options of a server: what is refused, and where it listens."""

from __future__ import annotations

import errno
import socket
import stat
from pathlib import Path
from typing import Any

import anyio
import pytest

import rpcflow
from rpcflow import sync

from .conftest import Host, Run
from .functions import offer
from .support import HOST, Traces, call, call_async, works

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"key": "two words"}, "key"),
    ({"key": "line\n"}, "key"),
    ({"key": "x" * 3000}, "key"),
    ({"max_sessions": 0}, "max_sessions"),
    ({"max_sessions": -1}, "max_sessions"),
    ({"max_sessions": 1.5}, "max_sessions"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": -1.0}, "timeout"),
    ({"timeout": float("nan")}, "timeout"),
    ({"peer_timeout": 0}, "peer_timeout"),
    ({"peer_timeout": 1e9}, "peer_timeout"),
    ({"port": -1}, "port"),
    ({"port": 65536}, "port"),
    ({"port": "9091"}, "port"),
    ({"port_end": 65537}, "port_end"),
    ({"port": 9300}, "port_end"),
    ({"port": 9091, "port_end": 9091}, "port_end"),
    ({"load_library": "no_such_library.so"}, "no_such_library.so"),
    ({"imports": "module"}, "imports"),
    ({"allow_path": "/data"}, "allow_path"),
    ({"host": "unix:"}, "path"),
    ({"host": "0.0.0.0"}, "--insecure"),
    ({"host": ""}, "--insecure"),
    ({"host": "::"}, "--insecure"),
    ({"host": "192.0.2.1"}, "--insecure"),
]


@pytest.mark.parametrize(("options", "word"), WRONG, ids=[str(options) for options, _ in WRONG])
def test_wrong_options(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        rpcflow.Server(**options)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"max_sessions": 0}, "max_sessions"), ({"port": 70000}, "port"), ({"load_library": "no.so"}, "no.so")],
)
def test_wrong_options_of_the_process(traces: Traces, options: dict[str, Any], word: str) -> None:
    """The same words from the blocking API, whose server finds out in a process of its own."""
    with pytest.raises(ValueError, match=word):
        sync.Server(HOST, **options)
    assert traces.none()


def test_loopback_by_any_name_is_fine() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        rpcflow.Server(host)
    rpcflow.Server("0.0.0.0", insecure=True)


def taken(port: int = 0) -> socket.socket:
    return socket.create_server((HOST, port))


def free_run(count: int) -> int:
    """The first of so many ports in a row that are free."""
    for first in range(40000, 60000, count):
        sockets = []
        try:
            for port in range(first, first + count):
                sockets.append(taken(port))
        except OSError:
            continue
        else:
            return first
        finally:
            for sock in sockets:
                sock.close()
    raise AssertionError("no ports are free")


def test_port_search(run: Run) -> None:
    async def main() -> None:
        first = free_run(3)
        with taken(first), taken(first + 1):
            async with rpcflow.Server(port=first, port_end=first + 3) as server:
                assert server.port == first + 2
                with pytest.raises(OSError, match=f"{first} to {first + 2}") as caught:
                    async with rpcflow.Server(port=first, port_end=first + 3):
                        pass
                assert caught.value.errno == errno.EADDRINUSE
        async with rpcflow.Server(port=first, port_end=first + 1) as server:
            assert server.port == first
        async with rpcflow.Server(port=first, port_end=first + 1) as server:  # at once again: reuse_addr
            assert server.port == first

    run(main)


def test_port_search_of_the_process(traces: Traces) -> None:
    first = free_run(2)
    with taken(first):
        with sync.Server(HOST, first, first + 2, silent=True) as server:
            assert server.port == first + 1
            with pytest.raises(OSError, match="is free"):
                sync.Server(HOST, first, first + 2, silent=True)


def test_address_of_another_machine(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(OSError):
            async with rpcflow.Server("192.0.2.1", port=0, insecure=True):
                pass

    run(main)


def test_ipv6(host: Host, run: Run) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")

    async def main(port: int) -> None:
        async with rpcflow.connect(f"tcp://[::1]:{port}") as session:
            assert await call_async(session, "t.echo", 1) == 1

    with host(host="::1") as server:
        assert str(server.url) == f"tcp://[::1]:{server.port}"
        with sync.connect("::1", server.port) as session:
            assert call(session, "t.echo", 1) == 1
        run(main, server.port)


def test_localhost(host: Host) -> None:
    with host(host="localhost") as server:
        works(server)
        with sync.connect("localhost", server.port) as session:
            assert call(session, "t.echo", 1) == 1


@pytest.mark.parametrize("form", ["unix:{}", "unix://{}"])
def test_unix(host: Host, run: Run, tmp_path: Path, form: str) -> None:
    path = tmp_path / "socket"

    async def main() -> None:
        async with rpcflow.connect(f"unix://{path}") as session:
            assert await call_async(session, "t.echo", 1) == 1

    with host(host=form.format(path)) as server:
        assert str(server.url) == f"unix://{path}"
        assert stat.S_ISSOCK(path.stat().st_mode)
        with sync.connect(f"unix://{path}") as session:
            assert call(session, "t.echo", 1) == 1
            with pytest.raises(rpcflow.SessionCrashedError):
                call(session, "t.exit", 3)
        run(main)
        with pytest.raises(OSError) as caught, host(host=form.format(path)):
            pass
        assert caught.value.errno == errno.EADDRINUSE
        with sync.connect(f"unix://{path}") as session:  # and the first one is unharmed
            assert call(session, "t.echo", 1) == 1
    assert not path.exists()


def test_unix_in_the_current_folder(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with host(host="unix:here") as server:
        monkeypatch.chdir("/")
        with sync.connect(str(server.url)) as session:
            assert call(session, "t.echo", 1) == 1
    assert not (tmp_path / "here").exists()


def test_unix_client_is_killed(host: Host, tmp_path: Path) -> None:
    """A busy worker is stopped when its client goes there too."""
    from .support import line, script, until

    path, mark = tmp_path / "socket", tmp_path / "mark"
    source = """
import sys
from rpcflow import sync
session = sync.connect(sys.argv[1])
print("ready", flush=True)
session.get_function("t.spin")(sys.argv[2])
"""
    with host(host=f"unix:{path}"):
        with script(source, f"unix://{path}", mark) as process:
            assert line(process) == "ready"
            until(mark.exists)
            process.kill()
            with sync.connect(f"unix://{path}", wait_timeout=5) as session:
                assert call(session, "t.echo", 1) == 1


def test_stale_unix_socket_is_replaced(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert path.exists()
    with host(host=f"unix:{path}"), sync.connect(f"unix://{path}") as session:
        assert call(session, "t.echo", 1) == 1
    assert not path.exists()


def test_other_files_are_not_replaced(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")

    async def main() -> None:
        with pytest.raises(OSError):
            async with rpcflow.Server(f"unix:{path}"):
                pass
        with pytest.raises(OSError):
            async with rpcflow.Server(f"unix:{tmp_path}/{'x' * 200}"):
                pass

    run(main)
    assert path.read_text() == "data"


def test_insecure_listens_everywhere(host: Host) -> None:
    with host(host="0.0.0.0", insecure=True) as server:
        works(server)


def test_key_and_port_are_said(run: Run) -> None:
    async def main() -> None:
        server = rpcflow.Server(port=0, key="x1", server_init_callback=offer())
        assert "not started" in repr(server)
        async with server:
            assert server.port
            assert str(server.port) in repr(server)
            assert server.host == "127.0.0.1"
            async with rpcflow.connect(str(server.url), key="x1") as session:
                assert await call_async(session, "t.echo", 1) == 1
                await anyio.lowlevel.checkpoint()
                assert "1 connections" in repr(server)

    run(main)


@pytest.mark.parametrize("options", [{}, {"require_client": True}], ids=["for all", "for those who are known"])
def test_encrypted_listens_everywhere(host: Host, caplog: pytest.LogCaptureFixture, options: dict[str, Any]) -> None:
    with host(host="0.0.0.0", tls=True, **options) as server:
        assert str(server.url).startswith(f"tls://0.0.0.0:{server.port}?pin=sha256:")
        if not options:
            url = str(server.url).replace("0.0.0.0", HOST)
            with sync.connect(url, wait_timeout=30) as session:
                assert call(session, "t.echo", 17) == 17
    warned = [record for record in caplog.records if "whoever reaches" in record.getMessage()]
    assert bool(warned) is not bool(options)
