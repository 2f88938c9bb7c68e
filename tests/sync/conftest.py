# SPDX-License-Identifier: Apache-2.0
"""A server for the blocking API."""

from collections.abc import Iterator

import pytest

from rpcflow import sync
from tests.client.functions import offer

KEY = "blocking"


@pytest.fixture(scope="module")
def server() -> Iterator[sync.Server]:
    with sync.Server("127.0.0.1", 0, key=KEY, silent=True, server_init_callback=offer(), max_sessions=16) as running:
        yield running


@pytest.fixture
def session(server: sync.Server) -> Iterator[sync.RPCSession]:
    with sync.connect("127.0.0.1", server.port, KEY) as opened:
        yield opened
