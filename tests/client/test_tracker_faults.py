# SPDX-License-Identifier: Apache-2.0
"""A tracker that goes, lies or comes back; requests that are given up: nothing hangs, nothing is lost."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, NamedTuple

import anyio
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.client import tracker as async_tracker
from rpcflow.sync import tracker_session as blocking_tracker
from tests.tracker.scripted import Desk, Line, frame, tracker

from .conftest import call, eventually
from .tracked import HOST, free, lab, line, nothing_left, opened, waiting

__all__ = ["lab", "line", "nothing_left"]
pytestmark = pytest.mark.anyio


class Cut(NamedTuple):
    """What a tracker says before it hangs up."""

    data: bytes


@pytest.mark.tcp
class TestTrying:
    """The tracker is played: it gives what it likes."""

    async def grants(self, api: str, *given: Any, **options: Any) -> tuple[Any, int]:
        """What a request ends in, and how often was asked, where the tracker gives these one after the other."""
        asked = 0

        async def serve(one: Line) -> None:
            nonlocal asked
            await one.greet()
            message = await one.ask()
            assert message == [4, "k", "", 7]
            answer = given[min(asked, len(given) - 1)]
            asked += 1
            if isinstance(answer, Cut):
                await one.stream.send(answer.data)
                return
            await one.stream.send(answer if isinstance(answer, bytes) else frame(answer))
            await one.gone()

        async def serve_first(one: Line) -> None:
            nonlocal first
            if first:
                first = False
                await one.greet()
                await one.gone()
            else:
                await serve(one)

        first = True
        async with tracker(serve_first) as port, opened(api, HOST, port) as line:
            try:
                async with line.request("k", 7, **options) as session:
                    return await call(session, "echo", 5), asked
            except rpcflow.RPCError as error:
                return error, asked

    async def test_a_server_that_is_gone(self, api: str, server: sync.Server) -> None:
        dead, alive = [0, [HOST, 1, "k:1"]], [0, [HOST, server.port, "client"]]
        assert await self.grants(api, dead, dead, alive) == (5, 3)

    async def test_a_key_that_is_void(self, api: str, server: sync.Server) -> None:
        void, good = [0, [HOST, server.port, "client:1"]], [0, [HOST, server.port, "client"]]
        assert await self.grants(api, void, good) == (5, 2)

    async def test_a_tracker_that_goes(self, api: str, server: sync.Server) -> None:
        cuts = Cut(b""), Cut(frame([0, []])[:5])
        assert await self.grants(api, *cuts, [0, [HOST, server.port, "client"]]) == (5, 3)

    @pytest.mark.parametrize("tries", [1, 2, 5])
    async def test_so_many_times_and_no_more(self, api: str, tries: int) -> None:
        error, asked = await self.grants(api, [0, [HOST, 1, "k:1"]], max_retry=tries)
        assert asked == tries
        assert type(error) is rpcflow.ConnectionLostError
        assert str(error).startswith(f"no session with a server of the kind 'k' after {tries} tries; the last one:")
        assert isinstance(error.__cause__, rpcflow.ConnectionLostError)
        error, asked = await self.grants(api, [0, [HOST, 1, "k:1"]])
        assert asked == 5, "the default"

    async def test_wait_timeout_bounds_all_tries(self, api: str) -> None:
        error, asked = await self.grants(api, Cut(b""), wait_timeout=0.15)
        assert type(error) is rpcflow.WaitTimeoutError
        assert asked >= 1

    @pytest.mark.parametrize(
        "answer",
        [
            0,
            [],
            [0],
            [1, "no"],
            [0, None],
            [0, [HOST, 1]],
            {"a": 1},
            b"\xff\xff\xff\xff",
            b"\x02\0\0\0{]",
            frame([0, [HOST, 1, "k:1"]]) + frame(0),
        ],
    )
    async def test_nonsense_for_a_server(self, api: str, answer: Any) -> None:
        error, asked = await self.grants(api, answer)
        assert type(error) is rpcflow.ProtocolError, error
        assert asked == 1, "asking again would not help"

    @pytest.mark.parametrize(
        "named",
        [
            [HOST, "1", "k:1"],
            [HOST, True, "k:1"],
            [HOST, 0, "k:1"],
            [HOST, 65536, "k:1"],
            ["", 1, "k:1"],
            [HOST, 1, 5],
            [HOST, 1, "k: -timeout=9"],
            [HOST, 1, "k" * 5000],
        ],
    )
    async def test_a_server_that_cannot_be(self, api: str, server: sync.Server, named: list[Any]) -> None:
        """Its owner has told the tracker nonsense: the next one may be better."""
        assert await self.grants(api, [0, named], [0, [HOST, server.port, "client"]]) == (5, 2)

    @pytest.mark.parametrize("host", ["popen:///bin/sh", "unix:/tmp/x", "tcp://127.0.0.1", "a b", "\0", "é" * 100])
    async def test_a_host_is_only_ever_a_host(self, api: str, host: str) -> None:
        error, _ = await self.grants(api, [0, [host, 1, "k:1"]], max_retry=1)
        assert type(error) is rpcflow.ConnectionLostError
        assert "resolved" in str(error)

    async def test_a_server_that_says_nothing(self, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(async_tracker, "GRANTED_SECONDS", 0.05)
        monkeypatch.setattr(blocking_tracker, "GRANTED_SECONDS", 0.05)

        async with tracker(Line.gone) as port:
            error, asked = await self.grants(api, [0, [HOST, port, "k:1"]], max_retry=2)
        assert type(error) is rpcflow.ConnectionLostError
        assert "answered within" in str(error)
        assert asked == 2


class TestTheTrackerItself:
    async def test_summary(self, line: Any, lab: sync.Tracker) -> None:
        summary = await line.summary()
        assert summary["queue_info"]["one"] == {"free": 1, "pending": 0}
        assert {info["key"] for info in summary["server_info"]} == {"server:one", "server:many:of:them"}
        text = await line.text_summary()
        assert "\none            1      1     0      \n" in text

    async def test_it_was_restarted(self, api: str) -> None:
        """A call on a dead line finds the one in its place; with none there it says so, and the next call tries."""
        desk = Desk()
        async with anyio.create_task_group() as tasks:
            async with tracker(desk.serve) as port:
                context = opened(api, HOST, port)
                line = await context.__aenter__()
                assert (await line.summary())["queue_info"] == {}
                await desk.hang_up()
                assert (await line.summary())["queue_info"] == {}
                assert len(desk.lines) == 1
            with pytest.raises(rpcflow.ConnectionLostError, match="refused"):
                await line.summary()
            async with tracker(desk.serve, port):
                assert (await line.summary())["queue_info"] == {}
                await context.__aexit__(None, None, None)
                with pytest.raises(rpcflow.ConnectionLostError, match="closed"):
                    await line.summary()
                with pytest.raises(rpcflow.ConnectionLostError, match="closed"):
                    async with line.request("k"):
                        pass
            tasks.cancel_scope.cancel()

    @pytest.mark.parametrize("answer", [0, [1, "no"], [0, 5], [0, {}], [0, {"queue_info": []}], b"\0\0\0\0"])
    async def test_nonsense(self, api: str, answer: Any) -> None:
        desk = Desk()
        desk.answers[6] = answer
        async with tracker(desk.serve) as port, opened(api, HOST, port) as line:
            with pytest.raises(rpcflow.ProtocolError):
                await line.summary()
            del desk.answers[6]
            assert await line.summary() == {"queue_info": {}, "server_info": []}

    async def test_more_in_it_than_we_know(self, api: str) -> None:
        desk = Desk()
        told = {"queue_info": {}, "server_info": [], "devices": [1], "moon": "full"}
        desk.answers[6] = [0, told]
        async with tracker(desk.serve) as port, opened(api, HOST, port) as line:
            assert await line.summary() == told

    async def test_it_says_nothing(self, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(async_tracker, "ANSWER_SECONDS", 0.05)
        monkeypatch.setattr(blocking_tracker, "ANSWER_SECONDS", 0.05)
        desk = Desk()
        desk.answers[6] = b""
        async with tracker(desk.serve) as port, opened(api, HOST, port) as line:
            with pytest.raises(rpcflow.ConnectionLostError, match="answered"):
                await line.summary()
            del desk.answers[6]
            await line.summary()

    async def test_nobody_there(self, api: str) -> None:
        with pytest.raises(rpcflow.ConnectionLostError, match=r"127\.0\.0\.1:1"):
            async with opened(api, HOST, 1):
                pass
        for address in (("",), ("pigeon://x",), (HOST, 70000)):
            with pytest.raises(ValueError):
                async with opened(api, *address):
                    pass

    async def test_as_a_stock_client_asks(self, api: str) -> None:
        """The transcript of a stock client, but for what is the tracker's to say."""
        desk = Desk()
        desk.answers[4] = [0, [HOST, 1, "dev1:1"]]
        async with tracker(desk.serve) as port, opened(api, HOST, port) as line:
            await line.summary()
            with pytest.raises(rpcflow.ConnectionLostError):
                async with line.request("dev1", 3, max_retry=1):
                    pass
            await line.text_summary()
        assert desk.heard == [[6], [4, "dev1", "", 3], [6]]


