# SPDX-License-Identifier: Apache-2.0
"""A tracker comes and goes with its block, whatever happens in it."""

from __future__ import annotations

import logging
import math
import socket
from typing import Any

import anyio
import pytest

import rpcflow
from rpcflow.protocol.tracker import MAGIC_BYTES
from tests.server.support import descriptors, until

from .support import HOST, PATIENCE, PING, Raw

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(backend: str) -> str:
    return backend


@pytest.fixture(autouse=True)
async def nothing_left() -> Any:
    before = descriptors()
    with anyio.fail_after(PATIENCE * 2):
        yield
    with anyio.fail_after(PATIENCE):
        while descriptors() > before:
            await anyio.sleep(0.01)


async def opened(tracker: rpcflow.Tracker) -> Raw:
    return await anyio.to_thread.run_sync(Raw, tracker)


async def ended(peer: Raw) -> bool:
    with peer:
        return await anyio.to_thread.run_sync(peer.ended)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


async def test_leaving_closes_everything() -> None:
    async with rpcflow.Tracker(port=0) as tracker:
        assert str(tracker.url) == f"tcp://127.0.0.1:{tracker.port}"
        peers = [await opened(tracker) for _ in range(5)]
        peers[0].request("k")
        assert "5 connections, 0 devices" in repr(tracker)
    assert is_free(tracker.port)
    for peer in peers:
        assert await ended(peer)


async def test_cancelled_from_outside() -> None:
    peer = None
    with anyio.CancelScope() as scope:
        async with rpcflow.Tracker(port=0) as tracker:
            peer = await opened(tracker)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert peer is not None
    assert await ended(peer)


async def test_errors_leave_bare() -> None:
    with pytest.raises(ZeroDivisionError):
        async with rpcflow.Tracker(port=0) as tracker:
            with await opened(tracker):
                raise ZeroDivisionError


async def test_stopped_by_a_client_and_left_later() -> None:
    async with rpcflow.Tracker(port=0) as tracker:
        peer = await opened(tracker)
        peer.say(2, tracker._stop_key)
        await tracker._wait_stopped()
        assert is_free(tracker.port)
        peer.close()


async def test_it_runs_once() -> None:
    tracker = rpcflow.Tracker(port=0)
    assert "not started" in repr(tracker)
    async with tracker:
        with pytest.raises(RuntimeError, match="once"):
            async with tracker:
                pass


async def test_no_port_is_free() -> None:
    async with rpcflow.Tracker(port=0) as one:
        with pytest.raises(OSError, match="free"):
            async with rpcflow.Tracker(port=one.port, port_end=one.port + 1):
                pass
    async with rpcflow.Tracker(port=one.port, port_end=one.port + 1):  # just left
        pass


async def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with rpcflow.Tracker("[::1]", 0) as tracker:
        assert str(tracker.url) == f"tcp://[::1]:{tracker.port}"

        def talk() -> bytes:
            with socket.create_connection(("::1", tracker.port), PATIENCE) as sock:
                sock.sendall(MAGIC_BYTES)
                return sock.recv(4)

        assert await anyio.to_thread.run_sync(talk) == MAGIC_BYTES


@pytest.mark.parametrize(
    "options",
    [
        {"host": "0.0.0.0"},
        {"host": "unix:/tmp/x"},
        {"port": -1},
        {"port": 65536},
        {"port": 100, "port_end": 100},
        {"timeout": 0},
        {"timeout": math.nan},
        {"peer_timeout": 0},
        {"peer_timeout": math.inf},
    ],
)
async def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        rpcflow.Tracker(**options)


async def test_insecure_is_said_openly() -> None:
    async with rpcflow.Tracker("0.0.0.0", 0, insecure=True) as tracker:
        with await opened(tracker) as peer:
            peer.say(PING)


async def test_silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rpcflow")
    async with rpcflow.Tracker(port=0, silent=True):
        assert not caplog.records
    async with rpcflow.Tracker(port=0):
        assert "tracking at tcp://127.0.0.1:" in caplog.text


async def test_whoever_goes_leaves_nothing() -> None:
    async with rpcflow.Tracker(port=0) as tracker:
        with await opened(tracker) as first:
            before = descriptors()
            for number in range(100):
                with await opened(tracker) as peer:
                    if number % 2:
                        await anyio.to_thread.run_sync(peer.register, "k", f"k:{number}")
                    else:
                        peer.request("l")
            await anyio.to_thread.run_sync(until, lambda: descriptors() <= before)
            assert "1 connections, 0 devices" in repr(tracker)
            first.say(PING)
