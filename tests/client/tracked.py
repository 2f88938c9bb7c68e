# SPDX-License-Identifier: Apache-2.0
"""A tracker session by each API, with the same face. Blocking calls run in threads: the tracker may be in our loop."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import to_thread

import rpcflow
from rpcflow import sync

from .conftest import eventually
from .functions import offer
from .lifted import lift

HOST = "127.0.0.1"


class Threaded:
    """The blocking one."""

    def __init__(self, target: sync.TrackerSession) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Any:
        return partial(to_thread.run_sync, getattr(self.target, name))

    async def aclose(self) -> None:
        self.target.close()

    @asynccontextmanager
    async def request(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        session = await to_thread.run_sync(partial(self.target.request, *args, **options))
        with session:
            yield lift(session)

    async def request_and_run(self, *args: Any, **options: Any) -> Any:
        return await to_thread.run_sync(partial(self.target.request_and_run, *args, **options))


@asynccontextmanager
async def opened(api: str, *address: Any) -> AsyncIterator[Any]:
    """A tracker session by this API."""
    if api == "sync":
        session = await to_thread.run_sync(sync.connect_tracker, *address)
        with session:
            yield Threaded(session)
    else:
        async with rpcflow.connect_tracker(*address) as tracker:
            yield tracker


@pytest.fixture(scope="module")
def lab() -> Iterator[sync.Tracker]:
    """A tracker with one device ``one`` and four ``many``."""
    options: dict[str, Any] = {"silent": True, "server_init_callback": offer()}
    with sync.Tracker(HOST, 0, silent=True) as running:
        address = (HOST, running.port)
        with (
            sync.Server(HOST, 0, tracker_addr=address, key="one", **options),
            sync.Server(HOST, 0, tracker_addr=address, key="many:of:them", max_sessions=4, **options),
        ):
            yield running


@pytest.fixture(autouse=True)
async def nothing_left(api: str, request: pytest.FixtureRequest) -> Any:
    for name in ("lab", "server", "free"):
        if name in request.fixturenames:
            request.getfixturevalue(name)
    before = len(os.listdir("/proc/self/fd"))
    with anyio.fail_after(100):
        yield
    with anyio.fail_after(20):
        while gc.collect() < 0 or len(os.listdir("/proc/self/fd")) > before:
            await anyio.sleep(0.01)


@pytest.fixture
async def line(api: str, lab: sync.Tracker) -> Any:
    async with opened(api, HOST, lab.port) as session:
        yield session
        await eventually(partial(free, session, "one"), 1)


async def free(session: Any, key: str) -> int:
    count: int = (await session.summary())["queue_info"][key]["free"]
    return count


async def waiting(session: Any, key: str) -> int:
    return int((await session.summary())["queue_info"].get(key, {"pending": 0})["pending"])
