# SPDX-License-Identifier: Apache-2.0
"""A server for each backend, whose sessions go over TCP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rpcflow import sync

from .functions import offer
from .rigs import KINDS, Rig, prepared


@pytest.fixture(scope="module", params=KINDS)
def rig(request: pytest.FixtureRequest) -> Rig:
    return prepared(request.param)


@pytest.fixture(scope="module")
def server(rig: Rig) -> Iterator[sync.Server]:
    options: dict[str, Any] = {"silent": True, "max_sessions": 8, "server_init_callback": offer(rig.prepare)}
    with sync.Server("127.0.0.1", 0, **options) as running:
        yield running


@pytest.fixture(scope="module")
def shared(server: sync.Server) -> Iterator[sync.RPCSession]:
    """One session for all that leaves nothing behind: drivers take their time to start."""
    with sync.connect("127.0.0.1", server.port, session_timeout=600) as session:
        yield session


@pytest.fixture
def session(shared: sync.RPCSession) -> sync.RPCSession:
    return shared


@pytest.fixture
def device(rig: Rig, session: sync.RPCSession) -> Any:
    return session.device(rig.kind, 0)
