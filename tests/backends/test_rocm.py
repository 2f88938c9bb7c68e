# SPDX-License-Identifier: Apache-2.0
"""ROCm beyond what every backend does and beyond what it has in common with CUDA (see test_cuda.py), against a fake."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rpcflow import sync
from rpcflow.backends import BackendError, KernelError
from rpcflow.backends.base import KernelSource
from rpcflow.backends.rocm import RocmBackend
from rpcflow.devices import Attribute
from rpcflow.errors import RemoteError
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.values import Device

from .fakes import gpu as core
from .fakes import hip as fake
from .rig_rocm import SIGNATURE, real_absence

BYTES = DataType.parse("uint8")
GIVEN = {name: [word.strip() for word in types.split(",")] for name, types in SIGNATURE.items()}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> core.Gpu:
    made = core.Gpu()
    for name, module in fake.modules(made).items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.fixture
def backend(gpu: core.Gpu) -> Iterator[RocmBackend]:
    made = RocmBackend()
    yield made
    made.close()


def source(text: str | bytes, name: str = "k.hip", signature: Any = GIVEN, *options: str) -> KernelSource:
    data = text.encode() if isinstance(text, str) else text
    return KernelSource(name, os.path.splitext(name)[1], data, signature, options)


def allocate(backend: RocmBackend, nbytes: int, dev_id: int = 0) -> Any:
    return backend.allocate(Device(10, dev_id), nbytes, 64, BYTES, None)


# ------------------------------------------------------------------------------------------------ without a driver


def test_a_real_device() -> None:
    why = real_absence()
    if why is not None:
        pytest.skip(f"NO ROCM DEVICE: the suite ran against a fake of HIP; nothing was tried on a real one ({why})")


def test_no_runtime() -> None:
    if real_absence() is None:
        pytest.skip("there is a runtime")
    with sync.Server("127.0.0.1", 0, silent=True) as server, sync.connect("127.0.0.1", server.port) as session:
        device = session.rocm(0)
        assert device.exist is False
        with pytest.raises(RemoteError, match=r"there is no rocm\(0\) here: .*(HIP runtime|hip-python)"):
            device.empty(4)
        session.upload(core.SOURCE.encode(), "k.hip")
        with pytest.raises(RemoteError, match=r"'k.hip' cannot be loaded.*(HIP runtime|hip-python)"):
            session.load_module("k.hip")


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hip", None)
    assert "pip install 'rpcflow[rocm]'" in (RocmBackend().absence() or "")


def test_no_compiler(gpu: core.Gpu, backend: RocmBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise RuntimeError("failed to dlopen 'libhiprtc.so'")

    monkeypatch.setattr(sys.modules["hip"].hiprtc, "hiprtcVersion", missing)
    with pytest.raises(BackendError, match=r"HIPRTC, .*libhiprtc.so.*part of ROCm"):
        backend.load(source(core.SOURCE))


@pytest.mark.parametrize("name", ["hipInit", "hipGetDeviceCount"])
@pytest.mark.parametrize(
    ("status", "words"),
    [("NoDevice", "no rocm device was found"), ("InvalidValue", "the HIP runtime does.*hipErrorInvalidValue")],
)
def test_a_runtime_that_does_not_start(
    gpu: core.Gpu, monkeypatch: pytest.MonkeyPatch, name: str, status: str, words: str
) -> None:
    found = (fake.hipError_t[f"hipError{status}"], *[None] * (name != "hipInit"))
    monkeypatch.setattr(sys.modules["hip"].hip, name, lambda *args: found)
    backend = RocmBackend()
    assert backend.found() == ()
    with pytest.raises(BackendError, match=words):
        backend.device(0)


# ------------------------------------------------------------------------------------------------ the driver


def test_attributes(backend: RocmBackend) -> None:
    expected = {
        "compute_version": "9.0",
        "gcn_arch": "gfx90a:sramecc+:xnack-",
        "device_name": "Fake Instinct",
        "warp_size": 64,
        "max_thread_dimensions": "[1024, 1024, 64]",
        "driver_version": "6.3.42131",
        "available_global_memory": core.ROOM,
    }
    assert {name: backend.attribute(0, Attribute[name]) for name in expected} == expected
    assert "HIP 6.3.42131" in backend.version()


def test_bindings_that_fill_what_they_are_given(
    gpu: core.Gpu, backend: RocmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def properties(made: Any, number: int) -> Any:
        made.gcnArchName = b"gfx1100"
        return (fake.hipError_t.hipSuccess,)

    hip = sys.modules["hip"].hip
    monkeypatch.setattr(hip, "hipGetDeviceProperties", properties)
    monkeypatch.setattr(hip, "hipDeviceProp_t", SimpleNamespace, raising=False)
    assert backend.attribute(0, Attribute.gcn_arch) == "gfx1100"


def test_errors_are_not_left_for_others(gpu: core.Gpu, backend: RocmBackend) -> None:
    hip = sys.modules["hip"].hip
    with pytest.raises(MemoryError, match="hipErrorOutOfMemory"):
        allocate(backend, core.ROOM + 1)
    assert hip.last_error == 0
    with pytest.raises(KernelError, match="hipErrorNoBinaryForGpu"):
        backend.load(source(core.elf([("wrong_gpu.kd", 0x11, 3)]), "k.hsaco"))
    assert hip.last_error == 0
    memory = allocate(backend, 16)
    scale = backend.load(source(core.SOURCE))["scale"]
    with pytest.raises(KernelError, match="cannot be launched so: hipErrorInvalidConfiguration"):
        scale.launch(0, [memory.address, 2.0, 4], ((1 << 31) - 1, 1, 1), (64, 1, 1))
    assert hip.last_error == 0
    scale.launch(0, [memory.address, 2.0, 64], (1, 1, 1), (64, 1, 1))
    with pytest.raises(BackendError, match=r"rocm\(0\): hipErrorIllegalAddress .*new session"):
        backend.synchronize(0, 0)
    assert hip.last_error == 0


def test_everything_is_given_back(gpu: core.Gpu, backend: RocmBackend) -> None:
    kept = [allocate(backend, 100), allocate(backend, 100, 1)]
    backend.create_stream(0)
    kernel = backend.load(source(core.SOURCE))["vadd"]
    del kernel
    assert not gpu.modules
    backend.close()
    assert not gpu.memory
    assert not gpu.streams
    del kept


# ------------------------------------------------------------------------------------------------ kernels


@pytest.mark.parametrize("name", ["k.hip", "k.hsaco"])
def test_kernels_need_a_signature(backend: RocmBackend, name: str) -> None:
    symbols = [(f"{kernel}.kd", 0x11, 3) for kernel in SIGNATURE]
    data = core.SOURCE.encode() if name == "k.hip" else core.elf(symbols)
    loaded = backend.load(source(data, name, {"scale": GIVEN["scale"]}))
    assert sorted(loaded) == ["matmul", "scale", "vadd"]
    assert loaded["scale"].name == "scale"
    with pytest.raises(KernelError, match=rf"{name} does not say what 'vadd' takes: give load_module\(signature="):
        loaded["vadd"]
    assert loaded.get("no_such_kernel") is None


def test_signatures_by_either_name(backend: RocmBackend) -> None:
    types = ["float64*", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64", "bool"]
    for name in ("echo", "_Z4echov"):
        loaded = backend.load(source(core.ECHO, "k.hip", {name: types}))
        assert loaded["echo"] is loaded["_Z4echov"]
        out = allocate(backend, 72)
        loaded["echo"].launch(0, [out.address, -5, 200, -3, 65535, -7, 1 << 31, 0.5, 0.1, True], (1,) * 3, (1,) * 3)
        found = np.frombuffer(bytes(backend.read(out, 0, 72)), "float64")
        assert list(found) == [-5, 200, -3, 65535, -7, 1 << 31, 0.5, 0.1, 1]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("k.hip", core.BROKEN, r"k.hip does not compile:\nk.hip\(1\): error: .*undeclared_thing"),
        ("k.hip", "int x;", "k.hip holds no kernels"),
        ("k.hsaco", b"__CLANG_OFFLOAD_BUNDLE__", "no-gpu-bundle-output"),
        ("k.hsaco", b"CCOB" + bytes(40), "no-gpu-bundle-output"),
        ("k.hsaco", b"CCO", "k.hsaco is no ELF file"),
        ("k.hsaco", core.elf([("wrong_gpu.kd", 0x11, 3)]), "does not load on gfx90a"),
    ],
)
def test_files_that_do_not_load(backend: RocmBackend, gpu: core.Gpu, name: str, data: str | bytes, words: str) -> None:
    with pytest.raises(KernelError, match=words):
        backend.load(source(data, name))
    assert not gpu.modules


def test_options(backend: RocmBackend) -> None:
    with pytest.raises(KernelError, match="unknown argument: '--nonsense'"):
        backend.load(source(core.SOURCE, "k.hip", GIVEN, "--nonsense"))
    assert "vadd" in backend.load(source(core.SOURCE, "k.hip", GIVEN, "--offload-arch=gfx1100", "-O3"))


def test_the_real_binding_takes_what_it_is_given() -> None:
    """Without a runtime its functions still look at their arguments, and only then miss it."""
    try:
        hip: Any = importlib.import_module("hip").hip
    except ImportError as error:
        pytest.skip(f"NO hip-python: {error}")
    if real_absence() is None:
        pytest.skip("there is a runtime")
    from rpcflow.backends.rocm import _driver

    found, function = _driver(hip), hip.ihipModuleSymbol_t.fromObj(5)
    stream, event, module = hip.ihipStream_t.fromObj(None), hip.ihipEvent_t.fromObj(5), hip.ihipModule_t.fromObj(5)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (found.allocate, (8,)),
        (found.free, (1 << 40,)),
        (found.write, (1 << 40, 1 << 41, 8, stream)),
        (found.read, (1 << 41, 1 << 40, 8, stream)),
        (found.copy, (1 << 40, 1 << 41, 8, stream)),
        (found.new_stream, (0,)),
        (found.free_stream, (stream,)),
        (found.wait_stream, (stream,)),
        (found.wait_all, ()),
        (found.new_event, (0,)),
        (found.free_event, (event,)),
        (found.record, (event, stream)),
        (found.wait_event, (event,)),
        (found.elapsed, (event, event)),
        (found.unload, (module,)),
        (found.function, (module, b"vadd")),
        (found.launch, (function, 1, 1, 1, 1, 1, 1, 0, stream, 1 << 40, found.nothing)),
        (hip.hipModuleLoadData, (b"code",)),
        (hip.hipFuncGetAttribute, (hip.hipFunction_attribute.HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function)),
        (hip.hipDeviceGetName, (256, 0)),
        (hip.hipGetDeviceProperties, (0,)),
        (hip.hipDeviceTotalMem, (0,)),
        (hip.hipSetDevice, (0,)),
        (hip.hipMemGetInfo, ()),
    ]
    for call, args in calls:
        with pytest.raises(RuntimeError, match="libamdhip64"):
            call(*args)
    assert len(found.lost) == 7
    assert RocmBackend().address(hip.ihipStream_t.fromObj(1 << 40)) == 1 << 40
