# SPDX-License-Identifier: Apache-2.0
"""A server that waits at a proxy, which is played by the test: what it says there, and what it does when refused."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.abc
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.protocol.handshake import MAGIC, Answer
from rpcflow.server import supervisor
from tests.transcripts import load

from .conftest import Run
from .functions import offer
from .support import EXCEPTION, HOST, PATIENCE, RETURN, SHUTDOWN, Traces, find, init, packet, script, until

HELLO = struct.pack("<ii", MAGIC, 10) + b"server:rpi"


class Waiting:
    """A server that has come to the proxy."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self.stream = stream
        self._unread = b""

    async def take(self, size: int) -> bytes:
        while len(self._unread) < size:
            self._unread += await self.stream.receive()
        data, self._unread = self._unread[:size], self._unread[size:]
        return data

    async def bring(self, text: str = "client:rpi", more: bytes = b"") -> None:
        """Bring it a client."""
        await self.stream.send(struct.pack("<ii", MAGIC, len(text)) + text.encode() + more)

    async def packet(self) -> tuple[int, bytes]:
        body = await self.take(struct.unpack("<Q", await self.take(8))[0])
        return struct.unpack_from("<i", body)[0], body[4:]

    async def works(self) -> None:
        """It serves a session, to which nobody has answered anything before."""
        await self.stream.send(init() + find("t.echo"))
        assert (await self.packet())[0] == RETURN
        assert (await self.packet())[0] == RETURN

    async def ended(self) -> bool:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            await self.stream.receive()
            return False
        return True


class Gate:
    """Where they come in."""

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []
        self._arrived = anyio.Event()
        self.came = 0

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            one = Waiting(stream)
            try:
                assert await one.take(len(HELLO)) == HELLO
            except anyio.EndOfStream:
                return
            self.came += 1
            self._waiting.append(one)
            self._arrived.set()
            await anyio.sleep_forever()

    async def next(self) -> Waiting:
        with anyio.fail_after(PATIENCE):
            while not self._waiting:
                self._arrived = anyio.Event()
                await self._arrived.wait()
            return self._waiting.pop(0)

    def nobody(self) -> bool:
        return not self._waiting


@contextlib.asynccontextmanager
async def proxy(
    serve: Callable[[anyio.abc.SocketStream], Awaitable[None]] | None = None, port: int = 0
) -> AsyncIterator[tuple[Gate, int]]:
    gate = Gate()
    async with await anyio.create_tcp_listener(local_host=HOST, local_port=port) as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve or gate.serve)
            failure: Exception | None = None
            try:
                yield gate, listener.extra(anyio.abc.SocketAttribute.local_port)
            except Exception as error:
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure


def a_server(port: int, **options: Any) -> rpcflow.Server:
    return rpcflow.Server(
        **{"port": port, "is_proxy": True, "server_init_callback": offer(), "key": "rpi", "silent": True, **options}
    )


