# SPDX-License-Identifier: Apache-2.0
"""Stock clients and servers that ask who somebody is: stock knows nothing of TLS or tokens, and is told so in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rpcflow import sync
from rpcflow.security.tokens import hash_token, new_token
from tests.client.functions import offer

pytestmark = pytest.mark.interop

POLICY = """
[policy.owner]
[policy.visitor]
functions = ["testing.*", "tvm.rpc.server.*"]
upload = false
load = false
devices = ["cpu:0"]
constructors = ["rpc.LocalSession"]

[client.ada]
policy = "owner"
token = "{token}"
"""
ANONYMOUS = """
[anonymous]
policy = "visitor"
"""


@pytest.fixture(scope="module", params=[True, False], ids=["anonymous", "known alone"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sync.Server]:
    path = tmp_path_factory.mktemp("policy") / "policy.toml"
    path.write_text(POLICY.format(token=hash_token(new_token())) + (ANONYMOUS if request.param else ""))
    with sync.Server("127.0.0.1", 0, silent=True, server_init_callback=offer(), policy=path, max_sessions=4) as server:
        server.lets_anybody_in = request.param  # type: ignore[attr-defined]
        yield server


def test_a_stock_client_at_a_server_with_tls() -> None:
    from tvm import rpc

    with sync.Server("127.0.0.1", 0, silent=True, tls=True) as server:
        with pytest.raises(RuntimeError, match=r"RecvAll|RPC"):
            rpc.connect("127.0.0.1", server.port)
        with sync.connect(server.url, wait_timeout=30) as session:
            assert session.cpu().exist


def test_a_stock_client_under_a_policy(guarded: sync.Server) -> None:
    import tvm
    from tvm import rpc

    if not guarded.lets_anybody_in:  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="AuthenticationError"):
            rpc.connect("127.0.0.1", guarded.port)
        return
    session = rpc.connect("127.0.0.1", guarded.port)
    device = session.cpu(0)
    array = np.arange(10, dtype="float32")
    assert np.array_equal(tvm.runtime.tensor(array, device).numpy(), array)
    with pytest.raises(RuntimeError, match=r"PermissionDeniedError.*write or remove files"):
        session.upload(bytearray(b"x"), "x")
    with pytest.raises(RuntimeError, match=r"PermissionDeniedError.*t\.add"):
        session.get_function("t.add")
    with pytest.raises(RuntimeError, match=r"PermissionDeniedError.*cpu:1"):
        tvm.runtime.tensor(array, session.cpu(1))


def test_a_stock_client_may_not_go_on_from_there(guarded: sync.Server, tmp_path: Path) -> None:
    from tvm import rpc

    made = tmp_path / "made"
    for constructor in (
        ["rpc.Connect", "127.0.0.1", 1, "", False],
        ["rpc.CreatePipeClient", "/usr/bin/touch", str(made)],
    ):
        with pytest.raises(RuntimeError, match=r"PermissionDeniedError|AuthenticationError"):
            rpc.connect("127.0.0.1", guarded.port, session_constructor_args=constructor)
    assert not made.exists()
