# SPDX-License-Identifier: Apache-2.0
"""A server for the blocking API."""

from collections.abc import Iterator
from typing import Any

import pytest

from rpcflow import sync
from tests.client.functions import offer
from tests.overlay import Security

KEY = "blocking"


@pytest.fixture(scope="module")
def server(security: Security) -> Iterator[sync.Server]:
    options: dict[str, Any] = {"silent": True, "server_init_callback": offer(), "max_sessions": 16, **security}
    with sync.Server("127.0.0.1", 0, key=KEY, **options) as running:
        yield running


@pytest.fixture
def session(server: sync.Server) -> Iterator[sync.RPCSession]:
    with sync.connect(server.url, None, KEY) as opened:
        yield opened
