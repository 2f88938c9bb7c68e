# SPDX-License-Identifier: Apache-2.0
"""CUDA beyond what every backend does: against a fake driver, and against the real NVRTC where that is installed."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rpcflow import sync
from rpcflow.backends import BackendError, KernelError
from rpcflow.backends.base import KernelSource
from rpcflow.backends.cuda import CudaBackend, header_paths
from rpcflow.backends.cuda_like import GpuDevice
from rpcflow.backends.kernels import KernelFunction, Location
from rpcflow.devices import Attribute
from rpcflow.errors import RemoteError
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.values import Device

from .fakes import cuda as fake
from .fakes import gpu as core
from .rig_cuda import HALF, real_absence

BYTES = DataType.parse("uint8")
PTX = ".version 8.0\n.visible .entry vadd(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n) { }\n"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> core.Gpu:
    made = core.Gpu()
    for name, module in fake.modules(made).items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.fixture
def backend(gpu: core.Gpu) -> Iterator[CudaBackend]:
    made = CudaBackend()
    yield made
    made.close()


def source(text: str | bytes, name: str = "k.cu", signature: dict[str, list[str]] | None = None, *options: str) -> Any:
    data = text.encode() if isinstance(text, str) else text
    return KernelSource(name, os.path.splitext(name)[1], data, signature or {}, options)


def tensor(backend: Any, data: Any, dev_id: int = 0) -> Any:
    data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    made = backend.allocate(Device(2, dev_id), len(data), 64, BYTES, None)
    sink = backend.sink(made, 0, len(data))
    done = 0
    while done < len(data):
        room = sink.get_buffer()
        room[:] = data[done : done + len(room)]
        done += len(room)
        sink.filled(len(room))
    backend.received(made, 0, len(data), sink)
    return made


def read(backend: Any, memory: Any, dtype: str) -> Any:
    return np.frombuffer(bytes(backend.read(memory, 0, memory.nbytes)), dtype)


def function(backend: Any, kernel: Any) -> KernelFunction:
    def locate(value: Any) -> Location | None:
        return Location(2, value.device.dev_id, value.address) if hasattr(value, "address") else None

    return KernelFunction(backend, kernel, locate)


# ------------------------------------------------------------------------------------------------ without a driver


def test_a_real_device() -> None:
    why = real_absence()
    if why is not None:
        pytest.skip(f"NO CUDA DEVICE: the suite ran against a fake driver; nothing was tried on a real one ({why})")


def test_no_driver() -> None:
    if real_absence() is None:
        pytest.skip("there is a driver")
    with sync.Server("127.0.0.1", 0, silent=True) as server, sync.connect("127.0.0.1", server.port) as session:
        device = session.cuda(0)
        assert device.exist is False
        with pytest.raises(RemoteError, match=r"there is no cuda\(0\) here: .*(CUDA driver|cuda-bindings)"):
            device.empty(4)
        session.upload(core.SOURCE.encode(), "k.cu")
        with pytest.raises(RemoteError, match=r"'k.cu' cannot be loaded.*(CUDA driver|cuda-bindings)"):
            session.load_module("k.cu")


@pytest.mark.parametrize("name", ["cuda.bindings.driver", "cuda.bindings.nvrtc"])
def test_no_package(gpu: core.Gpu, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    backend = CudaBackend()
    if name.endswith("driver"):
        assert "pip install 'rpcflow[cuda]'" in (backend.absence() or "")
        return
    assert backend.absence() is None
    assert "no NVRTC" in backend.version()
    with pytest.raises(BackendError, match=r"NVRTC, .*pip install 'rpcflow\[cuda\]'"):
        backend.load(source(core.SOURCE))
    assert backend.load(source(PTX, "k.ptx"))["vadd"].name == "vadd"
    backend.close()


@pytest.mark.parametrize(
    ("status", "words"),
    [("NO_DEVICE", "no cuda device was found"), ("INVALID_VALUE", "does not start: CUDA_ERROR_INV")],
)
def test_a_driver_that_does_not_start(gpu: core.Gpu, monkeypatch: pytest.MonkeyPatch, status: str, words: str) -> None:
    found = (fake.CUresult[f"CUDA_ERROR_{status}"],)
    monkeypatch.setattr(sys.modules["cuda.bindings.driver"], "cuInit", lambda flags: found)
    assert words in (CudaBackend().absence() or "")


# ------------------------------------------------------------------------------------------------ the driver


def test_attributes(backend: CudaBackend) -> None:
    expected = {
        "compute_version": "9.0",
        "device_name": "Fake GPU",
        "max_threads_per_block": 1024,
        "max_thread_dimensions": "[1024, 1024, 64]",
        "multi_processor_count": 132,
        "max_clock_rate": 1980000,
        "warp_size": 32,
        "driver_version": "13.0",
        "api_version": 13000,
        "total_global_memory": core.NBYTES,
        "available_global_memory": core.ROOM,
        "gcn_arch": None,
    }
    assert {name: backend.attribute(1, Attribute[name]) for name in expected} == expected
    assert "driver for CUDA 13.0, NVRTC 13.0" in backend.version()


def test_everything_is_given_back(gpu: core.Gpu, backend: CudaBackend) -> None:
    kept = tensor(backend, np.zeros(100))
    tensor(backend, np.zeros(100), 1)
    backend.create_stream(0)
    kernel = backend.load(source(core.SOURCE))["vadd"]
    timer = backend.timer(0)
    assert gpu.retained == [1, 1]
    del timer
    assert not gpu.events
    del kernel
    assert not gpu.modules
    backend.close()
    assert gpu.retained == [0, 0]
    assert not gpu.memory
    assert not gpu.streams
    del kept  # nothing is freed a second time


def test_another_thread_s_device_and_ours(gpu: core.Gpu, backend: CudaBackend) -> None:
    """Whoever shares the process may make another context current between any two calls."""
    first, second = tensor(backend, np.arange(9.0)), tensor(backend, np.zeros(9), 1)
    gpu.current.clear()
    backend.copy(first, 0, second, 0, 72, 0)
    gpu.current.clear()
    backend.synchronize(1, 0)
    assert np.array_equal(read(backend, second, "float64"), np.arange(9.0))
    kernel = backend.load(source(core.SOURCE))["scale"]
    gpu.current.clear()
    kernel.launch(0, [first.address, 2.0, 18], (1, 1, 1), (64, 1, 1))
    timer = backend.timer(1)
    gpu.current.clear()
    timer.start()
    gpu.current.clear()
    assert timer.stop() >= 0
    backend.synchronize(0, 0)
    gpu.current.clear()
    del first
    assert len(gpu.memory) == 1
    gpu.current.clear()
    del kernel
    assert not gpu.modules
    backend.set_device(1)
    assert set(gpu.current.values()) == {1}


def test_out_of_the_driver_s_memory(gpu: core.Gpu, backend: CudaBackend) -> None:
    with pytest.raises(MemoryError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        backend.allocate(Device(2, 0), core.ROOM + 1, 64, BYTES, None)
    assert not gpu.memory


@pytest.mark.parametrize(("begin", "to"), [(0, 8), (8, 0), (0, 0), (3, 5)])
def test_overlapping_copies(gpu: core.Gpu, backend: CudaBackend, begin: int, to: int) -> None:
    memory = tensor(backend, np.arange(64, dtype="uint8"))
    other = backend.wrap(Device(2, 0), memory.address, 64, memory)  # the same, as a function may return it
    backend.copy(memory, begin, other, to, 32, 0)
    expected = np.arange(64, dtype="uint8")
    expected[to : to + 32] = np.arange(begin, begin + 32)
    assert np.array_equal(read(backend, memory, "uint8"), expected)
    assert len(gpu.memory) == 1


def test_a_kernel_that_goes_astray(gpu: core.Gpu, backend: CudaBackend) -> None:
    memory = tensor(backend, np.zeros(4, "float32"))
    scale = backend.load(source(core.SOURCE))["scale"]
    scale.launch(0, [memory.address, 2.0, 64], (1, 1, 1), (64, 1, 1))
    for _ in range(2):
        with pytest.raises(BackendError, match=r"cuda\(0\): CUDA_ERROR_ILLEGAL_ADDRESS \(illegal.*new session"):
            backend.synchronize(0, 0)
    with pytest.raises(BackendError, match="new session"):
        backend.allocate(Device(2, 0), 4, 64, BYTES, None)
    tensor(backend, np.zeros(3), 1)  # the other one is well
    del memory, scale
    backend.close()
    assert gpu.retained == [0, 0]


def test_tvm_ffi_launches_in_the_current_stream(gpu: core.Gpu, backend: CudaBackend) -> None:
    ffi = pytest.importorskip("tvm_ffi")
    device = ffi.device("cuda", 1)
    stream = backend.create_stream(1)
    backend.set_stream(1, stream)
    assert ffi.get_raw_stream(device) in gpu.streams
    backend.set_stream(1, 0)
    assert ffi.get_raw_stream(device) == 0
    backend.set_stream(1, stream)
    backend.free_stream(1, stream)
    assert ffi.get_raw_stream(device) == 0
    with pytest.raises(BackendError, match="no stream"):
        backend.free_stream(1, stream)


# ------------------------------------------------------------------------------------------------ kernels


def test_each_type_arrives(backend: CudaBackend) -> None:
    out = tensor(backend, np.zeros(9))
    for name in ("echo", "_Z4echov"):
        echo = function(backend, backend.load(source(core.ECHO))[name])
        echo(out, -5, 200, -3, 65535, -7, 1 << 31, 0.5, 0.1, True, 1, 1, 1, 1, 1, 1)
        assert list(read(backend, out, "float64")) == [-5, 200, -3, 65535, -7, 1 << 31, 0.5, 0.1, 1]


def test_integers_of_either_sign(backend: CudaBackend) -> None:
    echo = function(backend, backend.load(source(core.ECHO))["echo"])
    out = tensor(backend, np.zeros(9))
    launch = (1,) * 6
    echo(out, 255, 200, 65535, 0, (1 << 32) - 1, -1, 0, 0, 0, *launch)
    assert list(read(backend, out, "float64"))[:6] == [-1, 200, -1, 0, -1, (1 << 32) - 1]
    for value in (-(1 << 31) - 1, 1 << 32):
        with pytest.raises(KernelError, match=r"argument 5 .*int32 or uint32"):
            echo(out, 0, 0, 0, 0, value, 0, 0, 0, 0, *launch)


def test_kernels_on_each_device(gpu: core.Gpu, backend: CudaBackend) -> None:
    vadd = function(backend, backend.load(source(core.SOURCE))["vadd"])
    for dev_id in (0, 1):
        a, b, c = (tensor(backend, np.full(64, n, "float32"), dev_id) for n in (1, 2, 0))
        vadd(a, b, c, 64, 1, 1, 1, 64, 1, 1)
        assert read(backend, c, "float32").sum() == 192
    assert len(gpu.modules) == 2


def test_an_integer_where_ptx_says_nothing(backend: CudaBackend) -> None:
    launch = (1,) * 6
    with pytest.raises(KernelError, match=r"argument 1 \(b: tensor, .*signature=.*must be a tensor, not the int 5"):
        function(backend, backend.load(source(PTX, "k.ptx"))["vadd"])(tensor(backend, np.zeros(9)), 5, 5, 0, *launch)
    given = {"vadd": ["int64", "uint64", "float64", "int32"]}
    function(backend, backend.load(source(PTX, "k.ptx", given))["vadd"])(1, 2, 3.0, 0, *launch)


@pytest.mark.parametrize(
    ("types", "words"),
    [
        (["float32*"] * 3, "has 3 parameters; it takes 4"),
        (["float32*", "float32*", "float32*", "int64"], "parameter 3 .* has 8 bytes; the kernel takes 4"),
        (["float32*", "float32*", "float32*", "local"], "no parameter"),
        (["float32*", "float32*", "float32*", "nonsense"], "nonsense"),
    ],
)
@pytest.mark.parametrize("name", ["k.cu", "k.ptx", "k.cubin"])
def test_signatures_that_do_not_fit(backend: CudaBackend, name: str, types: list[str], words: str) -> None:
    files = {"k.cu": core.SOURCE, "k.ptx": PTX, "k.cubin": core.elf([("vadd", 0x12, 0x10)])}
    loaded = backend.load(source(files[name], name, {"vadd": types}))
    with pytest.raises(KernelError, match=words):
        loaded["vadd"]


def test_a_cubin(gpu: core.Gpu, backend: CudaBackend) -> None:
    data = core.elf([("vadd", 0x12, 0x10), ("scale", 0x12, 0x10), ("helper", 0x12, 0)])
    loaded = backend.load(source(data, "k.cubin", {"scale": ["float32*", "float32", "uint32"]}))
    assert sorted(loaded) == ["scale", "vadd"]
    with pytest.raises(KernelError, match=r"k.cubin does not say what 'vadd' takes: give load_module\(signature="):
        loaded["vadd"]
    x = tensor(backend, np.ones(4, "float32"))
    function(backend, loaded["scale"])(x, 3, 4, 1, 1, 1, 4, 1, 1)
    assert read(backend, x, "float32").sum() == 12


def test_drivers_that_do_not_tell_sizes(backend: CudaBackend, gpu: core.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature that is too short then lets the kernel read zeros, and nothing that is not ours."""

    def missing(*args: Any) -> Any:
        raise RuntimeError('Function "cuFuncGetParamInfo" not found')

    monkeypatch.setattr(sys.modules["cuda.bindings.driver"], "cuFuncGetParamInfo", missing)
    data = core.elf([("vadd", 0x12, 0x10)])
    a = tensor(backend, np.ones(4, "float32"))
    vadd = backend.load(source(data, "k.cubin", {"vadd": ["float32*"]}))["vadd"]
    function(backend, vadd)(a, 1, 1, 1, 4, 1, 1)
    backend.synchronize(0, 0)
    assert gpu.launches == 1


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("k.cu", core.BROKEN, r"k.cu does not compile:\nk.cu\(1\): error: .*undeclared_thing"),
        ("k.cu", "int x;", "k.cu holds no kernels"),
        ("k.cu", "\0", "zero byte"),
        ("k.ptx", PTX + "nonsense", r"k.ptx does not compile:\nptxas application ptx input, line 3"),
        ("k.ptx", PTX.replace("8.0", "99"), "driver is for CUDA 13.0"),
        ("k.cubin", b"\x7fELF", "no ELF file for 64 bits"),
        ("k.cubin", b"PTX", "k.cubin is no ELF file"),
    ],
)
def test_files_that_do_not_load(backend: CudaBackend, gpu: core.Gpu, name: str, data: str | bytes, words: str) -> None:
    with pytest.raises(KernelError, match=words):
        backend.load(source(data, name))
    assert not gpu.modules


