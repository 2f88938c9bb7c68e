# SPDX-License-Identifier: Apache-2.0
"""Proxies on both event loops, and a look for what they leave behind after each test."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio.from_thread
import pytest
from hypothesis import settings

import rpcflow
from tests.server.support import descriptors, until

if not sys.platform.startswith("linux"):
    collect_ignore_glob = ["test_*.py"]

settings.register_profile("rpcflow", deadline=None, print_blob=True)
settings.load_profile("rpcflow")

Host = Callable[..., contextlib.AbstractContextManager[rpcflow.Proxy]]


@pytest.fixture(params=["trio", "asyncio"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Afterwards there is no descriptor, no pipe and no thread more than before."""
    before, threads = descriptors(), threading.active_count()
    yield
    until(lambda: descriptors() <= before, "closing all descriptors")
    until(lambda: threading.active_count() <= threads, "ending all threads")


@pytest.fixture
def host(backend: str, nothing_left: None) -> Host:
    """Gives proxies that run in another thread of this process, so that tests can use plain sockets."""

    @contextlib.contextmanager
    def hosted(**options: Any) -> Iterator[rpcflow.Proxy]:
        with anyio.from_thread.start_blocking_portal(backend) as portal:
            with portal.wrap_async_context_manager(rpcflow.Proxy(**{"port": 0, **options})) as proxy:
                yield proxy

    return hosted


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