class TestWaiting:
    def test_sessions_one_after_the_other(self, run: Run) -> None:
        async def main() -> None:
            async with proxy() as (gate, port):
                async with a_server(port) as server:
                    assert str(server.url) == f"tcp://{HOST}:{port}"
                    assert (server.host, server.port) == (HOST, port)
                    for i in range(3):
                        one = await gate.next()
                        assert gate.came == i + 1
                        await one.bring()
                        await one.works()
                        assert gate.nobody(), "its turn is taken"
                        await one.stream.send(packet(SHUTDOWN))
                        assert await one.ended()
                    last = await gate.next()
                assert await last.ended(), "the server has left"

        run(main)

    def test_the_first_packet_in_the_segment_of_the_key(self, run: Run) -> None:
        async def main() -> None:
            async with proxy() as (gate, port), a_server(port):
                one = await gate.next()
                await one.bring(more=init() + find("t.echo"))
                assert (await one.packet())[0] == RETURN
                assert (await one.packet())[0] == RETURN

        run(main)

    @pytest.mark.parametrize("name", ["proxy-server-link", "proxy-tracker-server-link"])
    def test_as_recorded_with_stock(self, run: Run, name: str) -> None:
        """What it says first, and what it answers to what a stock proxy and a stock client say then."""
        events = load(name)["events"]
        said = [bytes.fromhex(event["hex"]) for event in events if event["dir"] == "s2c"]
        answers = [bytes.fromhex(event["hex"]) for event in events if event["dir"] == "c2s"]
        done = False
        served: list[anyio.Event] = []

        async def serve(stream: anyio.abc.SocketStream) -> None:
            nonlocal done
            async with stream:
                one = Waiting(stream)
                assert await one.take(len(answers[0])) == answers[0]
                if done:
                    return
                await stream.send(said[0])
                assert await one.take(len(answers[1])) == answers[1]
                await stream.send(said[1])
                code, body = await one.packet()
                assert struct.pack("<Qi", len(body) + 4, code) + body[:-8] == answers[2][:-8]
                await stream.send(said[-1])
                assert await one.ended()
                done = True
                served[0].set()

        async def main() -> None:
            served.append(anyio.Event())
            async with proxy(serve) as (_, port), a_server(port, key=answers[0][8:].decode().partition(":")[2]):
                await served[0].wait()

        run(main)

    def test_spawned_workers_do_not_greet_either(self, run: Run) -> None:
        async def main() -> None:
            async with proxy() as (gate, port), a_server(port, no_fork=True):
                one = await gate.next()
                await one.bring()
                await one.works()

        run(main)

    def test_words_in_the_clients_key(self, run: Run) -> None:
        """A match key of the proxy's tracker, a budget, and what nobody knows."""

        async def main() -> None:
            async with proxy() as (gate, port), a_server(port):
                one = await gate.next()
                await one.bring("client:rpi:0.123 -timeout=0.4 -color=red")
                await one.works()
                code, body = await one.packet()
                assert code == EXCEPTION
                assert b"RPCSessionTimeoutError: " in body
                assert await one.ended()
                one = await gate.next()
                await one.bring()
                await one.works()

        run(main)

    def test_only_one_waits_at_a_time(self, run: Run) -> None:
        async def main() -> None:
            async with proxy() as (gate, port), a_server(port, max_sessions=3):
                lines = []
                for i in range(3):
                    one = await gate.next()
                    assert gate.came == i + 1
                    await one.bring()
                    await one.works()
                    lines.append(one)
                assert gate.nobody()
                await lines[1].stream.send(packet(SHUTDOWN))
                another = await gate.next()
                await another.bring()
                for one in (another, lines[0]):
                    await one.stream.send(find("t.echo") if one is lines[0] else init())
                    assert (await one.packet())[0] == RETURN

        run(main)

    def test_leaving_in_the_middle_of_everything(self, run: Run) -> None:
        async def main() -> None:
            async with proxy() as (gate, port):
                async with a_server(port, max_sessions=2):
                    one = await gate.next()
                    await one.bring()
                    await one.works()
                    other = await gate.next()
                assert await one.ended()
                assert await other.ended()

        run(main)


class TestRefused:
    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            struct.pack("<i", Answer.DUPLICATE),
            struct.pack("<i", Answer.MISMATCH),
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            struct.pack("<ii", MAGIC, 1 << 30),
            struct.pack("<ii", MAGIC, -1),
            struct.pack("<ii", MAGIC, 0),
            struct.pack("<ii", MAGIC, 10) + b"client:r",
            struct.pack("<ii", MAGIC, 10) + b"server:rpi",
            struct.pack("<ii", MAGIC, 10) + b"\xff" * 10,
            struct.pack("<ii", MAGIC, 24) + b"client:rpi -timeout=soon",
        ],
    )
    def test_it_tries_again(self, run: Run, answer: bytes) -> None:
        refusals = 0

        async def main() -> None:
            nonlocal refusals

            async def serve(stream: anyio.abc.SocketStream) -> None:
                nonlocal refusals
                if refusals < 3:
                    refusals += 1
                    async with stream:
                        await stream.receive()
                        await stream.send(answer)
                else:
                    await gate.serve(stream)

            gate = Gate()
            async with proxy(serve) as (_, port), a_server(port, max_sessions=2):
                one = await gate.next()
                assert refusals == 3
                await one.bring()
                await one.works()

        run(main)

    def test_a_client_that_goes_before_its_session(self, run: Run) -> None:
        async def main() -> None:
            async with proxy() as (gate, port), a_server(port):
                for _ in range(3):
                    one = await gate.next()
                    await one.bring()
                    await one.stream.aclose()
                one = await gate.next()
                await one.bring()
                await one.works()

        run(main)


