# SPDX-License-Identifier: Apache-2.0
"""Cancelling, leaving, clocks: what is left usable, what is closed, what the server stops."""

import gc
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.client.connection import Connection
from rpcflow.client.session import Session
from rpcflow.session.client import ClientMachine
from rpcflow.transports.testing import SILENCE, AsyncScriptedChannel

from .conftest import KEY, Connect, call, core_of, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["trio", "asyncio"])
def api(request: pytest.FixtureRequest) -> str:
    """Cancelling is for tasks."""
    name: str = request.param
    return name


async def appears(path: Path) -> None:
    with anyio.fail_after(20):
        while not path.exists():
            await anyio.sleep(0.005)


class TestCancelledCalls:
    async def test_while_waiting_for_the_answer(self, session: Any, tmp_path: Path) -> None:
        """The session goes on; the late answer is dropped, and the handle in it freed."""
        begun, gate = tmp_path / "begun", tmp_path / "gate"
        waiting = await session.get_function("t.begin_and_wait_for")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waiting, str(begun), str(gate))
            await appears(begun)
            tasks.cancel_scope.cancel()
        gate.touch()
        assert await call(session, "echo", 5) == 5
        await eventually(lambda: call(session, "live", "function"), 0)

    async def test_ends_at_once_though_the_server_is_busy(self, session: Any, tmp_path: Path) -> None:
        function = await session.get_function("t.wait_for")
        with anyio.fail_after(20), anyio.move_on_after(0.1) as scope:
            await function(str(tmp_path / "gate"))
        assert scope.cancelled_caught
        (tmp_path / "gate").touch()
        assert await call(session, "echo", 5) == 5

    async def test_while_queued(self, session: Any, tmp_path: Path) -> None:
        """What has not been sent is not carried out."""
        begun, gate = tmp_path / "begun", tmp_path / "gate"
        waiting = await session.get_function("t.begin_and_wait_for")
        show = await session.get_function("t.wait_for")
        after: list[int] = []

        async def third() -> None:
            after.append(await call(session, "echo", 3))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waiting, str(begun), str(gate))
            await appears(begun)
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as queued:
                    queued.start_soon(show, str(tmp_path / "never"))
                    await anyio.wait_all_tasks_blocked()
                    tasks.start_soon(third)
                    await anyio.sleep(0.02)
                    scope.cancel()
            gate.touch()
        assert after == [3]
        assert await call(session, "echo", 4) == 4

    async def test_before_its_turn_even_came(self, session: Any) -> None:
        echo = await session.get_function("t.echo")
        for _ in range(10):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await echo(1)
            assert scope.cancelled_caught
        assert await echo(2) == 2

    async def test_data_that_arrive_for_nobody(self, session: Any) -> None:
        """A read that is given up: the memory is its owner's, the rest of the data is thrown away."""
        host = np.arange(1 << 20, dtype="int32")
        tensor = await session.cpu().tensor(host)
        core = core_of(session)
        for _ in range(20):
            with anyio.CancelScope() as scope:
                received = core._channel.receive_into

                async def once(buffer: memoryview, inner: Any = received, within: anyio.CancelScope = scope) -> int:
                    count: int = await inner(buffer)
                    within.cancel()
                    return count

                core._channel.receive_into = once
                try:
                    await tensor.numpy()
                    await anyio.lowlevel.checkpoint()
                finally:
                    core._channel.receive_into = received
            assert await call(session, "echo", 1) == 1
        assert np.array_equal(await tensor.numpy(), host)

    async def test_a_large_request_behind_a_large_answer_that_nobody_waits_for(self, session: Any) -> None:
        """Neither end may wait for the other to read first."""
        host = np.zeros(96 << 20, np.uint8)
        tensor = await session.cpu().tensor(host)
        with anyio.move_on_after(0.01):
            await tensor.numpy()
        await tensor.copyfrom(host)
        assert await call(session, "echo", 1) == 1

    async def test_in_the_middle_of_sending(self, session: Any) -> None:
        """The server does not read, so a big tensor gets stuck half-way: the session is of no more use."""
        tensor = await session.cpu().empty((96 << 20,), "uint8")
        echo = await session.get_function("t.echo")
        os.kill(await call(session, "pid"), signal.SIGSTOP)
        host = np.zeros(96 << 20, np.uint8)
        with anyio.move_on_after(0.2) as scope:
            await tensor.copyfrom(host)
        assert scope.cancelled_caught
        for _ in range(2):
            with pytest.raises(rpcflow.ConnectionLostError, match="cut short"):
                await echo(1)
        with pytest.raises(rpcflow.ConnectionLostError):
            await session.cpu().empty((1,))
        assert "closed" in repr(session)

    async def test_in_the_middle_of_an_upload(self, session: Any, tmp_path: Path) -> None:
        (tmp_path / "big").write_bytes(bytes(96 << 20))
        await session.upload(b"", "small")
        os.kill(await call(session, "pid"), signal.SIGSTOP)
        with anyio.move_on_after(0.2) as scope:
            await session.upload(tmp_path / "big")
        assert scope.cancelled_caught
        with pytest.raises(rpcflow.ConnectionLostError, match="cut short"):
            await session.listdir(".")