def test_options(backend: CudaBackend) -> None:
    with pytest.raises(KernelError, match="unrecognized option --nonsense"):
        backend.load(source(core.SOURCE, "k.cu", {}, "--nonsense"))
    for options in (["-DN=sm_3"], ["--gpu-architecture=compute_80"], ["--gpu-architecture=sm_90"]):
        assert "vadd" in backend.load(source(core.SOURCE, "k.cu", {}, *options))


def test_launches_that_are_refused(backend: CudaBackend) -> None:
    scale = backend.load(source(core.SOURCE))["scale"]
    x = tensor(backend, np.ones(4, "float32"))
    with pytest.raises(KernelError, match="at most 512 threads"):
        scale.launch(0, [x.address, 2.0, 4], (1, 1, 1), (core.MOST_THREADS + 1, 1, 1))
    scale._ready[0] = (*scale._ready[0][:2], 1024)  # as if the function had not told
    with pytest.raises(KernelError, match="cannot be launched so: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"):
        scale.launch(0, [x.address, 2.0, 4], (1, 1, 1), (core.MOST_THREADS + 1, 1, 1))
    backend.synchronize(0, 0)


# ------------------------------------------------------------------------------------------------ real NVRTC


@pytest.fixture
def real() -> CudaBackend:
    try:
        importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"NO NVRTC: real compiler errors and real PTX were not tried ({error})")
    return CudaBackend()


