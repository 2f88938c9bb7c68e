# SPDX-License-Identifier: Apache-2.0
"""The tracker is killed with -9 and started again: all idle servers come back, sessions do not notice, whoever waits
for a board gets one or is told, and no match key is good twice."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

import rpcflow
from rpcflow import sync
from tests.interop.conftest import need_tvm
from tests.server.support import Raw as RawClient
from tests.server.support import hello
from tests.tracker.support import REQUEST
from tests.tracker.support import Raw as RawTracked

from .household import HOST, KEY, PATIENCE, Household, wait_until

BOARDS = 10
MATCH, MISMATCH = 0xFF271, 0xFF273


@pytest.fixture(scope="module")
def household(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Household]:
    with Household(tmp_path_factory.mktemp("household"), BOARDS) as running:
        yield running


@pytest.fixture
def all_free(household: Household) -> Iterator[None]:
    yield
    household.wait_free(BOARDS)


@pytest.mark.xdist_group("tracker restart")
@pytest.mark.usefixtures("all_free")
class TestRestart:
    def test_idle_servers_come_back_and_a_call_goes_on(self, household: Household, tmp_path: Path) -> None:
        begun, end = tmp_path / "begun", tmp_path / "end"
        with ThreadPoolExecutor() as pool, sync.connect_tracker(HOST, household.port) as asking:
            with asking.request(KEY, wait_timeout=PATIENCE) as session, contextlib.ExitStack() as stack:
                call = pool.submit(session.get_function("board.run"), str(begun), str(end))
                stack.callback(end.touch)
                wait_until(begun.exists, "the call's beginning")
                household.kill_tracker()
                with pytest.raises(rpcflow.ConnectionLostError):
                    asking.summary()
                household.start_tracker()
                household.wait_free(BOARDS - 1)
                assert asking.summary()["queue_info"][KEY] == {"free": BOARDS - 1, "pending": 0}
                assert not call.done()
                end.touch()
                assert call.result(PATIENCE) == "ran to its end"
                assert session.get_function("board.take")()
            wait_until(lambda: asking.summary()["queue_info"][KEY]["free"] == BOARDS, "the board's return")

    def test_who_waits(self, household: Household) -> None:
        """With tries left, as by default for some seconds, it gets a board of the new tracker; else it is told."""
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor())
            asking = stack.enter_context(sync.connect_tracker(HOST, household.port))
            held = [stack.enter_context(asking.request(KEY, wait_timeout=PATIENCE)) for _ in range(BOARDS)]

            def request(max_retry: int) -> str:
                with asking.request(KEY, max_retry=max_retry, wait_timeout=2 * PATIENCE) as session:
                    return str(session.get_function("board.take")())

            async def request_async(max_retry: int) -> str:
                async with rpcflow.connect_tracker(HOST, household.port) as tracker:
                    async with tracker.request(KEY, max_retry=max_retry, wait_timeout=2 * PATIENCE) as session:
                        return str(await (await session.get_function("board.take"))())

            patient = [pool.submit(request, 1000), pool.submit(trio.run, request_async, 1000)]
            hasty = [pool.submit(request, 1), pool.submit(trio.run, request_async, 1)]
            wait_until(lambda: household.queue() == (0, 4), "four who wait")
            household.kill_tracker()
            for one in hasty:
                with pytest.raises(rpcflow.ConnectionLostError, match=f"{KEY}.*after 1 tr"):
                    one.result(PATIENCE)
            household.start_tracker()
            wait_until(lambda: household.queue() == (0, 2), "two who wait again")
            assert not any(one.done() for one in patient)
            held.pop().close()
            held.pop().close()
            assert all(one.result(PATIENCE).startswith("board-") for one in patient)

    def test_match_keys(self, household: Household) -> None:
        """What the old tracker has handed out is good, once; what the new one hands out is something else."""
        seen = set()
        with RawTracked(household.port) as tracker:
            grants = [tracker.ask(REQUEST, KEY, "", 1) for _ in range(3)]
        household.kill_tracker()
        household.start_tracker()
        for code, (host, port, key) in grants:
            assert code == 0
            assert host == HOST
            seen.add(key)
            assert greeted(port, key) == MATCH
            assert greeted(port, key) == MISMATCH
        household.wait_free(BOARDS)
        with RawTracked(household.port) as tracker:
            for _ in range(BOARDS):
                code, (_, port, key) = tracker.ask(REQUEST, KEY, "", 1)
                assert code == 0
                assert key not in seen
                seen.add(key)
                assert greeted(port, key) == MATCH
                assert greeted(port, key) == MISMATCH
        assert len(seen) == 3 + BOARDS

    @pytest.mark.interop
    def test_stock_servers_come_back_too(self, household: Household) -> None:
        need_tvm()
        import tvm.rpc

        first = 42000 + os.getpid() * 97 % 15000
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                server = tvm.rpc.Server(
                    HOST, first, first + 500, key="stock", tracker_addr=(HOST, household.port), silent=True
                )
                stack.callback(server.terminate)
            asking: Any = stack.enter_context(sync.connect_tracker(HOST, household.port))
            free: Callable[[], Any] = lambda: asking.summary()["queue_info"].get("stock")  # noqa: E731
            wait_until(lambda: free() == {"free": 2, "pending": 0}, "registration")
            with asking.request("stock", wait_timeout=PATIENCE) as session:
                household.kill_tracker()
                assert session.get_function("testing.echo")(1) == 1
                household.start_tracker()
                wait_until(lambda: free() == {"free": 1, "pending": 0}, "the idle one's return")
                assert session.get_function("testing.echo")(2) == 2
            wait_until(lambda: free() == {"free": 2, "pending": 0}, "the other one's return")
            for _ in range(2):
                with asking.request("stock", wait_timeout=PATIENCE) as session:
                    assert session.get_function("testing.echo")(3) == 3


def greeted(port: int, key: str) -> int | None:
    """What a server answers to a client that comes with a key, and leaves."""

    with RawClient(SimpleNamespace(port=port), hello(key)) as client:
        return client.answer()
