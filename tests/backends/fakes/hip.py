# SPDX-License-Identifier: Apache-2.0
"""A fake of hip-python, ``hip.hip`` and ``hip.hiprtc``: as much of it as the backend uses."""

from __future__ import annotations

import ctypes
import enum
import functools
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from rpcflow.backends.elf import amd_kernels

from . import gpu as core


class hipError_t(enum.IntEnum):
    hipSuccess = 0
    hipErrorInvalidValue = 1
    hipErrorOutOfMemory = 2
    hipErrorInvalidConfiguration = 9
    hipErrorNoDevice = 100
    hipErrorInvalidImage = 200
    hipErrorInvalidContext = 201
    hipErrorNoBinaryForGpu = 209
    hipErrorInvalidHandle = 400
    hipErrorNotFound = 500
    hipErrorIllegalAddress = 700


class hiprtcResult(enum.IntEnum):
    HIPRTC_SUCCESS = 0
    HIPRTC_ERROR_INVALID_OPTION = 5
    HIPRTC_ERROR_COMPILATION = 6


_ATTRIBUTES = {
    "MaxThreadsPerBlock": 1024,
    "MaxBlockDimX": core.MAX_BLOCK[0],
    "MaxBlockDimY": core.MAX_BLOCK[1],
    "MaxBlockDimZ": core.MAX_BLOCK[2],
    "MaxGridDimX": core.MAX_GRID[0],
    "MaxGridDimY": core.MAX_GRID[1],
    "MaxGridDimZ": core.MAX_GRID[2],
    "WarpSize": 64,
    "MaxSharedMemoryPerBlock": 65536,
    "ClockRate": 1700000,
    "MultiprocessorCount": 104,
    "MaxRegistersPerBlock": 65536,
    "L2CacheSize": 8 << 20,
    "TexturePitchAlignment": 256,
    "ComputeCapabilityMajor": 9,
    "ComputeCapabilityMinor": 0,
}
hipDeviceAttribute_t = enum.IntEnum(  # type: ignore[misc]
    "hipDeviceAttribute_t", [f"hipDeviceAttribute{name}" for name in _ATTRIBUTES]
)


class hipFunction_attribute(enum.IntEnum):
    HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0


class _Pointer:
    """As the binding's classes for pointers: two of them are never equal."""

    def __init__(self, value: int) -> None:
        self.value = value

    def as_c_void_p(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.value)

    def createRef(self) -> _Pointer:
        return self

    @classmethod
    def fromObj(cls, value: Any) -> _Pointer:
        return value if isinstance(value, cls) else cls(value or 0)


class _Text:
    """As the binding's class for C strings."""

    def __init__(self, text: str) -> None:
        self._text = text

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._text


def _number(pointer: Any) -> int:
    return pointer if isinstance(pointer, int) else pointer.value


def install() -> None:
    """Put the fakes where the real ones are imported from, in this process."""
    for name, module in modules().items():
        sys.modules[name] = module


def modules(gpu: core.Gpu | None = None) -> dict[str, types.ModuleType]:
    """The fakes by the names of what they stand for."""
    package, hip, hiprtc = types.ModuleType("hip"), _hip(gpu or core.Gpu()), _hiprtc()
    package.__path__ = []
    package.hip, package.hiprtc = hip, hiprtc  # type: ignore[attr-defined]
    return {"hip": package, "hip.hip": hip, "hip.hiprtc": hiprtc}


