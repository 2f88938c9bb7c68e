# SPDX-License-Identifier: Apache-2.0
"""What every backend does alike, through a real session over TCP."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.errors import RemoteError

from .rigs import Rig

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]
RNG = np.random.default_rng(7)


# ------------------------------------------------------------------------------------------------ devices


def test_attributes(device: Any, session: sync.RPCSession, rig: Rig) -> None:
    assert device.exist is True
    assert session.device(rig.kind, 99).exist is (rig.kind == "cpu")
    if rig.kind != "cpu":
        assert isinstance(device.device_name, str)
        assert device.device_name
        assert device.max_threads_per_block is None or device.max_threads_per_block > 0
        assert len(device.max_thread_dimensions) == 3
    for name in rpcflow.devices.Attribute.__members__:
        device.attr(name)  # None, or a value that travels


def test_no_such_device(session: sync.RPCSession, rig: Rig) -> None:
    if rig.kind == "cpu":
        pytest.skip("any number is the one cpu")
    absent = session.device(rig.kind, 99)
    for attempt in (lambda: absent.empty(3), absent.sync, absent.create_stream, lambda: absent.device_name):
        with pytest.raises(RemoteError, match=f"no {rig.kind}\\(99\\)"):
            attempt()


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "bfloat16", "float8_e4m3fn", "complex64"])
def test_copies_in_and_out(device: Any, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    data = RNG.integers(0, 2 if dtype == "bool" else 100, (5, 7)).astype(kind)
    made = device.tensor(data)
    assert made.dtype == dtype
    assert made.device == device
    assert made.numpy().tobytes() == data.tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (1 << 20,), (3, 5, 7, 11)])
def test_shapes(device: Any, shape: tuple[int, ...]) -> None:
    data = RNG.random(shape).astype("float32")
    made = device.empty(shape, "float32")
    made.copyfrom(data)
    assert np.array_equal(made.numpy(), data)


def test_long_tensors(device: Any) -> None:
    data = np.frombuffer(RNG.bytes((9 << 20) + 3), np.uint8)  # several pieces, and a rest
    assert np.array_equal(device.tensor(data).numpy(), data)


def test_copies_among(device: Any, session: sync.RPCSession) -> None:
    data = RNG.random(1000).astype("float32")
    first = device.tensor(data)
    second = first.copyto(device)
    on_host = second.copyto(session.cpu())
    assert np.array_equal(on_host.numpy(), data)
    back = on_host.copyto(device)
    third = device.empty(1000)
    back.copyto(third)
    device.sync()
    assert np.array_equal(third.numpy(), data)


@pytest.mark.parametrize(("offset", "count"), [(0, 5), (1, 1), (3, 8), (7, 13), (250, 6), (64, 0), (255, 1)])
def test_copies_with_offsets(device: Any, session: sync.RPCSession, offset: int, count: int) -> None:
    """Bytes, so that nothing is aligned to anything."""
    data = np.arange(256, dtype="uint8")
    whole = device.tensor(data)
    part = whole.view((count,), byte_offset=offset)
    assert np.array_equal(part.numpy(), data[offset : offset + count])
    part.copyfrom(np.full(count, 99, "uint8"))
    data[offset : offset + count] = 99
    assert np.array_equal(whole.numpy(), data)
    other = device.tensor(np.zeros(256, "uint8"))
    start = (offset * 3) % (256 - count + 1)
    part.copyto(other.view((count,), byte_offset=start))
    expected = np.zeros(256, "uint8")
    expected[start : start + count] = 99
    assert np.array_equal(other.numpy(), expected)
    on_host = session.cpu().tensor(np.zeros(256, "uint8"))
    part.copyto(on_host.view((count,), byte_offset=start))
    assert np.array_equal(on_host.numpy(), expected)
    on_host.view((count,), byte_offset=start).copyto(whole.view((count,), byte_offset=offset))
    assert np.array_equal(whole.numpy(), data)


def test_copies_that_overlap(device: Any) -> None:
    whole = device.tensor(np.arange(64, dtype="uint8"))
    whole.view((32,), byte_offset=0).copyto(whole.view((32,), byte_offset=8))
    expected = np.arange(64, dtype="uint8")
    expected[8:40] = np.arange(32)
    assert np.array_equal(whole.numpy(), expected)


def test_memory_scopes(device: Any) -> None:
    assert device.empty(4, mem_scope="global").shape == (4,)
    with pytest.raises(RemoteError, match="scope 'nosuch'"):
        device.empty(4, mem_scope="nosuch")


def test_out_of_memory(device: Any) -> None:
    with pytest.raises(RemoteError, match="MemoryError"):
        device.empty(1 << 50, "uint8")
    held = device.tensor(np.arange(10))
    assert held.numpy()[-1] == 9


def test_a_thousand_rounds(device: Any, session: sync.RPCSession) -> None:
    """Allocated and freed without growth, in the process that does it."""
    data = np.zeros(1 << 18, "uint8")

    def rounds(count: int) -> None:
        for _ in range(count):
            device.empty(1 << 22, "uint8").view((1 << 18,)).copyfrom(data)

    rounds(200)
    before = _resident(session)
    rounds(1000)
    assert _resident(session) - before < 32 << 20  # of the 4000 MiB that went by


def _resident(session: sync.RPCSession) -> int:
    return int(session.get_function("rpcflow.test.resident")())


# ------------------------------------------------------------------------------------------------ streams


def test_streams(device: Any, rig: Rig) -> None:
    first, second = device.create_stream(), device.create_stream()
    if rig.kind == "cpu":
        assert first == second == 0
        return
    assert first != second
    data = RNG.random(100).astype("float32")
    for stream in (first, second, 0):
        device.set_stream(stream)
        made = device.tensor(data)
        device.sync(stream)
        device.sync()
        assert np.array_equal(made.copyto(device).numpy(), data)
    device.free_stream(second)
    device.set_stream(first)
    device.free_stream(first)  # the first one of all is current again
    assert np.array_equal(device.tensor(data).numpy(), data)
    for use in (device.set_stream, device.sync, device.free_stream):
        with pytest.raises(RemoteError, match=f"no stream {second}"):
            use(second)
    with pytest.raises(RemoteError, match="no stream"):
        device.sync(0x7FFFDEADBEEF)


def test_functions_that_launch_nothing_are_timed_by_the_host(device: Any, session: sync.RPCSession) -> None:
    """Whatever clock the device has: it has seen nothing of them."""
    timed = session.get_function("runtime.RPCTimeEvaluator")
    evaluator = timed(None, "rpcflow.test.pause", device.dev_type, 0, 2, 2, 0, 5, 0, 1, 0, "")
    for seconds in np.frombuffer(evaluator(), "<f8"):
        assert seconds >= 0.001
