# SPDX-License-Identifier: Apache-2.0
"""Sessions over each transport, and ways to say where."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import rpcflow
from rpcflow import sync
from tests.transports.conftest import has_ipv6

from .conftest import call
from .lifted import Lifted

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(api: str, *args: Any, **options: Any) -> AsyncIterator[Any]:
    if api == "sync":
        with await anyio.to_thread.run_sync(lambda: sync.connect(*args, **options)) as blocking:
            yield Lifted(blocking)
    else:
        async with rpcflow.connect(*args, **options) as session:
            yield session


async def greets(api: str, *args: Any, **options: Any) -> None:
    async with opened(api, *args, wait_timeout=20, **options) as session:
        path = await (await session.get_function("tvm.rpc.server.workpath"))("")
        assert path


async def test_unix(api: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with rpcflow.Server(host=f"unix:{path}", key="k") as server:
        for url in (f"unix://{path}", f"unix:{path}", str(server.url)):
            await greets(api, url, key="k")
    assert not path.exists()


async def test_ipv6(api: str) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    async with rpcflow.Server(host="::1", port=0) as server:
        for args in (("::1", server.port), ("[::1]", server.port), (f"tcp://[::1]:{server.port}",)):
            await greets(api, *args)


async def test_names_and_urls(api: str) -> None:
    async with rpcflow.Server(port=0, key="ключ") as server:
        for args in (("localhost", server.port), (f"tcp://localhost:{server.port}",), (str(server.url),)):
            await greets(api, *args, key="ключ")
        with pytest.raises(rpcflow.KeyMismatchError) as caught:
            await greets(api, "127.0.0.1", server.port, key="other")
        assert caught.value.key == "other"


async def test_nobody_there(api: str) -> None:
    with pytest.raises(rpcflow.ConnectionLostError, match=r"127\.0\.0\.1:1"):
        await greets(api, "127.0.0.1", 1)
    with pytest.raises(rpcflow.ConnectionLostError, match="resolved"):
        await greets(api, "no-such-host.invalid", 9091)


@pytest.mark.tcp
@pytest.mark.parametrize("poll", [None, True, False])
async def test_polling_makes_no_difference_but_in_time(api: str, server: sync.Server, poll: bool | None) -> None:
    async with opened(api, "127.0.0.1", server.port, "client", poll=poll) as session:
        for i in range(200):
            assert await call(session, "echo", i) == i


class TestAsyncio:
    """Its own ways of cancelling."""

    @pytest.fixture
    def api(self) -> str:
        return "asyncio"

    async def test_wait_for(self, session: Any, tmp_path: Path) -> None:
        wait = await session.get_function("t.wait_for")
        with pytest.raises(TimeoutError) as caught:
            await asyncio.wait_for(wait(str(tmp_path / "gate")), 0.1)
        assert not isinstance(caught.value, rpcflow.RPCError)
        (tmp_path / "gate").touch()
        assert await call(session, "echo", 1) == 1

    async def test_task_cancel(self, session: Any, tmp_path: Path) -> None:
        wait = await session.get_function("t.wait_for")
        tasks = [asyncio.ensure_future(wait(str(tmp_path / f"gate{i}"))) for i in range(3)]
        await anyio.wait_all_tasks_blocked()
        for task in tasks:
            task.cancel()
        assert await asyncio.gather(*tasks, return_exceptions=True) != []
        (tmp_path / "gate0").touch()
        assert await call(session, "echo", 1) == 1

    async def test_gather(self, session: Any) -> None:
        echo = await session.get_function("t.echo")
        assert await asyncio.gather(*(echo(i) for i in range(50))) == list(range(50))
