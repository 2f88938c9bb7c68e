# SPDX-License-Identifier: Apache-2.0
"""The three clocks: a budget for the session, the wait for a turn, one call."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import rpcflow
from rpcflow import sync

from .conftest import Connect, call, core_of, eventually

pytestmark = pytest.mark.anyio


class TestWaitTimeout:
    async def test_a_busy_server(self, single: sync.Server, connect: Connect) -> None:
        async with connect(single.port) as first:
            began = time.monotonic()
            with pytest.raises(rpcflow.WaitTimeoutError, match=r"within 0\.3 s") as caught:
                async with connect(single.port, wait_timeout=0.3):
                    pass
            assert time.monotonic() - began >= 0.3
            assert caught.value.wait_timeout == 0.3
            assert isinstance(caught.value, TimeoutError)
            assert await call(first, "echo", 1) == 1
        async with connect(single.port, wait_timeout=20) as second:
            assert await call(second, "echo", 2) == 2

    async def test_does_not_bound_the_session(self, connect: Connect) -> None:
        async with connect(wait_timeout=5) as session:
            core = core_of(session)
            assert core.call_timeout is None
            assert core.session_timeout is None


class TestCallTimeout:
    async def test_the_session_goes_on_and_the_late_answer_is_dropped(self, connect: Connect, tmp_path: Path) -> None:
        begun, gate = tmp_path / "begun", tmp_path / "gate"
        async with connect() as session:
            function = await session.get_function("t.begin_and_wait_for")
            core_of(session).call_timeout = 0.3
            with pytest.raises(rpcflow.CallTimeoutError, match=r"0\.3 s.*call_timeout") as caught:
                await function(str(begun), str(gate))
            assert caught.value.call_timeout == 0.3
            assert isinstance(caught.value, TimeoutError)
            core_of(session).call_timeout = 60.0
            gate.touch()
            assert await call(session, "echo", 1) == 1
            await eventually(lambda: call(session, "live", "function"), 0)

    async def test_given_to_connect(self, connect: Connect) -> None:
        async with connect(call_timeout=1.5) as session:
            assert await call(session, "echo", 1) == 1
            with pytest.raises(rpcflow.CallTimeoutError):
                await call(session, "sleep", 30)

    async def test_a_call_behind_a_late_one(self, connect: Connect, tmp_path: Path) -> None:
        """Each waits for its own time only, and in the end each answer finds its question."""
        gate = tmp_path / "gate"
        async with connect() as session:
            wait, echo = await session.get_function("t.wait_for"), await session.get_function("t.echo")
            core_of(session).call_timeout = 0.2
            with pytest.raises(rpcflow.CallTimeoutError):
                await wait(str(gate))
            for i in range(3):
                with pytest.raises(rpcflow.CallTimeoutError):
                    await echo(i)
            core_of(session).call_timeout = None
            gate.touch()
            assert await echo("mine") == "mine"

    async def test_a_request_that_could_not_be_sent_whole_ends_the_session(
        self, connect: Connect, tmp_path: Path
    ) -> None:
        import numpy as np

        async with connect() as session:
            tensor = await session.cpu().empty((96 << 20,), "uint8")
            echo = await session.get_function("t.echo")
            await tensor.view((1,)).copyfrom(np.zeros(1, "uint8"))
            core_of(session).call_timeout = 0.3
            os.kill(await call(session, "pid"), signal.SIGSTOP)  # it reads no more
            with pytest.raises(rpcflow.CallTimeoutError):
                await tensor.copyfrom(np.zeros(96 << 20, "uint8"))
            with pytest.raises(rpcflow.ConnectionLostError, match="cut short"):
                await echo(1)


class TestSessionTimeout:
    async def test_the_call_in_progress(self, connect: Connect) -> None:
        async with connect(session_timeout=1) as session:
            began = time.monotonic()
            with pytest.raises(rpcflow.RPCSessionTimeoutError, match="session_timeout") as caught:
                await call(session, "sleep", 60)
            assert time.monotonic() - began < 20
            error = caught.value
            assert error.budget == 1.0
            assert error.used is not None
            assert error.used >= 0.9
            assert error.call is not None
            assert "sleep" in error.call
            with pytest.raises(rpcflow.RPCSessionTimeoutError):
                await call(session, "echo", 1)

    async def test_the_next_call_and_the_body_is_not_cancelled(self, connect: Connect) -> None:
        reached = []
        async with connect(session_timeout=0.5) as session:
            echo = await session.get_function("t.echo")
            await anyio.sleep(1.0)
            reached.append("the body")
            for _ in range(2):
                with pytest.raises(rpcflow.RPCSessionTimeoutError):
                    await echo(1)
            reached.append("its end")
        assert reached == ["the body", "its end"]

    async def test_counts_wall_time_though_calls_are_quick(self, connect: Connect) -> None:
        async with connect(session_timeout=0.8) as session:
            echo = await session.get_function("t.echo")
            with anyio.fail_after(20):
                with pytest.raises(rpcflow.RPCSessionTimeoutError):
                    while True:
                        await echo(1)

    async def test_waiting_never_counts(self, single: sync.Server, connect: Connect) -> None:
        async with connect(single.port) as first:
            assert await call(first, "echo", 1) == 1
            holder = first
            async with anyio.create_task_group() as tasks:

                async def let_go() -> None:
                    await anyio.sleep(1.5)
                    await holder.aclose()

                if hasattr(core_of(first), "close"):  # blocking: waiting would hold this thread up
                    import threading

                    timer = threading.Timer(1.5, holder.target.close)
                    timer.start()
                else:
                    tasks.start_soon(let_go)
                began = time.monotonic()
                async with connect(single.port, session_timeout=1.2) as second:
                    assert time.monotonic() - began > 1.2
                    assert await call(second, "echo", 2) == 2

    async def test_none(self, connect: Connect) -> None:
        async with connect(session_timeout=0) as session:
            assert core_of(session).hard_deadline is None

    async def test_leaving_afterwards_is_silent(self, connect: Connect) -> None:
        async with connect(session_timeout=0.3):
            await anyio.sleep(0.8)

    async def test_a_server_that_does_not_keep_to_it(self, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
        """We know our own deadline."""
        monkeypatch.setattr("rpcflow.client.core.HARD_GRACE", 0.0)
        async with connect() as session:
            core_of(session).session_timeout = 0.01
            with pytest.raises(rpcflow.RPCSessionTimeoutError) as caught:
                await call(session, "sleep", 60)
            assert caught.value.budget == 0.01
            with pytest.raises(rpcflow.RPCSessionTimeoutError):
                await call(session, "echo", 1)


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [
            {"session_timeout": -1},
            {"session_timeout": float("nan")},
            {"session_timeout": float("inf")},
            {"session_timeout": True},
            {"wait_timeout": 0},
            {"wait_timeout": -1},
            {"wait_timeout": float("nan")},
            {"call_timeout": 0},
            {"call_timeout": -1},
            {"key": "two words"},
            {"key": "tab\t"},
            {"port": 0},
            {"port": 70000},
            {"url": ""},
            {"url": "nonsense://h"},
            {"url": "tcp://"},
        ],
        ids=str,
    )
    def test_that_cannot_be_are_refused_where_they_are_given(self, options: dict[str, Any]) -> None:
        given = {"url": "127.0.0.1", "port": 9091, **options}
        for connect in (rpcflow.connect, sync.connect):
            with pytest.raises(ValueError):
                connect(**given)

    @pytest.mark.parametrize("given", ["rpc.LocalSession", [1], [None, "x"]])
    async def test_session_constructor_args(self, connect: Connect, given: Any) -> None:
        with pytest.raises(TypeError):
            async with connect(session_constructor_args=given):
                pass
