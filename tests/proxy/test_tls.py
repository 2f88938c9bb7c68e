# SPDX-License-Identifier: Apache-2.0
"""TLS by way of proxies and trackers: to them, and through them from end to end."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.errors import AuthenticationError, PermissionDeniedError, RPCError
from rpcflow.protocol.credentials import encode_credentials
from rpcflow.protocol.handshake import Answer, encode_answer, encode_hello
from rpcflow.security.tokens import hash_token, new_token
from tests.client.functions import offer
from tests.eavesdropper import listening
from tests.server.conftest import traces as traces  # what is left behind is looked for
from tests.server.support import Traces, until

HOST = "127.0.0.1"
MARKER = b"nobody on the way reads this, whoever he is" * 3


@pytest.fixture(params=["trio", "asyncio"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class House:
    """Services in another thread; they end with its block, the last one first."""

    def __init__(self, portal: Any, stack: contextlib.ExitStack) -> None:
        self._portal = portal
        self._stack = stack

    def run(self, service: Any) -> Any:
        return self._stack.enter_context(self._portal.wrap_async_context_manager(service))

    def server(self, **options: Any) -> rpcflow.Server:
        made: rpcflow.Server = self.run(
            rpcflow.Server(**{"port": 0, "server_init_callback": offer(), "key": "board", **options})
        )
        return made


@pytest.fixture
def house(backend: str, traces: Traces) -> Iterator[House]:
    with anyio.from_thread.start_blocking_portal(backend) as portal, contextlib.ExitStack() as stack:
        yield House(portal, stack)


def pin(service: Any) -> str:
    text: str = service._protection.pin
    return text


def works(session: sync.RPCSession) -> None:
    assert session.get_function("t.echo")(MARKER) == MARKER


def test_the_proxy_sees_ciphertext_alone(house: House) -> None:
    proxy = house.run(rpcflow.Proxy(port=0))
    server = house.server(host=HOST, port=proxy.port, is_proxy=True, tls=True)
    with listening(proxy.port) as (port, heard):
        url = f"tls://{HOST}:{port}?proxy=plain&pin={pin(server)}"
        with sync.connect(url, key="board", session_timeout=60, wait_timeout=30) as session:
            works(session)
        until(lambda: b"client:board" in heard["client"])  # which is what the proxy has to know
    for said in heard.values():
        assert said
        assert MARKER[:20] not in said


def test_without_tls_it_would_see_everything(house: House) -> None:
    """The check above can fail."""
    proxy = house.run(rpcflow.Proxy(port=0))
    house.server(host=HOST, port=proxy.port, is_proxy=True)
    with listening(proxy.port) as (port, heard), sync.connect(HOST, port, "board", wait_timeout=30) as session:
        works(session)
    assert MARKER in heard["client"]
    assert MARKER in heard["service"]


def test_from_end_to_end_in_tasks(house: House, backend: str) -> None:
    proxy = house.run(rpcflow.Proxy(port=0))
    server = house.server(host=HOST, port=proxy.port, is_proxy=True, tls=True)

    async def main() -> None:
        for _ in range(2):
            async with rpcflow.connect(
                f"tls://{HOST}:{proxy.port}?proxy=plain&pin={pin(server)}", key="board", wait_timeout=30
            ) as session:
                echo = await session.get_function("t.echo")
                assert await echo(MARKER) == MARKER

    anyio.run(main, backend=backend)


def test_a_proxy_that_poses_as_the_server(house: House) -> None:
    """It can carry, or not; it cannot be the server."""
    proxy = house.run(rpcflow.Proxy(port=0))
    house.server(host=HOST, port=proxy.port, is_proxy=True, tls=True)
    with pytest.raises(AuthenticationError, match="not who it should be"):
        sync.connect(f"tls://{HOST}:{proxy.port}?proxy=plain&pin=sha256:{'0' * 64}", key="board", wait_timeout=30)


def test_tls_to_the_proxy_and_on_to_the_server(house: House) -> None:
    proxy = house.run(rpcflow.Proxy(port=0, tls=True))
    server = house.server(host=f"tls://{HOST}:{proxy.port}?pin={pin(proxy)}", is_proxy=True, tls=True)
    with listening(proxy.port) as (port, heard):
        url = f"tls://{HOST}:{port}?proxy={pin(proxy)}&pin={pin(server)}"
        with sync.connect(url, key="board", wait_timeout=30) as session:
            works(session)
    assert b"client:board" not in heard["client"]


def test_a_plain_server_behind_a_proxy_with_tls(house: House) -> None:
    proxy = house.run(rpcflow.Proxy(port=0, tls=True))
    house.server(host=f"tls://{HOST}:{proxy.port}?pin={pin(proxy)}", is_proxy=True)
    for _ in range(2):
        with sync.connect(str(proxy.url), key="board", wait_timeout=30) as session:
            works(session)


def test_websockets_inside_tls(house: House) -> None:
    with socket.create_server((HOST, 0)) as free:
        web = free.getsockname()[1]
    proxy = house.run(rpcflow.Proxy(port=0, web_port=web, tls=True))
    url = f"wss://{HOST}:{web}/ws?pin={pin(proxy)}"
    house.server(host=url, is_proxy=True)
    for where in (url, str(proxy.url)):
        with sync.connect(where, key="board", wait_timeout=30) as session:
            works(session)
            data = bytes(range(256)) * 4096
            assert session.get_function("t.echo")(data) == data


def test_a_lab_with_tls_everywhere(house: House, backend: str) -> None:
    tracker = house.run(rpcflow.Tracker(port=0, tls=True))
    where = str(tracker.url)
    house.server(key="direct", tls=True, tracker_addr=where)
    proxy = house.run(rpcflow.Proxy(port=0, tls=True, tracker_addr=where))
    house.server(host=f"tls://{HOST}:{proxy.port}?pin={pin(proxy)}", key="behind", is_proxy=True, tls=True)
    house.server(host=f"tls://{HOST}:{proxy.port}?pin={pin(proxy)}", key="plain", is_proxy=True)
    with sync.connect_tracker(where) as session:
        for key in ("direct", "behind", "plain"):
            with session.request(key, session_timeout=60, wait_timeout=30) as remote:
                works(remote)
            assert session.request_and_run(key, lambda remote: remote.get_function("t.echo")(5)) == 5

    async def main() -> None:
        async with rpcflow.connect_tracker(where) as session:
            for key in ("direct", "behind", "plain"):
                async with session.request(key, session_timeout=60, wait_timeout=30) as remote:
                    assert await (await remote.get_function("t.echo"))(7) == 7

    anyio.run(main, backend=backend)


POLICY = """
[policy.ada]
keys = ["board"]
offers = ["board"]
[policy.eve]
keys = ["board"]
[client.eve]
policy = "eve"
token = "{other}"
[client.ada]
policy = "ada"
token = "{token}"
"""


@pytest.fixture
def policy(tmp_path: Path) -> tuple[Path, str]:
    """A file, and the token of somebody who may do all that is tried; that of another is in ``other`` beside it."""
    token, other = new_token(), new_token()
    path = tmp_path / "policy.toml"
    path.write_text(POLICY.format(token=hash_token(token), other=hash_token(other)))
    (tmp_path / "other").write_text(other)
    return path, token


def test_a_tracker_with_a_policy(house: House, policy: tuple[Path, str], tmp_path: Path) -> None:
    path, token = policy
    tracker = house.run(rpcflow.Tracker(port=0, tls=True, policy=path))
    where = str(tracker.url)
    for given, kind in (({}, AuthenticationError), ({"token": new_token()}, AuthenticationError)):
        with pytest.raises(kind), sync.connect_tracker(where, **given) as session:
            session.request("board", wait_timeout=30)
        with pytest.raises(kind), sync.connect_tracker(where, **given) as session:
            session.summary()
    with pytest.raises(AuthenticationError):  # at once, not after a minute of trying
        house.server(tracker_addr=where)
    with pytest.raises(PermissionDeniedError, match="offer"):  # who may ask for boards is not sent others' clients
        house.server(tracker_addr=f"{where}&token_file={tmp_path / 'other'}")
    kept = tmp_path / "token"
    kept.write_text(token + "\n")
    house.server(tracker_addr=f"{where}&token_file={kept}", tls=True)
    with sync.connect_tracker(where, token=token) as session:
        with pytest.raises(PermissionDeniedError, match="desk"):
            session.request("desk", wait_timeout=30)
        with session.request("board", wait_timeout=30) as remote:
            works(remote)


def test_a_proxy_with_a_policy(house: House, policy: tuple[Path, str], tmp_path: Path) -> None:
    path, token = policy
    proxy = house.run(rpcflow.Proxy(port=0, policy=path))
    kept = tmp_path / "token"
    kept.write_text(token)
    house.server(host=f"tcp://{HOST}:{proxy.port}?token_file={kept}", is_proxy=True)
    with socket.create_connection((HOST, proxy.port)) as impostor:
        impostor.sendall(encode_credentials((tmp_path / "other").read_text()) + encode_hello("server:board"))
        impostor.settimeout(30)
        assert impostor.recv(4) == encode_answer(Answer.MISMATCH)
    with pytest.raises(AuthenticationError):
        sync.connect(HOST, proxy.port, "board", wait_timeout=30)
    with pytest.raises(PermissionDeniedError, match="desk"):
        sync.connect(HOST, proxy.port, "desk", token=token, wait_timeout=30)
    with sync.connect(HOST, proxy.port, "board", token=token, wait_timeout=30) as session:
        works(session)


def test_a_server_at_a_proxy_with_a_policy(house: House, policy: tuple[Path, str]) -> None:
    path, token = policy
    proxy = house.run(rpcflow.Proxy(port=0))
    server = house.server(host=HOST, port=proxy.port, is_proxy=True, tls=True, policy=path)
    url = f"tls://{HOST}:{proxy.port}?proxy=plain&pin={pin(server)}"
    with pytest.raises(AuthenticationError):
        sync.connect(url, key="board", wait_timeout=30)
    with sync.connect(url, key="board", token=token, wait_timeout=30) as session:
        works(session)


def test_a_web_port_shows_no_certificates() -> None:
    with pytest.raises(ValueError, match="web_port"):
        rpcflow.Proxy(port=0, web_port=8080, require_client=True)


def test_addresses_that_make_no_sense() -> None:
    for url, options in (
        (f"tls://{HOST}:1?pins=sha256:{'0' * 64}", {}),
        (f"tls://{HOST}:1?pin=sha256:{'0' * 63}", {}),
        (f"tls://{HOST}:1?pin=sha256:{'0' * 64}&pin=sha256:{'1' * 64}", {}),
        (f"tls://{HOST}:1", {"pin": "nonsense"}),
        (f"tcp://{HOST}:1", {"pin": f"sha256:{'0' * 64}"}),
        (f"tcp://{HOST}:1", {"ca": "lab"}),
        (f"tcp://{HOST}:1?pin=sha256:{'0' * 64}", {}),
        (f"ws://{HOST}:1/ws?ca=lab", {}),
        (f"tcp://{HOST}:1", {"identity": "ada"}),
        (f"tcp://{HOST}:1", {"token": "with spaces"}),
        (f"tls://{HOST}:1?pin=sha256:{'0' * 64}", {"pin": f"sha256:{'0' * 64}"}),
    ):
        with pytest.raises(ValueError):
            sync.connect(url, **options)
        with pytest.raises(ValueError):
            sync.connect_tracker(url, **options)
    with pytest.raises(FileNotFoundError):
        sync.connect(f"tls://{HOST}:1", ca="/nowhere/lab.crt")
    with pytest.raises((ValueError, RPCError)):
        sync.connect_tracker(f"tls://{HOST}:1?proxy=plain&pin=sha256:{'0' * 64}")
