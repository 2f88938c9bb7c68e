# SPDX-License-Identifier: Apache-2.0
"""Trackers on both event loops, in another thread, so that tests can talk to them over plain sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import anyio.from_thread
import pytest

import rpcflow
from tests.server.support import descriptors, until

Host = Callable[..., contextlib.AbstractContextManager[rpcflow.Tracker]]


@pytest.fixture(params=["trio", "asyncio"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def host(backend: str) -> Iterator[Host]:
    """Gives trackers; at the end no descriptor may be left of them."""
    before = descriptors()

    @contextlib.contextmanager
    def hosted(**options: Any) -> Iterator[rpcflow.Tracker]:
        with anyio.from_thread.start_blocking_portal(backend) as portal:
            with portal.wrap_async_context_manager(rpcflow.Tracker(**{"port": 0, **options})) as tracker:
                yield tracker

    yield hosted
    until(lambda: descriptors() <= before, "closing all descriptors")


@pytest.fixture
def tracker(host: Host) -> Iterator[rpcflow.Tracker]:
    with host() as running:
        yield running