def _hip(gpu: core.Gpu) -> types.ModuleType:
    module = types.ModuleType("hip.hip")
    module.last_error = 0  # type: ignore[attr-defined]

    def told(outputs: int, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*args: Any) -> tuple[Any, ...]:
            try:
                result = function(*args)
            except core.Failed as error:
                name = "".join(word.capitalize() for word in error.status.split("_"))
                module.last_error = status = hipError_t[f"hipError{name}"]  # type: ignore[attr-defined]
                return (status, *[None] * outputs)
            if not outputs:
                return (hipError_t.hipSuccess,)
            return (hipError_t.hipSuccess, *(result if outputs > 1 else (result,)))

        return called

    def set_device(number: int) -> None:
        gpu.current[threading.get_ident()] = number
        if number in gpu.lost:
            raise core.Failed(gpu.lost[number])

    def forget() -> Any:
        found, module.last_error = module.last_error, 0  # type: ignore[attr-defined]
        return found

    def load(data: bytes) -> _Pointer:
        if not data.startswith(b"\x7fELF"):
            raise core.Failed("INVALID_IMAGE")
        if b"wrong_gpu" in data:
            raise core.Failed("NO_BINARY_FOR_GPU")
        return _Pointer(gpu.load(amd_kernels("image", data)))

    def launch(function: str, *rest: Any) -> None:
        numbers, shared, stream, params, extra = rest[:6], *rest[6:]
        assert (shared, extra) == (0, None)
        if any(numbers[i] * numbers[3 + i] >= 1 << 32 for i in range(3)):
            raise core.Failed("INVALID_CONFIGURATION")
        gpu.launch(function, numbers[:3], numbers[3:], _number(stream), params)

    def properties(number: int) -> Any:
        return types.SimpleNamespace(gcnArchName=b"gfx90a:sramecc+:xnack-")

    functions: dict[str, tuple[int, Callable[..., Any]]] = {
        "hipInit": (0, lambda flags: None),
        "hipGetDeviceCount": (1, lambda: core.DEVICES),
        "hipSetDevice": (0, set_device),
        "hipGetDeviceProperties": (1, properties),
        "hipDeviceGetName": (1, lambda length, number: _Text("Fake Instinct")),
        "hipDeviceTotalMem": (1, lambda number: core.NBYTES),
        "hipDeviceGetAttribute": (
            1,
            lambda attribute, number: _ATTRIBUTES[attribute.name.removeprefix("hipDeviceAttribute")],
        ),
        "hipRuntimeGetVersion": (1, lambda: 60342131),
        "hipDeviceSynchronize": (0, gpu.wait_all),
        "hipMemGetInfo": (2, lambda: (gpu.device() * 0 + core.ROOM, core.NBYTES)),
        "hipMalloc": (1, lambda nbytes: _Pointer(gpu.allocate(nbytes))),
        "hipFree": (0, lambda address: gpu.free(_number(address))),
        "hipMemcpyHtoDAsync": (0, lambda to, begin, n, stream: gpu.write(to, begin, n, _number(stream))),
        "hipMemcpyDtoHAsync": (0, lambda to, begin, n, stream: gpu.read(to, begin, n, _number(stream))),
        "hipMemcpyDtoDAsync": (0, lambda to, begin, n, stream: gpu.copy(to, begin, n, _number(stream))),
        "hipStreamCreateWithFlags": (1, lambda flags: _Pointer(gpu.new_stream())),
        "hipStreamDestroy": (0, lambda stream: gpu.free_stream(_number(stream))),
        "hipStreamSynchronize": (0, lambda stream: gpu.wait(_number(stream))),
        "hipEventCreateWithFlags": (1, lambda flags: _Pointer(gpu.new_event())),
        "hipEventDestroy": (0, lambda event: gpu.events.pop(_number(event))),
        "hipEventRecord": (0, lambda event, stream: gpu.record(_number(event), _number(stream))),
        "hipEventSynchronize": (0, lambda event: gpu.wait_all()),
        "hipEventElapsedTime": (1, lambda begin, end: gpu.elapsed(_number(begin), _number(end))),
        "hipModuleLoadData": (1, load),
        "hipModuleUnload": (0, lambda loaded: gpu.unload(_number(loaded))),
        "hipModuleGetFunction": (1, lambda loaded, name: gpu.function(_number(loaded), name.decode())),
        "hipFuncGetAttribute": (1, lambda attribute, function: core.MOST_THREADS),
        "hipModuleLaunchKernel": (0, launch),
    }
    for name, (outputs, function) in functions.items():
        setattr(module, name, told(outputs, function))
    for kind in (hipError_t, hipDeviceAttribute_t, hipFunction_attribute):
        setattr(module, kind.__name__, kind)
    others = {
        "hipGetLastError": lambda: (forget(),),
        "hipGetErrorString": lambda status: (hipError_t.hipSuccess, _Text(hipError_t(status).name[3:].lower())),
        "ihipStream_t": _Pointer,
    }
    for name, other in others.items():
        setattr(module, name, other)
    return module


def _hiprtc() -> types.ModuleType:
    """``hip.hiprtc``: makes a code object of what the core's compiler finds."""
    result = hiprtcResult
    made: dict[int, dict[str, Any]] = {}

    def create(text: bytes, name: bytes, count: int, headers: None, names: None) -> tuple[Any, _Pointer]:
        made[number := len(made) + 1] = {"text": text.decode(), "name": name.decode()}
        return result.HIPRTC_SUCCESS, _Pointer(number)

    def compile_program(program: _Pointer, count: int, options: list[bytes]) -> tuple[hiprtcResult]:
        assert count == len(options)
        it = made[program.value]
        bad = [option for option in options if not option.startswith((b"-D", b"-O", b"--offload-arch=gfx"))]
        if bad:
            it["ProgramLog"] = b"error: unknown argument: '" + bad[0] + b"'\0"
            return (result.HIPRTC_ERROR_INVALID_OPTION,)
        kernels, log = core.compile_source(it["text"], it["name"])
        it["ProgramLog"] = log.encode() + b"\0"
        if log:
            return (result.HIPRTC_ERROR_COMPILATION,)
        symbols = [pair for name, _ in kernels for pair in ((name, 0x12, 3), (f"{name}.kd", 0x11, 3))]
        it["Code"] = core.elf(symbols)
        return (result.HIPRTC_SUCCESS,)

    def destroy(program: _Pointer) -> tuple[hiprtcResult]:
        made[program.value].clear()
        return (result.HIPRTC_SUCCESS,)

    def getter(what: str) -> Callable[[_Pointer, bytearray], tuple[hiprtcResult]]:
        def get(program: _Pointer, room: bytearray) -> tuple[hiprtcResult]:
            room[:] = made[program.value][what]
            return (result.HIPRTC_SUCCESS,)

        return get

    def sizer(what: str) -> Callable[[_Pointer], tuple[hiprtcResult, int]]:
        return lambda program: (result.HIPRTC_SUCCESS, len(made[program.value][what]))

    module = types.ModuleType("hip.hiprtc")
    functions: dict[str, Any] = {
        "hiprtcVersion": lambda: (result.HIPRTC_SUCCESS, 6, 0),
        "hiprtcCreateProgram": create,
        "hiprtcCompileProgram": compile_program,
        "hiprtcDestroyProgram": destroy,
    }
    for what in ("ProgramLog", "Code"):
        functions[f"hiprtcGet{what}"], functions[f"hiprtcGet{what}Size"] = getter(what), sizer(what)
    for name, function in functions.items():
        setattr(module, name, function)
    return module