class TestCancelling:
    @pytest.fixture(params=["trio", "asyncio"])
    def api(self, request: pytest.FixtureRequest) -> str:
        """Cancelling is for tasks."""
        name: str = request.param
        return name

    async def test_while_it_waits(self, line: Any) -> None:
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                async with line.request("none"):
                    raise AssertionError("there is none")

            tasks.start_soon(ask)
            await eventually(partial(waiting, line, "none"), 1)
            tasks.cancel_scope.cancel()
        await eventually(partial(waiting, line, "none"), 0)

    async def test_just_as_it_is_given(self, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The device is given back at once: nobody waits for the one that does not come."""
        monkeypatch.setattr("rpcflow.server.registration.ON_THE_WAY_SECONDS", 1000.0)
        desk = Desk()

        async def serve(one: Line) -> None:
            await one.greet()
            if not asked.is_set() and desk.pending and lines:
                await one.ask()
                lines.append(one)
                asked.set()
                await one.gone()
            else:
                lines.append(one)
                await desk.talk(one)

        asked, lines = anyio.Event(), list[Line]()
        async with tracker(serve) as port:
            async with rpcflow.Server(port=0, key="k", tracker_addr=(HOST, port)) as server:
                key = (await desk.offers())[0]
                made = rpcflow.TrackerSession((HOST, port))
                made._open = True
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as tasks:

                        async def ask() -> None:
                            async with made.request("k"):
                                raise AssertionError("it was cancelled")

                        tasks.start_soon(ask)
                        await asked.wait()
                        await anyio.wait_all_tasks_blocked()
                        del desk.pending[key]
                        raw = lines[-1].stream.extra(anyio.abc.SocketAttribute.raw_socket)
                        os.write(raw.fileno(), frame([0, [HOST, server.port, key]]))
                        scope.cancel()
                (fresh,) = await desk.offers()
                assert fresh != key

    async def test_at_every_await(self, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rpcflow.server.registration.ON_THE_WAY_SECONDS", 1.0)
        monkeypatch.setattr("rpcflow.server.registration.POLL_SECONDS", 0.1)
        async with (
            rpcflow.Tracker(port=0) as running,
            rpcflow.Server(port=0, key="k", tracker_addr=(HOST, running.port)),
        ):
            async with rpcflow.connect_tracker(HOST, running.port) as line:

                async def go() -> str:
                    async with rpcflow.connect_tracker(HOST, running.port) as own:
                        await own.summary()
                        async with own.request("k", session_timeout=60) as session:
                            function = await session.get_function("tvm.rpc.server.workpath")
                            return str(await function("x"))

                for number in range(1, 1000):
                    with anyio.CancelScope() as scope:
                        assert (await Stepwise(go(), number, scope)).endswith("x")
                    await eventually(partial(waiting, line, "k"), 0)
                    await eventually(partial(free, line, "k"), 1)
                    if not scope.cancelled_caught:
                        break
                assert number > 10


class Stepwise:
    """Awaits a coroutine, and cancels a scope when it waits for the nth time."""

    def __init__(self, coroutine: Any, number: int, scope: anyio.CancelScope) -> None:
        self._coroutine = coroutine
        self._number = number
        self._scope = scope

    def __await__(self) -> Any:
        resume, value = self._coroutine.send, None
        while True:
            try:
                waits_for = resume(value)
            except StopIteration as stop:
                return stop.value
            self._number -= 1
            if self._number == 0:
                self._scope.cancel()
            try:
                value = yield waits_for
                resume = self._coroutine.send
            except BaseException as error:
                resume, value = self._coroutine.throw, error
