# SPDX-License-Identifier: Apache-2.0
"""Servers on both event loops, and a look for what they leave behind after each test."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest

import rpcflow

from .functions import offer
from .support import PATIENCE, Traces, descriptors, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="servers are for Linux")
Host = Callable[..., contextlib.AbstractContextManager[rpcflow.Server]]
Run = Callable[..., Any]


@pytest.fixture(params=["trio", "asyncio"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    """What a server leaves behind. There must be nothing at the end, and no descriptor more than before."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    found = Traces(folder, monkeypatch)
    before = descriptors()
    yield found
    left = found.processes()
    assert not left, f"processes are left: {left}"
    assert not found.files()
    # Connections end on threads that are on their way out.
    until(lambda: descriptors() <= before, "closing all descriptors")


@pytest.fixture
def host(backend: str, traces: Traces) -> Host:
    """Gives servers that run in another thread of this process, so that tests can use the blocking API."""

    @contextlib.contextmanager
    def hosted(*more: Callable[[], object], **options: Any) -> Iterator[rpcflow.Server]:
        options = {"port": 0, "server_init_callback": offer(*more), **options}
        with anyio.from_thread.start_blocking_portal(backend) as portal:
            with portal.wrap_async_context_manager(rpcflow.Server(**options)) as server:
                yield server

    return hosted


@pytest.fixture
def run(backend: str, traces: Traces) -> Run:
    """Runs an async function on one event loop and the other, not for ever."""

    def go(main: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        async def bounded() -> Any:
            with anyio.fail_after(PATIENCE * 2):
                return await main(*args)

        return anyio.run(bounded, backend=backend)

    return go


@pytest.fixture(params=[False, True], ids=["fork", "no_fork"])
def no_fork(request: pytest.FixtureRequest) -> bool:
    value: bool = request.param
    return value
