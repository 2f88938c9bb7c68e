# SPDX-License-Identifier: Apache-2.0
"""One server a module, and a way to talk to it by each API: trio, asyncio, and blocking.

With RPCFLOW_TEST_OVER=tls in the environment (make test-tls) the servers end TLS, and all sessions go through that.
"""

import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest
from hypothesis import settings

import rpcflow
from rpcflow import sync
from tests.overlay import Security, Urls

from .functions import offer
from .lifted import Lifted, lower

settings.register_profile("rpcflow", deadline=None, print_blob=True)
settings.load_profile("rpcflow")

Connect = Callable[..., AbstractAsyncContextManager[Any]]
KEY = "client"


@pytest.fixture(params=["trio", "asyncio", "sync"])
def api(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def anyio_backend(api: str) -> str:
    return "trio" if api == "sync" else api


@pytest.fixture(scope="module")
def server(security: Security, urls: Urls) -> Iterator[sync.Server]:
    options: dict[str, Any] = {"silent": True, "server_init_callback": offer(), "max_sessions": 16, **security}
    with sync.Server("127.0.0.1", 0, key=KEY, **options) as running:
        urls[running.port] = running.url
        yield running


@pytest.fixture(scope="module")
def single(security: Security, urls: Urls) -> Iterator[sync.Server]:
    """A server for one at a time."""
    options: dict[str, Any] = {"silent": True, "server_init_callback": offer(), **security}
    with sync.Server("127.0.0.1", 0, key=KEY, **options) as running:
        urls[running.port] = running.url
        yield running


@pytest.fixture
def connect(api: str, server: sync.Server, urls: Urls) -> Connect:
    """Opens a session by this test's API; options as those of connect."""

    @asynccontextmanager
    async def opened(port: int | None = None, key: str = KEY, **options: Any) -> AsyncIterator[Any]:
        url = urls.get(port or server.port, f"tcp://127.0.0.1:{port}")
        if api == "sync":
            with sync.connect(url, None, key, **options) as blocking:
                yield Lifted(blocking)
        else:
            async with rpcflow.connect(url, None, key, **options) as session:
                yield session

    return opened


@pytest.fixture
async def session(connect: Connect) -> AsyncIterator[Any]:
    async with connect() as opened:
        yield opened


async def call(session: Any, name: str, *args: Any) -> Any:
    """Call one of the server's functions."""
    function = await session.get_function(f"t.{name}")
    return await function(*args)


async def eventually(read: Callable[[], Any], expected: Any) -> None:
    """Wait until an awaited reading is as expected."""
    with anyio.fail_after(20):
        while await read() != expected:
            gc.collect()
            await anyio.sleep(0.01)


def core_of(session: Any) -> Any:
    """The connection inside."""
    return lower(session)._core
