# SPDX-License-Identifier: Apache-2.0
"""Several tasks on one session: they take turns, in the order in which they came."""

from typing import Any

import anyio
import numpy as np
import pytest

import rpcflow

from .conftest import Connect, call

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["trio", "asyncio"])
def api(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def test_each_gets_its_own_answer(session: Any) -> None:
    echo = await session.get_function("t.echo")
    answers: dict[int, list[int]] = {i: [] for i in range(20)}

    async def ask(who: int) -> None:
        for i in range(20):
            answers[who].append(await echo(who * 100 + i))

    async with anyio.create_task_group() as tasks:
        for who in answers:
            tasks.start_soon(ask, who)
    assert answers == {who: [who * 100 + i for i in range(20)] for who in range(20)}


async def test_first_come_first_served(session: Any, tmp_path: Any) -> None:
    """The order of the calls is the order of their carrying out."""
    add = await session.get_function("t.echo")
    wait = await session.get_function("t.wait_for")
    for _ in range(5):
        done: list[int] = []

        async def one(i: int, into: list[int] = done) -> None:
            into.append(await add(i))

        gate = tmp_path / "gate"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, str(gate))
            await anyio.wait_all_tasks_blocked()
            for i in range(10):
                tasks.start_soon(one, i)
                await anyio.wait_all_tasks_blocked()
            gate.touch()
        gate.unlink()
        assert done == list(range(10))


async def test_calls_made_without_a_pause_keep_their_order(session: Any) -> None:
    """Tasks that are let go at once call in some order, and are served in that one."""
    order: list[int] = []
    served: list[int] = []
    echo = await session.get_function("t.echo")

    async def one(i: int, ready: anyio.Event, go: anyio.Event) -> None:
        ready.set()
        await go.wait()
        order.append(i)
        await echo(i)
        served.append(i)

    go = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for i in range(20):
            ready = anyio.Event()
            tasks.start_soon(one, i, ready, go)
            await ready.wait()
        go.set()
    assert served == order


async def test_failures_are_their_own(session: Any) -> None:
    outcomes: list[Any] = []

    async def good() -> None:
        outcomes.append(await call(session, "echo", 1))

    async def bad() -> None:
        with pytest.raises(rpcflow.RemoteError):
            await call(session, "fail", "ValueError", "mine")
        outcomes.append("failed")

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(good)
            tasks.start_soon(bad)
    assert sorted(map(str, outcomes)) == ["1"] * 10 + ["failed"] * 10


async def test_big_and_small_together(session: Any) -> None:
    async def big(seed: int) -> None:
        host = np.random.default_rng(seed).integers(0, 256, 4 << 20, np.uint8)
        tensor = await session.cpu().tensor(host)
        assert np.array_equal(await tensor.numpy(), host)

    async def small() -> None:
        for i in range(50):
            assert await call(session, "add", i, 1) == i + 1

    async with anyio.create_task_group() as tasks:
        for seed in range(4):
            tasks.start_soon(big, seed)
            tasks.start_soon(small)


async def test_many_sessions_in_one_program(connect: Connect) -> None:
    """Stock's limit is 32."""
    done: list[int] = []

    async def one(i: int) -> None:
        async with connect(wait_timeout=60) as session:
            done.append(await call(session, "echo", i))

    async with anyio.create_task_group() as tasks:
        for i in range(40):
            tasks.start_soon(one, i)
    assert sorted(done) == list(range(40))


async def test_a_session_holds_no_other_task_up(session: Any, tmp_path: Any) -> None:
    wait = await session.get_function("t.wait_for")
    beats = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, str(tmp_path / "gate"))
        for _ in range(20):
            await anyio.sleep(0.001)
            beats += 1
        (tmp_path / "gate").touch()
    assert beats == 20
