# SPDX-License-Identifier: Apache-2.0
"""Devices that a library drives, beyond what all backends do alike: the library's other functions, what it leaves out,
what goes wrong in it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rpcflow import registry, sync
from rpcflow.backends.base import BackendError
from rpcflow.backends.delegated import ExtDevBackend, HexagonBackend
from rpcflow.errors import RemoteError
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.values import Device

from . import rig_ext_dev
from .fakes import accelerator
from .functions import offer
from .rigs import prepared

OPTIONAL = ("copy", "attribute", "create_stream", "free_stream", "synchronize", "set_device", "set_stream")
BYTES = DataType.parse("uint8")
DSP = Device(16, 0)


@pytest.fixture(scope="module")
def library() -> str:
    made = rig_ext_dev.build("accelerator")
    if made is None:
        pytest.skip("no C++ compiler, or no apache-tvm-ffi")
    return made


@pytest.fixture(scope="module")
def server(library: str) -> Iterator[sync.Server]:
    """Loads the library as its users do."""
    with sync.Server("127.0.0.1", 0, silent=True, load_library=library) as running:
        yield running


@pytest.fixture
def session(server: sync.Server) -> Iterator[sync.RPCSession]:
    with sync.connect("127.0.0.1", server.port) as made:
        yield made


# ------------------------------------------------------------------------------------------------ a library in C++


def test_its_functions_get_its_tensors(session: sync.RPCSession) -> None:
    x = session.ext_dev(0).tensor(np.arange(10, dtype="float32"))
    scale = session.get_function("accelerator.scale")
    scale(x, 2.0)
    scale(x.view((5,), byte_offset=20), 10.0)
    assert np.array_equal(x.numpy(), np.arange(10) * ([2.0] * 5 + [20.0] * 5))


def test_tensors_that_it_returns(session: sync.RPCSession) -> None:
    device = session.ext_dev(1)
    x = device.tensor(np.arange(10, dtype="float32"))
    same = session.get_function("accelerator.same")(x.view((6,), byte_offset=16))
    assert same.device == device
    assert np.array_equal(same.numpy(), np.arange(4, 10))
    same.copyfrom(np.zeros(6, "float32"))
    assert np.array_equal(same.copyto(device).numpy(), np.zeros(6))
    del x
    session.get_function("accelerator.scale")(same, 2.0)  # it still lives
    assert np.array_equal(same.numpy(), np.zeros(6))


def test_memory_is_freed(session: sync.RPCSession) -> None:
    live = session.get_function("accelerator.live")
    kept = [session.ext_dev(0).empty(100) for _ in range(5)]
    assert live() == 5
    del kept[1:]
    session.ext_dev(0).sync()
    assert live() == 1


def test_copies_from_device_to_device(session: sync.RPCSession) -> None:
    data = np.random.default_rng(1).random(1000)
    there = session.ext_dev(0).tensor(data).copyto(session.ext_dev(1))
    assert there.device == session.ext_dev(1)
    assert np.array_equal(there.numpy(), data)


def test_it_knows_the_current_stream(session: sync.RPCSession) -> None:
    device, current = session.ext_dev(0), session.get_function("accelerator.stream")
    stream = device.create_stream()
    assert current() == 0
    device.set_stream(stream)
    assert current() > 0
    device.free_stream(stream)  # of the current one; it would not have that
    assert current() == 0


def test_kinds_of_memory(session: sync.RPCSession) -> None:
    assert session.ext_dev(0).empty(4, mem_scope="vtcm").shape == (4,)
    with pytest.raises(RemoteError, match=r"rpcflow\.ext_dev\.allocate: .*no memory of the scope 'texture'"):
        session.ext_dev(0).empty(4, mem_scope="texture")


def test_errors_of_its_functions(session: sync.RPCSession) -> None:
    on_host = session.cpu().tensor(np.zeros(4, "float32"))
    with pytest.raises(RemoteError, match="a tensor of the accelerator's, please"):
        session.get_function("accelerator.scale")(on_host, 1.0)


def test_time_evaluator(session: sync.RPCSession) -> None:
    device = session.ext_dev(0)
    x = device.tensor(np.ones(1 << 16, "float32"))
    result = session.system_lib().time_evaluator("accelerator.scale", device, number=3, repeat=4)(x, 1.0)
    assert len(result.results) == 4
    assert all(0 < seconds < 1 for seconds in result.results)


def test_a_library_that_a_session_loads(library: str) -> None:
    with sync.Server("127.0.0.1", 0, silent=True) as server, sync.connect("127.0.0.1", server.port) as session:
        device = session.ext_dev(0)
        assert not device.exist
        with pytest.raises(RemoteError, match=r"rpcflow\.ext_dev\.count, .*--load-library"):
            device.empty(4)
        session.upload(library, "accelerator.so")
        module = session.load_module("accelerator.so")
        assert device.exist
        x = device.tensor(np.ones(4, "float32"))
        module["scale"](x, 3.0)
        assert np.array_equal(x.numpy(), np.full(4, 3))


# ------------------------------------------------------------------------------------------------ one in Python


@pytest.fixture(scope="module")
def dsp_server() -> Iterator[sync.Server]:
    rig = prepared("hexagon")
    with sync.Server("127.0.0.1", 0, silent=True, server_init_callback=offer(rig.prepare)) as running:
        yield running


@pytest.mark.parametrize(
    ("operation", "use"),
    [
        ("count", lambda device, x: device.empty(3)),
        ("allocate", lambda device, x: device.empty(3)),
        ("write", lambda device, x: x.copyfrom(np.zeros(10))),
        ("read", lambda device, x: x.numpy()),
        ("copy", lambda device, x: x.copyto(device)),
        ("attribute", lambda device, x: device.device_name),
        ("create_stream", lambda device, x: device.create_stream()),
        ("synchronize", lambda device, x: device.sync()),
        ("set_stream", lambda device, x: device.set_stream(0)),
    ],
)
def test_what_it_raises(dsp_server: sync.Server, operation: str, use: Any) -> None:
    with sync.connect("127.0.0.1", dsp_server.port) as session:
        device, fail = session.hexagon(0), session.get_function("dsp.fail")
        x = None if operation == "count" else device.tensor(np.arange(10.0))
        fail(operation, "the DSP is on fire")
        with pytest.raises(RemoteError, match=rf"rpcflow\.hexagon\.{operation}: .*the DSP is on fire") as caught:
            use(device, x)
        assert caught.value.remote_type == "BackendError"
        fail(operation, "")
        use(device, x if x is not None else device.tensor(np.arange(10.0)))


def test_long_data_that_fail_leave_the_line_usable(dsp_server: sync.Server) -> None:
    with sync.connect("127.0.0.1", dsp_server.port) as session:
        data = np.zeros(9 << 20, "uint8")
        x = session.hexagon(0).tensor(data)
        session.get_function("dsp.fail")("write", "no")
        with pytest.raises(RemoteError, match="no"):
            x.copyfrom(data)
        assert np.array_equal(x.numpy(), data)


def test_what_it_is_told(dsp_server: sync.Server) -> None:
    with sync.connect("127.0.0.1", dsp_server.port) as session:
        device, last = session.hexagon(1), session.get_function("dsp.last")
        x = device.empty(100, "uint8", mem_scope="vtcm")
        assert last("allocate") == "[('allocate', 1, 100, 64, 'vtcm')]"
        stream = device.create_stream()
        device.set_stream(stream)
        x.copyfrom(np.zeros(100, "uint8"))
        number = last("write").rstrip(")]").split(", ")[-1]
        assert int(number) > 0
        device.sync(stream)
        assert last("synchronize") == f"[('synchronize', 1, {number})]"
        result = session.system_lib().time_evaluator("dsp.live", device, number=1)()
        assert result.mean == 0.25  # by the DSP's own clock


# ------------------------------------------------------------------------------------------------ what is left out


class Host:
    """A backend in this process, with the functions of a fake."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *leave_out: str) -> None:
        self.dsp = accelerator.Accelerator()
        self.functions: dict[str, Any] = self.dsp.operations(leave_out)
        monkeypatch.setattr(registry, "find", self.functions.get)
        self.backend = HexagonBackend()

    def allocate(self, nbytes: int = 100, alignment: int = 64) -> Any:
        return self.backend.allocate(DSP, nbytes, alignment, BYTES, None)

    def write(self, memory: Any, data: bytes, offset: int = 0) -> None:
        sink = self.backend.sink(memory, offset, len(data))
        sink.get_buffer()[:] = data
        sink.filled(len(data))
        self.backend.received(memory, offset, len(data), sink)

    def read(self, memory: Any) -> bytes:
        return bytes(self.backend.read(memory, 0, memory.nbytes))


