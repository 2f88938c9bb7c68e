# SPDX-License-Identifier: Apache-2.0
"""A proxy with a tracker: a scripted one for what is said to it, ours for the whole way round."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

import rpcflow
from rpcflow.protocol.handshake import MAGIC, encode_hello
from rpcflow.protocol.tracker import MAGIC_BYTES, FrameReader, encode_frame
from rpcflow.proxy import pairing
from tests.server.support import HOST, PATIENCE, Raw, until

from .conftest import Host
from .test_service import waiting

MISMATCH = MAGIC + 2


class ScriptedTracker:
    """Writes down what it is told, and hands out what a test says it does."""

    def __init__(self) -> None:
        self.listener = socket.create_server((HOST, 0))
        self.port: int = self.listener.getsockname()[1]
        self.said: list[list[Any]] = []
        self.pending: list[str] = []
        self.links: list[socket.socket] = []
        self.answer: Callable[[list[Any]], Any] = self.usual
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def usual(self, message: list[Any]) -> Any:
        if message[0] == 3:
            self.pending.append(message[2][1])
        return list(self.pending) if message[0] == 7 else 0

    def serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.links.append(sock)
            self.pending.clear()
            reader = FrameReader()
            try:
                while data := sock.recv(4096):
                    messages = reader.feed(data)
                    if not self.said or self.said[-1] != ["magic"]:
                        pass
                    if reader.total == 4:
                        self.said.append(["magic"])
                        sock.sendall(MAGIC_BYTES)
                    for message in messages:
                        self.said.append(message)
                        answer = self.answer(message)
                        if answer is None:
                            raise ConnectionError
                        sock.sendall(encode_frame(answer) if not isinstance(answer, bytes) else answer)
            except OSError:
                pass  # the test closed it, or said so
            finally:
                sock.close()

    def puts(self) -> list[list[Any]]:
        return [message for message in self.said if message[0] == 3]

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in self.links:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already
        self.thread.join()


@pytest.fixture
def tracker() -> Iterator[ScriptedTracker]:
    made = ScriptedTracker()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpcflow.proxy.registration.POLL_SECONDS", 0.05)
    monkeypatch.setattr(pairing, "UNUSED_SECONDS", 0.3)


def test_what_the_tracker_is_told(host: Host, tracker: ScriptedTracker) -> None:
    with host(tracker_addr=(HOST, tracker.port)) as proxy:
        assert tracker.said[:2] == [["magic"], [5, {"key": "server:proxy[]", "addr": [None, proxy.port]}]]
        with Raw(proxy, encode_hello("server:a:b")) as server:
            ((_, key, (port, match_key), custom),) = until(tracker.puts, "a resource")
            assert (key, port, custom) == ("a:b", proxy.port, None)
            assert match_key.rpartition(":")[0] == "a:b"
            assert len(match_key.rpartition(":")[2]) >= 20
            named = [m[1]["key"] for m in tracker.said if m[0] == 5]
            assert named == ["server:proxy[]", "server:proxy[a:b]"]
            until(lambda: [7] in tracker.said, "a poll")
            with Raw(proxy, encode_hello("client:a:b")) as wrong:
                assert wrong.answer() == MISMATCH
                assert wrong.ended()
            with Raw(proxy, encode_hello(f"client:{match_key} -timeout=30")) as client:
                assert client.take(18) == encode_hello("server:a:b")
                text = f"client:{match_key} -timeout=30"
                assert server.take(8 + len(text)) == encode_hello(text)
                client.send(b"x")
                assert server.take(1) == b"x"
            with Raw(proxy, encode_hello(f"client:{match_key}")) as again:
                assert again.answer() == MISMATCH


def test_servers_of_one_key(host: Host, tracker: ScriptedTracker) -> None:
    with host(tracker_addr=(HOST, tracker.port)) as proxy:
        servers = [Raw(proxy, encode_hello("server:k")) for _ in range(5)]
        until(lambda: len(tracker.puts()) == 5, "five resources")
        keys = {message[2][1] for message in tracker.puts()}
        assert len(keys) == 5
        clients = [Raw(proxy, encode_hello(f"client:{key}")) for key in keys]
        for raw in (*servers, *clients):
            assert raw.answer() == MAGIC
            raw.socket.close()


def test_a_server_waits_longer_than_any_timeout(host: Host, tracker: ScriptedTracker) -> None:
    with host(tracker_addr=(HOST, tracker.port), timeout_server=0.05, timeout_client=0.05) as proxy:
        with Raw(proxy, encode_hello("server:k")):
            until(lambda: tracker.said.count([7]) > 5, "a while")
            waiting(proxy, 1)


def test_a_key_taken_and_not_used_is_replaced(host: Host, tracker: ScriptedTracker) -> None:
    """Stock's proxy makes the new key wrongly, and the server is lost."""
    with host(tracker_addr=(HOST, tracker.port)) as proxy, Raw(proxy, encode_hello("server:k")) as server:
        ((_, _, (_, first), _),) = until(tracker.puts, "a resource")
        until(lambda: tracker.pending, "offering it")
        tracker.pending.clear()
        until(lambda: len(tracker.puts()) == 2, "a new resource")
        _, key, (_, second), _ = tracker.puts()[1]
        assert key == "k"
        assert second != first
        assert second.rpartition(":")[0] == "k"
        with Raw(proxy, encode_hello(f"client:{first}")) as late:
            assert late.answer() == MISMATCH
        with Raw(proxy, encode_hello(f"client:{second}")) as client:
            assert client.answer() == server.answer() == MAGIC


