# SPDX-License-Identifier: Apache-2.0
"""What remote handles stand for is freed when their objects are, without blocking anyone."""

import gc
import threading
from typing import Any

import numpy as np
import pytest

from rpcflow.session.client import MAX_FREES

from .conftest import Connect, call, core_of, eventually
from .test_values import Sent

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("kind", ["function", "tensor", "object"])
async def test_freed_with_the_next_request(session: Any, kind: str) -> None:
    make = await session.get_function({"function": "t.adder", "tensor": "t.tensor", "object": "t.thing"}[kind])
    live = await session.get_function("t.live")
    things = [await make(i + 1) for i in range(10)]
    assert await live(kind) == 10
    del things[3:]
    gc.collect()
    assert await live(kind) == 3
    things.clear()
    gc.collect()
    assert await live(kind) == 0


async def test_dropping_sends_nothing_by_itself(session: Any) -> None:
    functions = [await session.get_function("t.echo") for _ in range(5)]
    sent = Sent(session)
    core = core_of(session)
    assert core.machine.dropped == 0
    functions.clear()
    gc.collect()
    assert sent.count == 0
    assert core.machine.dropped == 5
    await session.get_function("t.echo")
    assert core.machine.dropped <= 1


async def test_from_another_thread(session: Any) -> None:
    add = [await call(session, "adder", 1)]
    thread = threading.Thread(target=add.clear)
    thread.start()
    thread.join()
    await eventually(lambda: call(session, "live", "function"), 0)


async def test_more_than_fit_into_one_flight(session: Any) -> None:
    make = await session.get_function("t.adder")
    live = await session.get_function("t.live")
    count = 2 * MAX_FREES + 50
    things = [await make(i) for i in range(count)]
    assert await live("function") == count
    things.clear()
    gc.collect()
    await live("function")
    await eventually(lambda: live("function"), 0)
    assert core_of(session).machine.dropped == 0


async def test_memory_of_a_tensor_and_its_views(session: Any) -> None:
    core = core_of(session)
    echo = await session.get_function("t.echo")
    tensor = await session.cpu().tensor(np.arange(4, dtype="int32"))
    view = tensor.view((2,), byte_offset=4)
    deeper = view.view((1,))
    del tensor
    gc.collect()
    assert core.machine.dropped == 0
    assert (await deeper.numpy()).tolist() == [1]
    del view
    gc.collect()
    assert core.machine.dropped == 0
    del deeper
    gc.collect()
    assert core.machine.dropped == 1
    assert await echo(1) == 1
    assert core.machine.dropped == 0


async def test_an_argument_dropped_while_the_call_runs(session: Any) -> None:
    for i in range(20):
        assert await call(session, "call", await call(session, "adder", i), 1) == i + 1
        assert await call(session, "sum", await call(session, "tensor", 3)) == 3.0


async def test_the_same_function_looked_up_twice(session: Any) -> None:
    first, second = await session.get_function("t.echo"), await session.get_function("t.echo")
    del first
    gc.collect()
    assert await call(session, "none") is None
    assert await second(4) == 4


async def test_a_failed_call_leaves_nothing(session: Any) -> None:
    import rpcflow

    add = await call(session, "adder", 1)
    with pytest.raises(rpcflow.RemoteError):
        await add("text")
    del add
    gc.collect()
    assert await call(session, "live", "function") == 0


async def test_after_the_end_nothing_is_kept(connect: Connect) -> None:
    async with connect() as session:
        add = await call(session, "adder", 1)
        core = core_of(session)
    del add
    gc.collect()
    assert core.machine.dropped == 0