def test_nothing_but_what_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, *OPTIONAL, "start_timer", "stop_timer")
    backend = host.backend
    assert backend.absence() is None
    assert backend.version() == "functions rpcflow.hexagon.*"
    first, second = host.allocate(), host.allocate()
    host.write(first, bytes(range(100)))
    backend.copy(first, 10, first, 20, 50, 0)
    backend.copy(first, 0, second, 0, 100, 0)
    expected = bytes([*range(20), *range(10, 60), *range(70, 100)])
    assert host.read(second) == expected
    stream = backend.create_stream(0)
    backend.set_stream(0, stream)
    backend.synchronize(0, stream)
    backend.free_stream(0, stream)
    backend.set_device(1)
    assert backend.attribute(0, 0) == 1
    assert backend.attribute(0, 5) is None
    assert backend.timer(0) is None
    assert {call[0] for call in host.dsp.calls} <= {"count", "allocate", "free", "write", "read"}


@pytest.mark.parametrize("missing", [["free"], ["count", "read"]])
def test_some_are_missing(monkeypatch: pytest.MonkeyPatch, missing: list[str]) -> None:
    host = Host(monkeypatch, *missing)
    why = host.backend.absence()
    assert why is not None
    names = ", ".join(f"rpcflow.hexagon.{name}" for name in missing)
    assert f"lacks {names};" in why
    assert "it has " in why
    assert "rpcflow.hexagon.write" in why
    with pytest.raises(BackendError, match="lacks"):
        host.allocate()


