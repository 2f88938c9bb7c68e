# SPDX-License-Identifier: Apache-2.0
"""The doctor, and patients of either kind."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import anyio

from rpcflow import sync
from rpcflow.client.diagnosis import Hop, Mark, Patience, diagnose
from rpcflow.transports.url import address_url
from tests.server.support import descriptors, until

from .strangers import HOST

PATIENT = Patience(30.0, 0.5, 30.0)
"""For what answers, if it is spoken to again."""
BRIEF = Patience(30.0, 0.1, 0.3)
"""For what does not."""
PORT = 30000 + os.getpid() * 97 % 20000
KEY = "board:1"


def examine(where: Any, key: str | None = None, patience: Patience = PATIENT, backend: str = "trio") -> list[Hop]:
    """What the doctor finds; it leaves nothing open."""
    before = descriptors()
    hops: list[Hop] = []
    url = address_url((HOST, where) if isinstance(where, int) else where, 9091)

    async def main() -> None:
        with anyio.fail_after(100):
            await diagnose(url, key, hops.append, patience)

    anyio.run(main, backend=backend)
    until(lambda: descriptors() <= before, "closing all descriptors")  # a stranger's end may be in this process
    assert all(hop.text.isprintable() and hop.advice.isprintable() for hop in hops)
    assert all(hop.advice for hop in hops if hop.mark is Mark.FAIL)
    return hops


def marks(hops: list[Hop]) -> str:
    return " ".join(f"{hop.mark}:{hop.name}" for hop in hops)


@contextlib.contextmanager
def ended(service: Any) -> Iterator[Any]:
    try:
        yield service
    finally:
        service.terminate()


def make_server(kind: str, **options: Any) -> Any:
    if kind == "rpcflow":
        return sync.Server(HOST, options.pop("port", 0), 65536, silent=True, **options)
    from tvm import rpc

    port = options.pop("port", PORT)
    return rpc.Server(HOST, port, port + 500, silent=True, **options)


def make_tracker(kind: str) -> Any:
    if kind == "rpcflow":
        return sync.Tracker(HOST, 0, silent=True)
    from tvm.rpc.tracker import Tracker

    return Tracker(HOST, PORT, PORT + 500, silent=True)


def make_proxy(kind: str, **options: Any) -> Any:
    if kind == "rpcflow":
        return sync.Proxy(HOST, 0, **options)
    from tvm.rpc.proxy import Proxy

    return Proxy(HOST, PORT, PORT + 500, **options)


def free_port() -> int:
    with socket.socket() as place:
        place.bind((HOST, 0))
        port: int = place.getsockname()[1]
        return port
