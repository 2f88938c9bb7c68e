# SPDX-License-Identifier: Apache-2.0
"""Tensors of a session with this process, handed to other libraries by DLPack: the same memory, and no copy."""

from __future__ import annotations

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import ml_dtypes
import numpy as np
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.server import dlpack

DATA = np.arange(12, dtype="float32").reshape(3, 4)


def test_numpy() -> None:
    with sync.LocalSession() as session:
        tensor = session.cpu().tensor(DATA)
        view = np.from_dlpack(tensor)
        assert np.array_equal(view, DATA)
        view[1, 2] = 99
        assert tensor.numpy()[1, 2] == 99
        part = np.from_dlpack(tensor.view((2, 2), byte_offset=16))
        part[0, 0] = 7
        assert view[1, 0] == 7
        assert np.from_dlpack(session.cpu().tensor(np.zeros((0, 3)))).shape == (0, 3)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_numpy_from_the_async_api(backend: str) -> None:
    async def main() -> None:
        async with rpcflow.LocalSession() as session:
            tensor = await session.cpu().tensor(DATA)
            view = np.from_dlpack(tensor)
            view[0, 0] = 5
            assert (await tensor.numpy())[0, 0] == 5
            assert np.array_equal(await (await session.cpu().tensor(tensor)).numpy(), view)

    anyio.run(main, backend=backend)


def test_tvm_ffi() -> None:
    ffi = pytest.importorskip("tvm_ffi")
    with sync.LocalSession() as session:
        tensor = session.cpu().tensor(np.arange(4).astype(ml_dtypes.bfloat16))
        shared = ffi.from_dlpack(tensor)
        assert str(shared.dtype) == "bfloat16"
        assert dlpack.data_address(shared) == dlpack.data_address(ffi.from_dlpack(tensor))


def test_jax() -> None:
    """In a process of its own: it does not like those that fork."""
    pytest.importorskip("jax")
    done = subprocess.run([sys.executable, "-c", _JAX], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "right\n", done.stderr


_JAX = """
import jax.numpy
import ml_dtypes
import numpy as np
from rpcflow import sync

data = np.arange(12, dtype="float32").reshape(3, 4)
with sync.LocalSession() as session:
    for values in (data, data.astype(ml_dtypes.bfloat16)):
        shared = jax.numpy.from_dlpack(session.cpu().tensor(values))
        assert np.array_equal(np.asarray(shared), values)
    tensor = session.cpu().tensor(data)
    assert jax.numpy.from_dlpack(tensor).unsafe_buffer_pointer() == np.from_dlpack(tensor).ctypes.data
print("right")
"""


def test_many_threads() -> None:
    """Some take what they are given, some drop it; nobody's memory goes before its time."""
    with sync.LocalSession() as session:
        tensors = [session.cpu().tensor(np.full(64, i, "float32")) for i in range(8)]

        def use(i: int) -> bool:
            kept = []
            for turn in range(300):
                tensor = tensors[(i + turn) % 8]
                if turn % 3:
                    kept.append((np.from_dlpack(tensor), (i + turn) % 8))
                else:
                    tensor.__dlpack__()
                if len(kept) > 20:
                    kept = kept[10:]
            return all((view == value).all() for view, value in kept)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(use, range(4)))


def test_memory_outlives_its_tensor_and_the_session() -> None:
    with sync.LocalSession() as session:
        tensor = session.cpu().tensor(DATA)
        view = np.from_dlpack(tensor)
        del tensor
        gc.collect()
        session.cpu().empty(3)  # what was dropped is freed with the next request
        assert np.array_equal(view, DATA)
    assert np.array_equal(view, DATA)


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (2, 0)])
def test_what_nobody_takes_is_let_go(version: Any) -> None:
    with sync.LocalSession() as session:
        tensor = session.cpu().tensor(DATA)
        tensor.__dlpack__()
        capsule = tensor.__dlpack__(max_version=version)  # what was dropped before is let go with the next
        before = len(dlpack._held)
        assert ("dltensor_versioned" in repr(capsule)) == (version is not None and version[0] > 0)
        other = tensor.__dlpack__(max_version=version)
        assert len(dlpack._held) == before + 1  # both are still there
        del capsule, other
        last = tensor.__dlpack__(max_version=version)
        assert len(dlpack._held) == before
        del last


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4"])
def test_what_numpy_does_not_know(dtype: str) -> None:
    """It says so itself, and nothing is kept for it."""
    with sync.LocalSession() as session:
        before = len(dlpack._held)
        for _ in range(20):
            with pytest.raises((RuntimeError, BufferError), match="nsupported"):
                np.from_dlpack(session.cpu().empty((64,), dtype))
        assert len(dlpack._held) <= before + 1


def test_what_cannot_be_shared(tmp_path: Any) -> None:
    with sync.Server("127.0.0.1", 0, silent=True) as server:
        with sync.connect("127.0.0.1", server.port) as session:
            far = session.cpu().tensor(DATA)
            with pytest.raises(BufferError, match="another process"):
                np.from_dlpack(far)
            with pytest.raises(BufferError, match="another process"):
                far.__dlpack_device__()  # where it says so, others would look there
            with pytest.raises(BufferError, match="another process"):
                far.__dlpack__(max_version=(1, 0))
    with sync.LocalSession() as session:
        tensor = session.cpu().tensor(DATA)
        with pytest.raises(BufferError, match="no copy"):
            tensor.__dlpack__(copy=True)
        with pytest.raises(BufferError, match="no other device"):
            tensor.__dlpack__(dl_device=(2, 0))
    with pytest.raises(rpcflow.RPCError):
        tensor.__dlpack__()
