# SPDX-License-Identifier: Apache-2.0
"""What every backend does alike with kernels, through a real session over TCP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.errors import RemoteError

from .rigs import WITH_KERNELS, Rig, prepared

RNG = np.random.default_rng(7)


@pytest.fixture(scope="module", params=WITH_KERNELS)
def rig(request: pytest.FixtureRequest) -> Rig:
    return prepared(request.param)


def kernel(rig: Rig, session: Any, name: str) -> Any:
    return rig.load(session, name)[name]


def vectors(device: Any, n: int) -> tuple[Any, Any, Any, Any, Any]:
    a, b = RNG.random(n, "float32"), RNG.random(n, "float32")
    return a, b, device.tensor(a), device.tensor(b), device.tensor(np.zeros(n, "float32"))


@pytest.fixture
def vadd(rig: Rig, session: sync.RPCSession) -> Any:
    return kernel(rig, session, "vadd")


def test_vector_add(device: Any, vadd: Any) -> None:
    n = 1000
    a, b, x, y, z = vectors(device, n)
    assert vadd(x, y, z, n, grid=16, block=64) is None
    device.sync()
    assert np.allclose(z.numpy(), a + b)


def test_the_six_numbers(device: Any, vadd: Any) -> None:
    a, b, x, y, z = vectors(device, 64)
    vadd(x, y, z, 64, 1, 1, 1, 64, 1, 1)
    assert np.allclose(z.numpy(), a + b)


def test_fewer_elements(device: Any, vadd: Any) -> None:
    a, b, x, y, z = vectors(device, 128)
    vadd(x, y, z, 50, grid=(2,), block=(64, 1))
    assert np.allclose(z.numpy(), np.where(np.arange(128) < 50, a + b, 0))


def test_views_as_arguments(device: Any, vadd: Any) -> None:
    a, b, x, y, z = vectors(device, 1024)
    vadd(x.view((512,), byte_offset=2048), y.view((512,)), z.view((512,), byte_offset=1024), 512, grid=8, block=64)
    expected = np.zeros(1024, "float32")
    expected[256:768] = a[512:] + b[:512]
    assert np.allclose(z.numpy(), expected)


def test_tiled_matmul(rig: Rig, device: Any, session: sync.RPCSession) -> None:
    matmul = kernel(rig, session, "matmul")
    n = 64
    a, b = RNG.random((n, n), "float32"), RNG.random((n, n), "float32")
    c = device.empty((n, n))
    matmul(device.tensor(a), device.tensor(b), c, n, grid=(n // 8, n // 8), block=(8, 8))
    assert np.allclose(c.numpy(), a @ b, rtol=1e-4)


def test_scalars(rig: Rig, device: Any, session: sync.RPCSession) -> None:
    scale = kernel(rig, session, "scale")
    data = RNG.random(64).astype("float32")
    x = device.tensor(data)
    scale(x, 2.5, 64, grid=1, block=64)
    scale(x, 2, 32, grid=1, block=64)
    data *= np.float32(2.5)
    data[:32] *= 2
    assert np.allclose(x.numpy(), data)


def test_float16(rig: Rig, device: Any, session: sync.RPCSession) -> None:
    if not rig.float16:
        pytest.skip(f"{rig.kind}: the device has no float16")
    half = kernel(rig, session, "half_")
    data = np.arange(64, dtype="float16")
    x = device.tensor(data)
    half(x, 64, grid=1, block=64)
    assert np.array_equal(x.numpy(), data * 2)


def test_launches_in_streams(device: Any, vadd: Any, rig: Rig) -> None:
    _, b, _, y, z = vectors(device, 4096)
    stream = device.create_stream()
    device.set_stream(stream)
    for _ in range(20):
        vadd(z, y, z, 4096, grid=64, block=64)  # each needs the one before
    device.sync(stream)
    device.set_stream(0)
    assert np.allclose(z.numpy(), 20 * b, rtol=1e-4)
    device.free_stream(stream)


def test_time_evaluator(device: Any, rig: Rig, session: sync.RPCSession) -> None:
    module = rig.load(session, "vadd")
    _, _, x, y, z = vectors(device, 1 << 16)
    evaluator = module.time_evaluator("vadd", device, number=5, repeat=3)
    result = evaluator(x, y, z, 1 << 16, grid=1 << 10, block=64)
    assert len(result.results) == 3
    assert all(0 < seconds < 1 for seconds in result.results)
    grown = module.time_evaluator("vadd", device, number=1, repeat=2, min_repeat_ms=2)
    assert all(0 < seconds < 1 for seconds in grown(x, y, z, 64, grid=1, block=64).results)


BAD_ARGUMENTS: list[tuple[str, Callable[..., Any], str]] = [
    ("no launch", lambda f, x, n: f(x, x, x, n), "grid"),
    ("too few", lambda f, x, n: f(x, x, n, grid=1, block=64), "takes 4 arguments"),
    ("too many", lambda f, x, n: f(x, x, x, n, n, grid=1, block=64), "takes 4 arguments"),
    ("none", lambda f, x, n: f(), "takes 4 arguments"),
    ("float for int", lambda f, x, n: f(x, x, x, 1.5, grid=1, block=64), "argument 3"),
    ("text for int", lambda f, x, n: f(x, x, x, "n", grid=1, block=64), "argument 3"),
    ("too large an int", lambda f, x, n: f(x, x, x, 1 << 40, grid=1, block=64), "argument 3"),
    ("int for tensor", lambda f, x, n: f(x, n, x, n, grid=1, block=64), "argument 1"),
    ("None for tensor", lambda f, x, n: f(x, None, x, n, grid=1, block=64), "argument 1"),
    ("tensor for int", lambda f, x, n: f(x, x, x, x, grid=1, block=64), "argument 3"),
    ("empty grid", lambda f, x, n: f(x, x, x, n, 0, 1, 1, 64, 1, 1), "grid"),
    ("negative block", lambda f, x, n: f(x, x, x, n, 1, 1, 1, -64, 1, 1), "block"),
    ("part of a block", lambda f, x, n: f(x, x, x, n, 1, 1, 1, 64, 0, 0), "block"),
    ("float in grid", lambda f, x, n: f(x, x, x, n, 1.0, 1, 1, 64, 1, 1), "grid and block"),
    ("huge block", lambda f, x, n: f(x, x, x, n, grid=1, block=(1 << 20, 1, 1)), "block"),
    ("huge grid", lambda f, x, n: f(x, x, x, n, grid=(1, 1 << 40, 1), block=64), "grid"),
]


@pytest.mark.parametrize(
    ("call", "words"), [case[1:] for case in BAD_ARGUMENTS], ids=[case[0] for case in BAD_ARGUMENTS]
)
def test_arguments_that_do_not_fit(device: Any, vadd: Any, call: Callable[..., Any], words: str) -> None:
    x = device.tensor(np.ones(64, "float32"))
    with pytest.raises(RemoteError, match=words) as caught:
        call(vadd, x, 64)
    assert "KernelError" in str(caught.value)
    device.sync()
    assert np.array_equal(x.numpy(), np.ones(64))  # nothing was launched
    vadd(x, x, x, 64, grid=1, block=64)
    assert np.array_equal(x.numpy(), np.full(64, 2))


def test_a_tensor_of_another_device(device: Any, vadd: Any, session: sync.RPCSession) -> None:
    x, elsewhere = device.empty(64), session.cpu().empty(64)
    with pytest.raises(RemoteError, match=r"argument 1 .*another kind"):
        vadd(x, elsewhere, x, 64, grid=1, block=64)


def test_a_freed_tensor(device: Any, vadd: Any) -> None:
    x, y = device.empty(64), device.empty(64)
    y._core.machine.drop_data(y._view.device, y._view.data)
    device.sync()
    with pytest.raises(RemoteError, match="handle"):
        vadd(x, y, x, 64, grid=1, block=64)
    y._owner.number = x.device.empty(1)._owner.number  # what is collected later shall not free it a second time


def test_source_that_does_not_compile(rig: Rig, session: sync.RPCSession) -> None:
    name, data, words = rig.broken
    session.upload(data, name)
    with pytest.raises(RemoteError, match=words) as caught:
        session.load_module(name, signature=rig.signature)
    assert "KernelError" in str(caught.value)
    assert name in str(caught.value)


def test_no_source_at_all(rig: Rig, session: sync.RPCSession) -> None:
    suffix = "." + rig.files["vadd"][0].rpartition(".")[2]
    for data in (b"", b"\xff\xfe\x00\x01garbage", bytes(range(256)) * 9):
        session.upload(data, f"garbage{suffix}")
        with pytest.raises(RemoteError, match="KernelError"):
            session.load_module(f"garbage{suffix}", backend=rig.kind)


def test_no_such_kernel(rig: Rig, session: sync.RPCSession) -> None:
    module = rig.load(session, "vadd")
    with pytest.raises(rpcflow.FunctionNotFoundError):
        module["no_such_kernel"]


def test_signatures(rig: Rig, session: sync.RPCSession, device: Any) -> None:
    name, data = rig.files["vadd"]
    session.upload(data, name)
    with pytest.raises(RemoteError, match="KernelError"):
        session.load_module(name, signature={**(rig.signature or {}), "vadd": "float32*, nonsense"})["vadd"]
    given = {**(rig.signature or {}), "vadd": "float32*, float32*, float32*, int32"}
    vadd = session.load_module(name, backend=rig.kind, signature=given)["vadd"]
    a, b, x, y, z = vectors(device, 64)
    vadd(x, y, z, 64, grid=1, block=64)
    assert np.allclose(z.numpy(), a + b)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_async_launches(rig: Rig, server: sync.Server, backend: str) -> None:
    name, source = rig.files["vadd"]

    async def main() -> Any:
        async with rpcflow.connect(f"tcp://127.0.0.1:{server.port}") as session:
            await session.upload(source, name)
            module = await session.load_module(name, backend=rig.kind, signature=rig.signature)
            device = session.device(rig.kind)
            x = await device.tensor(np.ones(100, "float32"))
            z = await device.empty((100,))
            await module["vadd"](x, x, z, 100, grid=2, block=64)
            found = await module.get_function("vadd")
            await found(x, z, z, 100, grid=(2, 1, 1), block=(64, 1, 1))
            evaluator = await module.time_evaluator("vadd", device, number=2)
            assert (await evaluator(x, z, x, 100, grid=2, block=64)).mean > 0
            return await z.numpy()

    assert np.array_equal(anyio.run(main, backend=backend), np.full(100, 3))


def test_sessions_side_by_side(rig: Rig, server: sync.Server) -> None:
    """Each has devices, memory and streams of its own."""
    with sync.connect("127.0.0.1", server.port) as one, sync.connect("127.0.0.1", server.port) as two:
        x, y = one.device(rig.kind).tensor(np.ones(10)), two.device(rig.kind).tensor(np.zeros(10))
        one.device(rig.kind).create_stream()
        assert x.numpy().sum() == 10
        assert y.numpy().sum() == 0