DEVICE = GpuDevice(0, None, None, "90", 1, (1, 1, 1), (1, 1, 1), 1)


@pytest.mark.parametrize("target", ["75", "90", "120", "999"])
def test_real_ptx(real: CudaBackend, target: str) -> None:
    device = GpuDevice(0, None, None, target, 1, (1, 1, 1), (1, 1, 1), 1)
    found = real.image(device, source(core.SOURCE + core.ECHO)).entries
    assert list(found) == ["vadd", "matmul", "scale", "_Z4echoPdahstijfdb"]
    assert found["vadd"].sizes == (8, 8, 8, 4)
    kinds = [None if param.dtype is None else str(param.dtype) for param in found["_Z4echoPdahstijfdb"].params or ()]
    assert kinds == [None, "uint8", "uint8", "uint16", "uint16", "uint32", "uint32", "float32", "float64", "uint8"]
    assert core.sizes("echo") == list(found["_Z4echoPdahstijfdb"].sizes or ())


def test_real_blocks_and_structs(real: CudaBackend) -> None:
    text = "struct S { float a, b; };\n__global__ void f(S s, float *x) { *x = s.a; }\n"
    text += 'extern "C" __global__ void __block_size__((32, 2, 1)) g(int *x) { *x = 1; }\n'
    found = real.image(DEVICE, source(text)).entries
    assert found["g"].block == (32, 2, 1)
    assert "struct or array of 8 bytes" in found["_Z1f1SPf"].trouble