def test_a_server_that_goes_is_forgotten(host: Host, tracker: ScriptedTracker) -> None:
    with host(tracker_addr=(HOST, tracker.port)) as proxy:
        with Raw(proxy, encode_hello("server:k")):
            ((_, _, (_, match_key), _),) = until(tracker.puts, "a resource")
        waiting(proxy, 0)
        with Raw(proxy, encode_hello(f"client:{match_key}")) as client:
            assert client.answer() == MISMATCH


@pytest.mark.parametrize("answer", [None, -1, True, "0", {"x": 1}, b"\xff\xff\xff\xff", b"\x01\0\0\0{"])
def test_a_tracker_that_answers_nonsense(host: Host, tracker: ScriptedTracker, answer: Any) -> None:
    """The line is closed and tried again, until the tracker has come to its senses."""
    with host(tracker_addr=(HOST, tracker.port)) as proxy, Raw(proxy, encode_hello("server:k")):
        until(tracker.puts, "a resource")
        tracker.answer = lambda message: answer
        until(lambda: tracker.said.count(["magic"]) >= 3, "new lines to the tracker")
        tracker.answer = tracker.usual
        many = len(tracker.puts())
        until(lambda: len(tracker.puts()) > many, "the resource again")
        key = tracker.puts()[-1][2][1]
        with Raw(proxy, encode_hello(f"client:{key}")) as client:
            assert client.answer() == MAGIC


def test_a_tracker_that_restarts(host: Host, tracker: ScriptedTracker) -> None:
    with host(tracker_addr=f"tcp://{HOST}:{tracker.port}") as proxy, Raw(proxy, encode_hello("server:k")):
        until(tracker.puts, "a resource")
        tracker.links[0].shutdown(socket.SHUT_RDWR)
        until(lambda: len(tracker.puts()) == 2, "the resource again")
        last = tracker.said.index(["magic"], 1)
        assert tracker.said[last + 1][0] == 5  # the name before what is offered under it


def test_no_tracker_there(backend: str, nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpcflow.proxy.service._START_SECONDS", 0.3)
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]

    async def main() -> None:
        async with rpcflow.Proxy(port=0, tracker_addr=(HOST, port)):
            pass

    with pytest.raises(rpcflow.ConnectionLostError, match="tracker"):
        anyio.run(main, backend=backend)


@pytest.mark.parametrize("count", [1, 2])
def test_all_of_it(backend: str, count: int) -> None:
    """Clients ask our tracker, servers wait at our proxy."""

    async def main() -> None:
        async with (
            rpcflow.Tracker(port=0) as tracker,
            rpcflow.Proxy(port=0, tracker_addr=(HOST, tracker.port)) as proxy,
            rpcflow.Server(HOST, proxy.port, is_proxy=True, key="k", max_sessions=count),
            rpcflow.connect_tracker(HOST, tracker.port) as asking,
        ):
            with anyio.fail_after(PATIENCE):
                for _ in range(3):
                    async with asking.request("k", session_timeout=60) as session:
                        assert await (await session.get_function("testing.echo"))(7) == 7

    anyio.run(main, backend=backend)


def test_servers_that_have_left_are_not_offered_for_long(backend: str, nothing_left: None) -> None:
    """There is no message that takes an offer back: more of them than a request has tries would keep it from the one
    that is there."""

    async def main() -> None:
        async with (
            rpcflow.Tracker(port=0) as tracker,
            rpcflow.Proxy(port=0, tracker_addr=(HOST, tracker.port)) as proxy,
        ):
            for _ in range(8):
                with socket.create_connection((HOST, proxy.port)) as gone:
                    gone.sendall(encode_hello("server:k"))
                    await anyio.sleep(0.05)
            async with rpcflow.connect_tracker(HOST, tracker.port) as line:
                with anyio.fail_after(PATIENCE):
                    while (await line.summary())["queue_info"].get("k", {"free": 0})["free"]:
                        await anyio.sleep(0.05)
                async with (
                    rpcflow.Server(HOST, proxy.port, is_proxy=True, key="k"),
                    line.request("k", wait_timeout=PATIENCE, max_retry=1),
                ):
                    pass

    anyio.run(main, backend=backend)