class TestLeaving:
    async def test_while_a_call_runs(self, connect: Connect, tmp_path: Path) -> None:
        """The call fails, and the server stops it."""
        path = tmp_path / "ticks"
        errors: list[BaseException] = []

        async with anyio.create_task_group() as tasks:
            async with connect() as session:
                tick = await session.get_function("t.tick")

                async def run() -> None:
                    try:
                        await tick(str(path))
                    except rpcflow.RPCError as error:
                        errors.append(error)

                tasks.start_soon(run)
                await appears(path)
                began = time.monotonic()
            assert time.monotonic() - began < 5
        assert [type(error) for error in errors] == [rpcflow.ConnectionLostError]
        with anyio.fail_after(20):
            size = -1
            while size != path.stat().st_size:
                size = path.stat().st_size
                await anyio.sleep(0.3)

    async def test_by_cancelling_all(self, connect: Connect, tmp_path: Path) -> None:
        path = tmp_path / "ticks"
        with anyio.move_on_after(20) as scope:
            async with anyio.create_task_group() as tasks:

                async def stop() -> None:
                    await appears(path)
                    tasks.cancel_scope.cancel()

                tasks.start_soon(stop)
                async with connect() as session:
                    await call(session, "tick", str(path))
        assert not scope.cancelled_caught
        with anyio.fail_after(20):
            size = -1
            while size != path.stat().st_size:
                size = path.stat().st_size
                await anyio.sleep(0.3)

    async def test_frees_the_server(self, single: sync.Server, connect: Connect) -> None:
        for _ in range(3):
            async with connect(single.port, wait_timeout=20) as session:
                assert await call(session, "echo", 1) == 1

    async def test_afterwards_nothing_works(self, connect: Connect) -> None:
        async with connect() as session:
            echo = await session.get_function("t.echo")
            tensor = await session.cpu().tensor([1.0])
        for use in (lambda: echo(1), tensor.numpy, lambda: session.get_function("t.echo")):
            with pytest.raises(rpcflow.ConnectionLostError, match="closed"):
                await use()
        assert "closed" in repr(session)
        tensor = echo = None
        gc.collect()

    async def test_aclose_and_again(self, connect: Connect) -> None:
        async with connect() as session:
            await session.aclose()
            await session.aclose()
            with pytest.raises(rpcflow.ConnectionLostError, match="closed"):
                await session.get_function("t.echo")

    async def test_on_a_dead_line_is_silent(self, connect: Connect) -> None:
        async with connect() as session:
            with pytest.raises(rpcflow.RPCError):
                await call(session, "exit", 1)
        with sync.Server("127.0.0.1", 0, key=KEY, silent=True) as server:
            async with connect(server.port) as session:
                server.terminate()
        async with connect() as session:
            core_of(session)._channel.socket.shutdown(socket.SHUT_RDWR)

    async def test_errors_of_the_body_come_bare(self, connect: Connect) -> None:
        class Mine(Exception):
            pass

        with pytest.raises(Mine):
            async with connect():
                raise Mine
        with pytest.raises(rpcflow.RemoteError):
            async with connect() as session:
                await call(session, "fail", "ValueError", "x")
        with pytest.raises(rpcflow.RPCError):
            async with connect() as session:
                await call(session, "exit", 1)
        with pytest.raises(rpcflow.ConnectionLostError):
            async with connect(1):
                pass
        with pytest.raises(rpcflow.KeyMismatchError):
            async with connect(key="another"):
                pass
        with pytest.raises(Mine):
            async with rpcflow.LocalSession():
                raise Mine
        with pytest.raises(Mine):
            async with rpcflow.Server(port=0):
                raise Mine

    @pytest.mark.tcp
    async def test_blocks_are_entered_once_and_not_awaited(self, server: sync.Server) -> None:
        for make in (lambda: rpcflow.connect("127.0.0.1", server.port, KEY), rpcflow.LocalSession):
            block = make()
            assert not hasattr(block, "__await__")
            assert not hasattr(block, "__enter__")
            async with block:
                with pytest.raises(RuntimeError, match="once"):
                    await block.__aenter__()
            with pytest.raises(RuntimeError, match="once"):
                async with block:
                    pass

    async def test_connect_does_nothing_before_it_is_entered(self) -> None:
        rpcflow.connect("127.0.0.1", 1, "nobody")

    async def test_cancelled_while_it_connects(self, single: sync.Server, connect: Connect) -> None:
        async with connect(single.port) as first:
            with anyio.move_on_after(0.1) as scope:
                async with connect(single.port):
                    pytest.fail("two at a time")
            assert scope.cancelled_caught
            assert await call(first, "echo", 1) == 1
        async with connect(single.port, wait_timeout=20) as second:
            assert await call(second, "echo", 2) == 2


class TestSilence:
    """The other end says nothing at all: no clock is needed to see who gives up."""

    def session(self, *script: Any, **options: Any) -> tuple[Session, AsyncScriptedChannel]:
        channel = AsyncScriptedChannel([*script, SILENCE])
        core = Connection(channel, ClientMachine(), "nowhere", **options)
        return Session(core), channel

    async def test_closing_does_not_wait_for_an_answer(self) -> None:
        session, channel = self.session()
        session._core.machine.init()
        session._core.machine.take_outgoing()
        await session.aclose()
        assert channel.closed

    async def test_closing_gives_up_on_a_line_that_takes_nothing(self) -> None:
        session, channel = self.session()
        session._core.machine.init()

        async def stuck(parts: Any) -> None:
            await anyio.sleep_forever()

        channel.send = stuck  # type: ignore[method-assign]
        with anyio.fail_after(20):
            await session.aclose()
        assert channel.closed

    async def test_closing_while_cancelled_still_says_good_bye(self) -> None:
        session, channel = self.session()
        session._core.machine.init()
        session._core.machine.take_outgoing()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await session.aclose()
        assert channel.closed
        assert len(channel.sends) == 1
