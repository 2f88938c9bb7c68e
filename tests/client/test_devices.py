# SPDX-License-Identifier: Apache-2.0
"""Devices by name and number, their attributes, streams; and that nothing takes them for local ones."""

from typing import Any

import numpy as np
import pytest

import rpcflow
from rpcflow.devices import Attribute

from .conftest import Connect, call
from .lifted import lower
from .test_values import Sent

pytestmark = pytest.mark.anyio
KINDS = {
    "cpu": 1,
    "cuda": 2,
    "cl": 4,
    "vulkan": 7,
    "metal": 8,
    "rocm": 10,
    "ext_dev": 12,
    "webgpu": 15,
    "hexagon": 16,
}


@pytest.mark.parametrize("name", KINDS)
async def test_makers(session: Any, name: str) -> None:
    sent = Sent(session)
    for dev_id in (0, 3):
        device = getattr(session, name)(dev_id)
        assert (device.dev_type, device.dev_id) == (KINDS[name], dev_id)
        assert session.device(KINDS[name], dev_id) == device
        assert session.device(name, dev_id) == device
    assert getattr(session, name)() == getattr(session, name)(0)
    assert sent.count == 0


@pytest.mark.parametrize(
    ("name", "number"), [("opencl", 4), ("llvm", 1), ("gpu", 2), ("hip", 10), ("cuda -arch=sm_80", 2), ("oneapi", 14)]
)
async def test_names(session: Any, name: str, number: int) -> None:
    assert session.device(name).dev_type == number


@pytest.mark.parametrize("kind", ["nonsense", "", None, 1.5, True])
async def test_kinds_that_are_none(session: Any, kind: Any) -> None:
    with pytest.raises(ValueError, match="kind of device"):
        session.device(kind)


async def test_equality(session: Any, connect: Connect) -> None:
    assert session.cpu() == session.cpu()
    assert hash(session.cpu()) == hash(session.cpu())
    assert session.cpu() != session.cpu(1)
    assert session.cpu() != session.cuda()
    assert session.cpu() != 1
    async with connect() as other:
        assert other.cpu() != session.cpu()


async def test_attributes(session: Any) -> None:
    cpu = session.cpu()
    assert await cpu.attr("exist") is True
    assert await session.cuda().attr("exist") is False
    assert await cpu.attr("total_global_memory") > 1 << 20
    for name in Attribute.__members__:
        await cpu.attr(name)
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        await cpu.attr("colour")
    with pytest.raises(rpcflow.RPCError):
        await session.cuda().attr("warp_size")


async def test_streams(session: Any) -> None:
    cpu = session.cpu()
    stream = await cpu.create_stream()
    assert type(stream) is int
    await cpu.set_stream(stream)
    await cpu.sync(stream)
    await cpu.sync()
    await cpu.set_stream(0)
    await cpu.free_stream(stream)
    with pytest.raises(rpcflow.RPCError, match="cuda"):
        await session.cuda().sync()
    with pytest.raises(rpcflow.RPCError, match="cuda"):
        await session.cuda().create_stream()
    assert await call(session, "echo", 1) == 1


async def test_nobody_takes_them_for_local_ones(session: Any) -> None:
    """A masked device type crashes other libraries."""
    device = lower(session.cpu())
    tensor = lower(await session.cpu().tensor([1.0]))
    for thing in (device, tensor):
        for name in ("__array__", "__array_interface__", "__cuda_array_interface__"):
            assert not hasattr(thing, name)
            assert not hasattr(type(thing), name)
    with pytest.raises(BufferError, match="another process"):
        np.from_dlpack(tensor)


async def test_tensors_know_theirs(session: Any) -> None:
    tensor = await session.cpu().empty((1,))
    assert tensor.device == session.cpu()
    assert tensor.view((1,)).device == session.cpu()


async def test_reprs(session: Any) -> None:
    tensor = await session.cpu().empty((2, 3), "int8")
    function = await session.get_function("t.echo")
    module = await call(session, "module")
    for thing, words in [
        (session.cpu(), ["cpu(0)"]),
        (session.device(77, 2), ["77", "(2)"]),
        (tensor, ["(2, 3)", "int8", "cpu(0)"]),
        (function, ["t.echo"]),
        (module, ["module"]),
        (await call(session, "shape", 1), ["object"]),
        (session, ["session", "open", "127.0.0.1"]),
    ]:
        for word in [*words, "127.0.0.1"]:
            assert word in repr(thing)