def test_real_cubins(real: CudaBackend) -> None:
    image = real.image(DEVICE, source(core.SOURCE, "k.cu", {}, "--gpu-architecture=sm_90"))
    assert image.data.startswith(b"\x7fELF")
    found = real.image(DEVICE, source(image.data, "k.cubin")).entries
    assert sorted(found) == sorted(image.entries) == ["matmul", "scale", "vadd"]


def test_real_complaints(real: CudaBackend) -> None:
    with pytest.raises(KernelError, match=r'k.cu does not compile:\nk.cu\(1\): error: identifier "undeclared_thing"'):
        real.image(DEVICE, source(core.BROKEN))
    with pytest.raises(KernelError, match="unrecognized option --nonsense"):
        real.image(DEVICE, source(core.SOURCE, "k.cu", {}, "--nonsense"))


def test_real_headers(real: CudaBackend) -> None:
    if not any(os.path.exists(os.path.join(path, "cuda_fp16.h")) for path in header_paths()):
        pytest.skip("CUDA's headers are not here")
    assert list(real.image(DEVICE, source(HALF)).entries) == ["half_"]


def test_the_real_binding_takes_what_it_is_given() -> None:
    """Without a driver its functions still look at their arguments, and only then miss it."""
    try:
        cu = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        pytest.skip(f"NO cuda-bindings: {error}")
    if real_absence() is None:
        pytest.skip("there is a driver")
    from rpcflow.backends.cuda import _driver

    found, stream, event, module = _driver(cu), cu.CUstream(0), cu.CUevent(5), cu.CUmodule(5)
    log = bytearray(64)
    options = [cu.CUjit_option.CU_JIT_ERROR_LOG_BUFFER, cu.CUjit_option.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES]
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
        (found.launch, (cu.CUfunction(5), 1, 1, 1, 1, 1, 1, 0, stream, 1 << 40, found.nothing)),
        (found.error_text, (cu.CUresult.CUDA_ERROR_NO_DEVICE,)),
        (cu.cuModuleLoadDataEx, (b"ptx\0", 2, options, [log, len(log)])),
        (cu.cuFuncGetParamInfo, (cu.CUfunction(5), 0)),
        (cu.cuCtxSetCurrent, (cu.CUcontext(5),)),
        (cu.cuDevicePrimaryCtxRetain, (cu.CUdevice(0),)),
        (cu.cuDevicePrimaryCtxRelease, (cu.CUdevice(0),)),
        (cu.cuDeviceGetName, (256, cu.CUdevice(0))),
        (cu.cuDeviceTotalMem, (cu.CUdevice(0),)),
        (cu.cuMemGetInfo, ()),
    ]
    for call, args in calls:
        with pytest.raises(RuntimeError, match="driver library"):
            call(*args)
    assert found.lost
    assert found.refused
