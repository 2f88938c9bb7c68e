# SPDX-License-Identifier: Apache-2.0
"""A blocking session in several threads: calls queue."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import rpcflow
from rpcflow import sync as rpc

from .conftest import KEY


def test_each_gets_its_own_answer(session: rpc.RPCSession) -> None:
    echo = session.get_function("t.echo")

    def ask(who: int) -> bool:
        return all(echo(who * 1000 + i) == who * 1000 + i for i in range(100))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))


def test_operations_of_several_requests_are_not_torn_apart(session: rpc.RPCSession) -> None:
    def work(seed: int) -> bool:
        host = np.random.default_rng(seed).integers(0, 256, 1 << 20, np.uint8)
        tensor = session.cpu().tensor(host)
        session.upload(host.tobytes(), f"f{seed}")
        return np.array_equal(tensor.numpy(), host) and session.download(f"f{seed}") == host.tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_handles_dropped_in_other_threads(session: rpc.RPCSession) -> None:
    make, live = session.get_function("t.adder"), session.get_function("t.live")

    def work(i: int) -> int:
        return int(make(i)(1))

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(work, range(100))) == list(range(1, 101))
    assert live("function") == 0


def test_failures_are_their_own(session: rpc.RPCSession) -> None:
    fail, echo = session.get_function("t.fail"), session.get_function("t.echo")

    def work(i: int) -> str:
        if i % 2:
            return str(echo(str(i)))
        with pytest.raises(rpcflow.RemoteError, match=f"number {i}"):
            fail("ValueError", f"number {i}")
        return str(i)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(50))) == [str(i) for i in range(50)]


@pytest.mark.parametrize("poll", [None, False])
def test_close_while_another_thread_is_in_a_call(server: rpc.Server, tmp_path: Path, poll: bool | None) -> None:
    """That call fails, and the server stops it."""
    ticks = tmp_path / "ticks"
    session = rpc.connect(server.url, None, KEY, poll=poll)
    tick = session.get_function("t.tick")
    errors: list[Exception] = []

    def run() -> None:
        try:
            tick(str(ticks))
        except rpcflow.RPCError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 20
    while not ticks.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    began = time.monotonic()
    session.close()
    thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - began < 5
    assert [type(error) for error in errors] == [rpcflow.ConnectionLostError]
    size = -1
    while size != ticks.stat().st_size:
        assert time.monotonic() < deadline + 20
        size = ticks.stat().st_size
        time.sleep(0.3)


def test_a_call_that_waits_for_its_turn_fails_when_the_session_is_closed(server: rpc.Server, tmp_path: Path) -> None:
    session = rpc.connect(server.url, None, KEY)
    wait, echo = session.get_function("t.begin_and_wait_for"), session.get_function("t.echo")
    begun = tmp_path / "begun"
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(wait, str(begun), str(tmp_path / "never"))
        while not begun.exists():
            time.sleep(0.005)
        queued = pool.submit(echo, 1)
        time.sleep(0.05)
        session.close()
        for future in (running, queued):
            with pytest.raises(rpcflow.ConnectionLostError, match="closed"):
                future.result(10)


def test_closed_by_two_threads_at_once(server: rpc.Server) -> None:
    for _ in range(5):
        session = rpc.connect(server.url, None, KEY)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _, s=session: s.close(), range(4)))
        assert "closed" in repr(session)
