# SPDX-License-Identifier: Apache-2.0
"""Sessions by way of a tracker: asked for, waited for, worked with; by each API."""

from __future__ import annotations

import gc
import os
import time
from functools import partial
from typing import Any

import anyio
import pytest

import rpcflow
from rpcflow import sync

from .conftest import call, eventually
from .lifted import lower
from .tracked import HOST, free, lab, line, nothing_left, opened, waiting

__all__ = ["lab", "line", "nothing_left"]
pytestmark = pytest.mark.anyio


class TestRequest:
    async def test_a_session(self, line: Any) -> None:
        async with line.request("one", session_timeout=60, wait_timeout=20) as session:
            assert await call(session, "echo", 5) == 5
            assert lower(session)._core.session_timeout == 60
            assert await free(line, "one") == 0
        await eventually(partial(free, line, "one"), 1)

    async def test_a_key_with_colons(self, line: Any) -> None:
        async with line.request("many:of:them") as first, line.request("many:of:them") as second:
            assert await call(first, "pid") != await call(second, "pid")

    async def test_session_constructor(self, line: Any) -> None:
        async with line.request("one", session_constructor_args=["rpc.LocalSession"]) as session:
            assert await call(session, "echo", 5) == 5
        with pytest.raises(rpcflow.RemoteError):
            async with line.request("one", session_constructor_args=["no.such.constructor"]):
                pass

    async def test_whole_addresses(self, api: str, lab: sync.Tracker) -> None:
        for address in ((f"tcp://{HOST}:{lab.port}",), (f"{HOST}:{lab.port}",), ("localhost", lab.port)):
            async with opened(api, *address) as session:
                assert "one" in (await session.summary())["queue_info"]
        if api == "sync":
            for made in (sync.TrackerSession((HOST, lab.port)), sync.TrackerSession(f"tcp://{HOST}:{lab.port}")):
                assert "open" in repr(made)
                made.close()
        else:
            async with rpcflow.TrackerSession((HOST, lab.port)) as tracker_session:
                assert "open" in repr(tracker_session)
            assert "closed" in repr(tracker_session)

    async def test_waiting_is_not_session_time(self, line: Any) -> None:
        budgets: list[bool] = []

        async def second() -> None:
            async with line.request("one", session_timeout=1) as session:
                budgets.append(await call(session, "echo", True))
                with pytest.raises(rpcflow.RPCSessionTimeoutError) as caught:
                    await call(session, "sleep", 30)
                assert caught.value.used is not None
                assert caught.value.used < 20

        async with anyio.create_task_group() as tasks:
            async with line.request("one"):
                tasks.start_soon(second)
                await eventually(partial(waiting, line, "one"), 1)
                await anyio.sleep(1.2)  # longer than the second one's session may last
        assert budgets == [True]

    async def test_wait_timeout(self, line: Any) -> None:
        began = time.monotonic()
        with pytest.raises(rpcflow.WaitTimeoutError, match=r"'none'.* 0\.2 s") as caught:
            async with line.request("none", wait_timeout=0.2):
                pass
        assert time.monotonic() - began >= 0.2
        assert caught.value.wait_timeout == 0.2
        await eventually(partial(waiting, line, "none"), 0)
        async with line.request("one", wait_timeout=20):
            with pytest.raises(rpcflow.WaitTimeoutError):
                async with line.request("one", wait_timeout=0.1):
                    pass
        await eventually(partial(free, line, "one"), 1)

    async def test_priority(self, line: Any) -> None:
        order: list[int] = []

        async def ask(priority: int) -> None:
            async with line.request("one", priority):
                order.append(priority)

        async with anyio.create_task_group() as tasks:
            async with line.request("one"):
                for i, priority in enumerate((1, 3, 2)):
                    tasks.start_soon(ask, priority)
                    await eventually(partial(waiting, line, "one"), i + 1)
        assert order == [3, 2, 1]

    @pytest.mark.parametrize(
        "options",
        [
            {"key": "a b"},
            {"key": "x" * 3000},
            {"priority": "high"},
            {"priority": True},
            {"session_timeout": -1},
            {"session_timeout": float("inf")},
            {"max_retry": 0},
            {"max_retry": 1.5},
            {"wait_timeout": 0},
            {"wait_timeout": -1.0},
        ],
    )
    async def test_arguments_that_cannot_be(self, line: Any, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            async with line.request(**{"key": "one", **options}):
                pass
        with pytest.raises(TypeError):
            async with line.request("one", session_constructor_args="rpc.Connect"):
                pass


class TestRequestAndRun:
    async def test_its_value(self, line: Any) -> None:
        assert await line.request_and_run("one", lambda session: 17, session_timeout=60) == 17
        await eventually(partial(free, line, "one"), 1)

    async def test_a_coroutine_function(self, api: str, line: Any) -> None:
        async def work(session: Any) -> Any:
            return await call(session, "echo", 5)

        if api == "sync":
            assert await line.request_and_run("one", lambda session: session.get_function("t.echo")(5)) == 5
        else:
            assert await line.request_and_run("one", work) == 5

    async def test_tries_again_on_a_newly_requested_device(self, line: Any) -> None:
        sessions: list[Any] = []

        def work(session: Any) -> int:
            sessions.append(session)
            if len(sessions) < 3:
                raise rpcflow.RemoteError("not today")
            assert all(lower(old)._core._closed for old in sessions[:-1]), "the failed session is closed first"
            return 3

        assert await line.request_and_run("many:of:them", work, max_retry=3) == 3
        assert len({id(session._core) for session in sessions}) == 3

    @pytest.mark.parametrize("tries", [1, 2, 4])
    async def test_at_the_end(self, line: Any, tries: int) -> None:
        errors = []

        def work(_: Any) -> None:
            errors.append(rpcflow.ConnectionLostError(f"number {len(errors)}"))
            raise errors[-1]

        options = {} if tries == 2 else {"max_retry": tries}  # 2 is the default
        with pytest.raises(rpcflow.RPCError) as caught:
            await line.request_and_run("one", work, **options)
        assert type(caught.value) is rpcflow.RPCError
        assert str(caught.value) == f"Failed to run on one after {tries} retry"
        assert len(errors) == tries
        assert caught.value.__cause__ is errors[-1]

    @pytest.mark.parametrize("error", [rpcflow.RPCSessionTimeoutError("up"), ValueError("mine"), KeyError("x")])
    async def test_what_passes_at_once(self, line: Any, error: Exception) -> None:
        calls = []

        def work(session: Any) -> None:
            calls.append(session)
            raise error

        with pytest.raises(type(error)) as caught:
            await line.request_and_run("one", work)
        assert caught.value is error
        assert len(calls) == 1
        assert lower(calls[0])._core._closed
        await eventually(partial(free, line, "one"), 1)

    async def test_no_tries_at_all(self, line: Any) -> None:
        with pytest.raises(ValueError):
            await line.request_and_run("one", lambda _: 1, max_retry=0)


class TestThreads:
    """What the blocking one promises besides."""

    @pytest.fixture
    def api(self) -> str:
        return "sync"

    async def test_requests_wait_side_by_side(self, line: Any) -> None:
        pids: list[int] = []

        async def ask() -> None:
            async with line.request("many:of:them", wait_timeout=30) as session:
                pids.append(await call(session, "pid"))

        async with anyio.create_task_group() as tasks:
            async with line.request("one"):
                tasks.start_soon(partial(self.waits, line))
                await eventually(partial(waiting, line, "one"), 1)
                async with anyio.create_task_group() as others:
                    for _ in range(12):
                        others.start_soon(ask)
                    for _ in range(50):
                        await line.summary()
        assert len(pids) == 12

    async def waits(self, line: Any) -> None:
        async with line.request("one"):
            pass

    async def test_closed_by_another_thread(self, lab: sync.Tracker) -> None:
        session = sync.TrackerSession((HOST, lab.port))
        other = sync.TrackerSession((HOST, lab.port))

        async def ask() -> None:
            with pytest.raises(rpcflow.ConnectionLostError):
                await anyio.to_thread.run_sync(session.request, "none")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await eventually(partial(self.waiting, other), 1)
            session.close()
        await eventually(partial(self.waiting, other), 0)
        other.close()

    async def waiting(self, session: sync.TrackerSession) -> int:
        return int(session.summary()["queue_info"].get("none", {"pending": 0})["pending"])

    async def test_collected(self, lab: sync.Tracker) -> None:
        before = len(os.listdir("/proc/self/fd"))
        session = sync.TrackerSession((HOST, lab.port))
        held = session.request("one")
        del session
        gc.collect()
        assert held.get_function("t.echo")(3) == 3, "sessions go on"
        held.close()
        assert len(os.listdir("/proc/self/fd")) <= before
