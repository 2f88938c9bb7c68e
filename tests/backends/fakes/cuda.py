# SPDX-License-Identifier: Apache-2.0
"""A fake of ``cuda.bindings.driver`` and ``cuda.bindings.nvrtc``: as much of them as the backend uses."""

from __future__ import annotations

import enum
import functools
import re
import sys
import types
from collections.abc import Callable
from typing import Any

from rpcflow.backends.elf import cuda_kernels

from . import gpu as core

_PTX = {"P": "u64", "b": "u8", "B": "u8", "?": "u8", "h": "u16", "H": "u16", "i": "u32", "I": "u32", "q": "u64"}
_PTX |= {"f": "f32", "d": "f64"}


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_INVALID_IMAGE = 200
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_PTX = 218
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701


class nvrtcResult(enum.IntEnum):
    NVRTC_SUCCESS = 0
    NVRTC_ERROR_INVALID_OPTION = 5
    NVRTC_ERROR_COMPILATION = 6


class CUdevice_attribute(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 1
    CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X = 2
    CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y = 3
    CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z = 4
    CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X = 5
    CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y = 6
    CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z = 7
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK = 8
    CU_DEVICE_ATTRIBUTE_WARP_SIZE = 10
    CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK = 12
    CU_DEVICE_ATTRIBUTE_CLOCK_RATE = 13
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38
    CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT = 51
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUfunction_attribute(enum.IntEnum):
    CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0


class CUjit_option(enum.IntEnum):
    CU_JIT_ERROR_LOG_BUFFER = 5
    CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6


_VALUES = dict(
    zip(
        CUdevice_attribute,
        (1024, *core.MAX_BLOCK, *core.MAX_GRID, 49152, 32, 65536, 1980000, 132, 50 << 20, 32, 9, 0),
        strict=True,
    )
)


class _Handle:
    """As the binding's classes for what the driver calls by a pointer."""

    def __init__(self, value: int = 0) -> None:
        self.value = int(value)

    def __int__(self) -> int:
        return self.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handle) and self.value == other.value


def install() -> None:
    """Put the fakes where the real ones are imported from, in this process."""
    for name, module in modules().items():
        sys.modules[name] = module


def modules(gpu: core.Gpu | None = None) -> dict[str, types.ModuleType]:
    """The fakes by the names of what they stand for."""
    made = {name: types.ModuleType(name) for name in ("cuda", "cuda.bindings")}
    for module in made.values():
        module.__path__ = []
    pathfinder = types.ModuleType("cuda.pathfinder")
    pathfinder.find_nvidia_header_directory = lambda name: None  # type: ignore[attr-defined]
    fakes = {
        "cuda.pathfinder": pathfinder,
        "cuda.bindings.driver": driver(gpu or core.Gpu()),
        "cuda.bindings.nvrtc": nvrtc(),
    }
    return {**made, **fakes}


