# SPDX-License-Identifier: Apache-2.0
"""Sessions that run elsewhere: on a next server, or by a constructor of the first."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import rpcflow
from rpcflow import sync

from .conftest import KEY, Connect, call, core_of, eventually
from .functions import offer
from .lifted import lower

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def second() -> Iterator[sync.Server]:
    with sync.Server(
        "127.0.0.1", 0, key="second", silent=True, server_init_callback=offer("far."), max_sessions=8
    ) as running:
        yield running


@pytest.fixture
def hop(second: sync.Server) -> list[Any]:
    return ["rpc.Connect", "127.0.0.1", second.port, "second", False]


async def far(session: Any, name: str, *args: Any) -> Any:
    return await (await session.get_function(f"far.{name}"))(*args)


async def test_local_session(connect: Connect) -> None:
    async with connect(session_constructor_args=["rpc.LocalSession"]) as session:
        assert await call(session, "echo", 1) == 1
        tensor = await session.cpu().tensor([1.0, 2.0])
        assert await call(session, "sum", tensor) == 3.0
        await session.upload(b"x", "f")
        assert await session.download("f") == b"x"


@pytest.mark.parametrize("given", [None, [], ()])
async def test_none(connect: Connect, given: Any) -> None:
    async with connect(session_constructor_args=given) as session:
        assert await call(session, "echo", 1) == 1


async def test_a_second_server(connect: Connect, hop: list[Any]) -> None:
    async with connect(session_constructor_args=hop) as session:
        assert await far(session, "echo", "there") == "there"
        with pytest.raises(rpcflow.FunctionNotFoundError):
            await session.get_function("t.echo")
        add = await far(session, "adder", 3)
        assert await add(4) == 7
        with pytest.raises(rpcflow.RemoteError, match="far and away") as caught:
            await far(session, "fail", "KeyError", "far and away")
        assert caught.value.remote_type == "KeyError"
        await session.upload(bytes(100_000), "f")
        assert await session.download("f") == bytes(100_000)
        assert await session.listdir(".") == "f"
        with pytest.raises(rpcflow.PermissionDeniedError):
            await session.download("../f")
        assert await session.cpu().attr("exist") is True


async def test_handles_are_freed_there(connect: Connect, hop: list[Any]) -> None:
    async with connect(session_constructor_args=hop) as session:
        add = await far(session, "adder", 1)
        assert await far(session, "live", "function") == 1
        del add
        await eventually(lambda: far(session, "live", "function"), 0)


async def test_big_tensors(connect: Connect, hop: list[Any]) -> None:
    host = np.random.default_rng(3).integers(0, 256, 24 << 20, np.uint8)
    async with connect(session_constructor_args=hop) as session:
        tensor = await session.cpu().tensor(host)
        assert np.array_equal(await tensor.numpy(), host)


@pytest.mark.tcp
async def test_three_in_a_row(connect: Connect, hop: list[Any], server: sync.Server) -> None:
    back = ["rpc.Connect", "127.0.0.1", server.port, KEY, False]
    async with connect(session_constructor_args=[*hop, *back]) as session:
        assert await call(session, "echo", "home again") == "home again"


@pytest.mark.parametrize(
    ("constructor", "words"),
    [
        (["rpc.Nonsense"], "rpc.Nonsense"),
        (["rpc.LocalSession", 1], "no arguments"),
        (["rpc.Connect"], "rpc.Connect takes"),
        (["rpc.Connect", "127.0.0.1", 1, "key", False], "127.0.0.1:1"),
        (["rpc.Connect", "127.0.0.1", "port", "key", False], "rpc.Connect takes"),
        (["rpc.Connect", "gopher://h", 1, "key", False], "gopher"),
    ],
    ids=str,
)
async def test_constructors_that_fail(connect: Connect, constructor: list[Any], words: str) -> None:
    with pytest.raises(rpcflow.RPCError, match=words):
        async with connect(session_constructor_args=constructor):
            pass


async def test_a_wrong_key_at_the_second(connect: Connect, hop: list[Any]) -> None:
    with pytest.raises(rpcflow.RPCError, match="wrong"):
        async with connect(session_constructor_args=[*hop[:3], "wrong", False]):
            pass


async def test_another_sessions_objects_are_no_arguments(connect: Connect) -> None:
    async with connect() as other:
        tensor = lower(await other.cpu().tensor([1.0]))
        with pytest.raises(ValueError, match="another session"):
            async with connect(session_constructor_args=["t.echo", tensor]):
                pass


async def test_session_timeout(connect: Connect, hop: list[Any]) -> None:
    async with connect(session_constructor_args=hop, session_timeout=1) as session:
        assert await far(session, "echo", 1) == 1
        began = time.monotonic()
        with pytest.raises(rpcflow.RPCSessionTimeoutError):
            await far(session, "sleep", 60)
        assert time.monotonic() - began < 20


async def test_call_timeout(connect: Connect, hop: list[Any], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with connect(session_constructor_args=hop) as session:
        wait = await session.get_function("far.wait_for")
        core_of(session).call_timeout = 0.3
        with pytest.raises(rpcflow.CallTimeoutError):
            await wait(str(gate))
        core_of(session).call_timeout = None
        gate.touch()
        assert await far(session, "echo", 1) == 1


async def test_the_last_one_dies(connect: Connect, hop: list[Any]) -> None:
    async with connect(session_constructor_args=hop) as session:
        with pytest.raises(rpcflow.SessionCrashedError, match=r"far\.exit"):
            await far(session, "exit", 4)


async def test_leaving_ends_the_last_one(connect: Connect, hop: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "ticks"
    async with connect(session_constructor_args=hop) as session:
        core_of(session).call_timeout = 0.3
        tick = await session.get_function("far.tick")
        with pytest.raises(rpcflow.CallTimeoutError):
            await tick(str(path))
    with anyio.fail_after(20):
        size = -1
        while size != path.stat().st_size:
            size = path.stat().st_size
            await anyio.sleep(0.3)