@pytest.mark.parametrize("backend", [HexagonBackend, ExtDevBackend])
def test_all_are_missing(monkeypatch: pytest.MonkeyPatch, backend: type[HexagonBackend]) -> None:
    monkeypatch.setattr(registry, "find", lambda name: None)
    made = backend()
    why = made.absence()
    assert why is not None
    for word in (f"rpcflow.{made.kind}.allocate", f"device_api.{made.kind}", "--load-library", "--import"):
        assert word in why
    assert made.attribute(0, 0) == 0
    assert made.version() == ""


def test_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    host.dsp.failing["count"] = 0
    assert host.backend.absence() == "no hexagon device was found"
    del host.dsp.failing["count"]
    assert host.backend.absence() is None  # it has been plugged in


def test_it_is_told_of_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    host.backend.set_device(1)
    assert host.dsp.calls[-1] == ("set_device", 1)
    with pytest.raises(BackendError, match=r"no hexagon\(2\)"):
        host.backend.set_device(2)


def test_a_timer_wants_both(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Host(monkeypatch, "stop_timer").backend.timer(0) is None
    assert Host(monkeypatch).backend.timer(0) is not None


@pytest.mark.parametrize(
    ("operation", "value", "error", "words"),
    [
        ("count", -1, BackendError, "count returned -1"),
        ("count", None, BackendError, "count returned None"),
        ("count", "two", BackendError, "count returned 'two'"),
        ("count", 1 << 40, BackendError, "count returned"),
        ("allocate", 0, MemoryError, "100 bytes of hexagon memory"),
        ("allocate", None, MemoryError, "100 bytes"),
        ("allocate", ctypes.c_void_p(), MemoryError, "100 bytes"),
        ("allocate", -64, BackendError, "allocate returned -64"),
        ("allocate", "here", BackendError, "allocate returned 'here'"),
        ("allocate", MemoryError("full"), MemoryError, "full"),
        ("allocate", KeyError(), BackendError, "allocate: KeyError"),
    ],
)
def test_strange_answers(monkeypatch: pytest.MonkeyPatch, operation: str, value: Any, error: Any, words: str) -> None:
    host = Host(monkeypatch)
    host.dsp.failing[operation] = value
    with pytest.raises(error, match=words):
        host.allocate()
    assert not host.dsp.blocks
    del host.dsp.failing[operation]
    host.allocate()


def test_other_strange_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    for value in (1.5, b"text"):
        host.dsp.failing["attribute"] = value
        with pytest.raises(BackendError, match="attribute returned"):
            host.backend.attribute(0, 5)
    timer = host.backend.timer(0)
    assert timer is not None
    for seconds in (-1.0, float("nan"), float("inf"), "soon"):
        host.dsp.failing["stop_timer"] = seconds
        timer.start()
        with pytest.raises(BackendError, match="stop_timer returned"):
            timer.stop()


def test_addresses_that_are_not_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    allocate = host.dsp.allocate
    monkeypatch.setattr(host.dsp, "_host", lambda address, nbytes: address - 8)
    freed: list[int] = []
    host.functions["rpcflow.hexagon.allocate"] = lambda *args: allocate(*args) + 8
    host.functions["rpcflow.hexagon.free"] = lambda dev_id, address: freed.append(address)
    with pytest.raises(BackendError, match="no multiple of 4096"):
        host.allocate(100, 4096)
    assert len(freed) == 1
    with pytest.raises(BackendError, match="an alignment of 100 bytes"):
        host.allocate(100, 100)


def test_pointers_as_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    allocate = host.dsp.allocate
    host.functions["rpcflow.hexagon.allocate"] = lambda *args: ctypes.c_void_p(allocate(*args))
    memory = host.allocate()
    host.write(memory, b"x" * 100)
    assert host.read(memory) == b"x" * 100


def test_memory_outlives_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a function has kept a tensor: the library is still there."""
    host = Host(monkeypatch)
    memory = host.allocate()
    owner = memory.owner
    host.backend.close()
    del memory
    assert len(host.dsp.blocks) == 1
    del owner
    assert not host.dsp.blocks


def test_without_tvm_ffi(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions in Python need it not."""
    monkeypatch.setattr(registry, "tvm_ffi", lambda: None)
    monkeypatch.setattr(registry, "_PLAIN", accelerator.Accelerator().operations())
    with sync.LocalSession() as session:
        x = session.hexagon(0).tensor(np.arange(5))
        assert np.array_equal(x.copyto(session.hexagon(1)).numpy(), np.arange(5))


def test_a_device_api_without_its_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"device_api.ext_dev": functools.partial(int), "runtime.GetDeviceAttr": functools.partial(int)}
    monkeypatch.setattr(registry, "find", names.get)
    why = ExtDevBackend().absence()
    assert why is not None
    assert "lacks runtime.TVMTensorAllocWithScope" in why
    assert "libtvm_runtime.so" in why