class TestStart:
    def test_the_proxy_comes_later(self, run: Run) -> None:
        async def main() -> None:
            with socket.socket() as place:
                place.bind((HOST, 0))
                port = place.getsockname()[1]
            entered = anyio.Event()

            async def serve() -> None:
                async with a_server(port):
                    entered.set()
                    await anyio.sleep_forever()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve)
                await anyio.wait_all_tasks_blocked()
                assert not entered.is_set()
                async with proxy(port=port) as (gate, _):
                    one = await gate.next()
                    await entered.wait()
                    await one.bring()
                    await one.works()
                    tasks.cancel_scope.cancel()

        run(main)

    def test_it_does_not_come(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervisor, "_FOUND_SECONDS", 0.2)

        async def main() -> None:
            with pytest.raises(rpcflow.ConnectionLostError, match=r"proxy tcp://127\.0\.0\.1:1\b.*refused"):
                async with a_server(1):
                    raise AssertionError("nobody is there")

        run(main)

    @pytest.mark.parametrize(
        "options",
        [
            {"host": "pigeon://x"},
            {"port": 0},
            {"host": "192.0.2.1"},
            {"host": "ws://192.0.2.1/ws"},
            {"tracker_addr": 5},
            {"key": "a b"},
        ],
    )
    def test_options_that_cannot_be(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            a_server(**{"port": 9091, **options})


def through(port: int, key: str = "rpi", **options: Any) -> sync.RPCSession:
    return sync.connect(HOST, port, key, wait_timeout=PATIENCE, **options)


class TestThroughOurs:
    def test_a_blocking_server(self, traces: Traces) -> None:
        with sync.Proxy(HOST, 0) as running:
            options: dict[str, Any] = {"is_proxy": True, "key": "rpi", "silent": True, "max_sessions": 2}
            with sync.Server(HOST, running.port, server_init_callback=offer(), **options) as server:
                assert (server.host, server.port) == (HOST, running.port)
                for _ in range(3):
                    with through(running.port) as one, through(running.port, session_timeout=60) as other:
                        assert one.get_function("t.echo")("x") == "x"
                        assert other.get_function("t.pid")() != one.get_function("t.pid")()
        until(traces.none, "tidying up")

    @pytest.mark.parametrize("websocket", [False, True])
    def test_the_command(self, traces: Traces, websocket: bool) -> None:
        with sync.Proxy(HOST, 0, web_port=free_port() if websocket else 0) as running:
            where = f"ws://{HOST}:{running.web_port}/ws" if websocket else f"{HOST}:{running.port}"
            source = "import sys; from rpcflow.cli import main; sys.argv[0] = 'rpcflow'; main()"
            with script(source, "server", "--key", "rpi", "--proxy", where) as process:
                assert process.stdout is not None
                expected = where if websocket else f"tcp://{where}"
                assert process.stdout.readline() == f"READY {expected}\n"
                for _ in range(3):
                    with through(running.port) as session:
                        session.upload(b"x" * 100_000, "f")
                        assert session.download("f") == b"x" * 100_000
                process.terminate()
                assert process.wait(PATIENCE) == 0
        until(traces.none, "tidying up")

    def test_with_a_tracker(self, traces: Traces) -> None:
        with sync.Tracker(HOST, 0, silent=True) as tracker:
            with sync.Proxy(HOST, 0, tracker_addr=(HOST, tracker.port)) as running:
                options: dict[str, Any] = {"is_proxy": True, "key": "rpi", "silent": True}
                with sync.Server(HOST, running.port, server_init_callback=offer(), **options):
                    with sync.connect_tracker(HOST, tracker.port) as client:
                        for _ in range(3):
                            with client.request("rpi", wait_timeout=PATIENCE) as session:
                                assert session.get_function("t.echo")(3) == 3
        until(traces.none, "tidying up")


def free_port() -> int:
    with socket.socket() as place:
        place.bind((HOST, 0))
        port: int = place.getsockname()[1]
        return port