def _told(outputs: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A function's results behind a status, as the binding has them; so many."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*args: Any) -> tuple[Any, ...]:
            try:
                result = function(*args)
            except core.Failed as error:
                return (CUresult[f"CUDA_ERROR_{error.status}"], *[None] * outputs)
            if not outputs:
                return (CUresult.CUDA_SUCCESS,)
            return (CUresult.CUDA_SUCCESS, *(result if outputs > 1 else (result,)))

        return called

    return decorate


def driver(gpu: core.Gpu) -> types.ModuleType:
    """``cuda.bindings.driver``, of these devices."""

    def set_current(context: _Handle) -> None:
        import threading

        gpu.current[threading.get_ident()] = int(context) - 1
        if int(context) - 1 in gpu.lost:
            raise core.Failed(gpu.lost[int(context) - 1])

    def retain(handle: int) -> _Handle:
        gpu.retained[handle] += 1
        return _Handle(handle + 1)

    def release(handle: int) -> None:
        gpu.retained[handle] -= 1

    def param_info(function: str, i: int) -> tuple[int, int]:
        found = core.sizes(function)
        if i >= len(found):
            raise core.Failed("INVALID_VALUE")
        return 8 * i, found[i]

    def load(data: Any, count: int, options: list[CUjit_option], values: list[Any]) -> _Handle:
        data = bytes(data)
        if data.startswith(b"\x7fELF"):
            return _Handle(gpu.load(cuda_kernels("image", data)))
        text = data.decode(errors="replace")
        if ".version 99" in text:
            raise core.Failed("UNSUPPORTED_PTX_VERSION")
        if not data.endswith(b"\0") or ".version" not in text or "nonsense" in text:
            values[0][:64] = b"ptxas application ptx input, line 3; error: Unknown thing".ljust(64, b"\0")
            raise core.Failed("INVALID_PTX")
        return _Handle(gpu.load(re.findall(r"\.entry\s+([\w$]+)", text)))

    def launch(function: str, *rest: Any) -> None:
        numbers, shared, stream, params, extra = rest[:6], *rest[6:]
        assert (shared, extra) == (0, 0)
        if numbers[3] * numbers[4] * numbers[5] > core.MOST_THREADS:
            raise core.Failed("LAUNCH_OUT_OF_RESOURCES")
        gpu.launch(function, numbers[:3], numbers[3:], int(stream), params)

    functions: dict[str, tuple[int, Callable[..., Any]]] = {
        "cuInit": (0, lambda flags: None),
        "cuDeviceGetCount": (1, lambda: core.DEVICES),
        "cuDeviceGet": (1, lambda number: number),
        "cuDeviceGetName": (1, lambda length, handle: b"Fake GPU".ljust(length, b"\0")),
        "cuDeviceTotalMem": (1, lambda handle: core.NBYTES),
        "cuDeviceGetAttribute": (1, lambda attribute, handle: _VALUES[attribute]),
        "cuDevicePrimaryCtxRetain": (1, retain),
        "cuDevicePrimaryCtxRelease": (0, release),
        "cuDriverGetVersion": (1, lambda: 13000),
        "cuCtxSetCurrent": (0, set_current),
        "cuCtxSynchronize": (0, gpu.wait_all),
        "cuMemGetInfo": (2, lambda: (gpu.device() * 0 + core.ROOM, core.NBYTES)),
        "cuMemAlloc": (1, lambda nbytes: _Handle(gpu.allocate(nbytes))),
        "cuMemFree": (0, lambda address: gpu.free(int(address))),
        "cuMemcpyHtoDAsync": (0, lambda to, begin, n, stream: gpu.write(int(to), begin, n, int(stream))),
        "cuMemcpyDtoHAsync": (0, lambda to, begin, n, stream: gpu.read(to, int(begin), n, int(stream))),
        "cuMemcpyDtoDAsync": (0, lambda to, begin, n, stream: gpu.copy(int(to), int(begin), n, int(stream))),
        "cuStreamCreate": (1, lambda flags: _Handle(gpu.new_stream())),
        "cuStreamDestroy": (0, lambda stream: gpu.free_stream(int(stream))),
        "cuStreamSynchronize": (0, lambda stream: gpu.wait(int(stream))),
        "cuEventCreate": (1, lambda flags: _Handle(gpu.new_event())),
        "cuEventDestroy": (0, lambda event: gpu.events.pop(int(event))),
        "cuEventRecord": (0, lambda event, stream: gpu.record(int(event), int(stream))),
        "cuEventSynchronize": (0, lambda event: gpu.wait_all()),
        "cuEventElapsedTime": (1, lambda begin, end: gpu.elapsed(int(begin), int(end))),
        "cuModuleLoadDataEx": (1, load),
        "cuModuleUnload": (0, lambda module: gpu.unload(int(module))),
        "cuModuleGetFunction": (1, lambda module, name: gpu.function(int(module), name.decode())),
        "cuFuncGetAttribute": (1, lambda attribute, function: core.MOST_THREADS),
        "cuFuncGetParamInfo": (2, param_info),
        "cuLaunchKernel": (0, launch),
    }
    module = types.ModuleType("cuda.bindings.driver")
    for name, (outputs, function) in functions.items():
        setattr(module, name, _told(outputs)(function))
    for kind in (CUresult, CUdevice_attribute, CUfunction_attribute, CUjit_option):
        setattr(module, kind.__name__, kind)
    module.CUstream = _Handle  # type: ignore[attr-defined]
    module.cuGetErrorString = lambda status: (  # type: ignore[attr-defined]
        CUresult.CUDA_SUCCESS,
        CUresult(status).name.removeprefix("CUDA_ERROR_").lower().replace("_", " ").encode(),
    )
    return module


def nvrtc() -> types.ModuleType:
    """``cuda.bindings.nvrtc``: makes PTX of what the core's compiler finds."""
    result = nvrtcResult
    made: dict[int, dict[str, Any]] = {}

    def compile_program(program: int, count: int, options: list[bytes]) -> tuple[nvrtcResult]:
        assert count == len(options)
        it = made[program]
        bad = [option for option in options if not option.startswith((b"-D", b"--gpu-arch", b"--include-path="))]
        if bad:
            it["ProgramLog"] = b"nvrtc: error: unrecognized option " + bad[0] + b" found\0"
            return (result.NVRTC_ERROR_INVALID_OPTION,)
        kernels, log = core.compile_source(it["text"], it["name"])
        it["ProgramLog"] = log.encode() + b"\0"
        if log:
            return (result.NVRTC_ERROR_COMPILATION,)
        it["PTX"] = (".version 9.0\n" + "".join(_entry(*kernel) for kernel in kernels)).encode() + b"\0"
        it["CUBIN"] = core.elf([(name, 0x12, 0x10) for name, _ in kernels])
        return (result.NVRTC_SUCCESS,)

    def create(text: bytes, name: bytes, count: int, headers: list[bytes], names: list[bytes]) -> tuple[Any, int]:
        made[number := len(made) + 1] = {"text": text.decode(), "name": name.decode()}
        return result.NVRTC_SUCCESS, number

    def destroy(program: int) -> tuple[nvrtcResult]:
        made[program].clear()
        return (result.NVRTC_SUCCESS,)

    def getter(what: str) -> Callable[[int, bytearray], tuple[nvrtcResult]]:
        def get(program: int, room: bytearray) -> tuple[nvrtcResult]:
            room[:] = made[program][what]
            return (result.NVRTC_SUCCESS,)

        return get

    def sizer(what: str) -> Callable[[int], tuple[nvrtcResult, int]]:
        return lambda program: (result.NVRTC_SUCCESS, len(made[program][what]))

    module = types.ModuleType("cuda.bindings.nvrtc")
    functions: dict[str, Any] = {
        "nvrtcVersion": lambda: (result.NVRTC_SUCCESS, 13, 0),
        "nvrtcGetSupportedArchs": lambda: (result.NVRTC_SUCCESS, [75, 80, 90, 100]),
        "nvrtcCreateProgram": create,
        "nvrtcCompileProgram": compile_program,
        "nvrtcDestroyProgram": destroy,
    }
    for what in ("ProgramLog", "PTX", "CUBIN"):
        functions[f"nvrtcGet{what}"], functions[f"nvrtcGet{what}Size"] = getter(what), sizer(what)
    for name, function in functions.items():
        setattr(module, name, function)
    return module


def _entry(name: str, letters: str) -> str:
    params = []
    for i, letter in enumerate(letters):
        if letter in _PTX:
            params.append(f"\t.param .{_PTX[letter]} {name}_param_{i}")
        else:
            params.append(f"\t.param .align 2 .b8 {name}_param_{i}[{2 if letter == 'e' else 8}]")
    return f".visible .entry {name}(\n" + ",\n".join(params) + "\n)\n{\n\tret;\n}\n"
