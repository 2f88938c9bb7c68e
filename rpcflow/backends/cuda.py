# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's devices, by cuda-bindings. Kernels are CUDA C++ (``.cu``, compiled by NVRTC), PTX, or cubins.

The context is the device's primary one, so that TVM's runtime and torch in this process share memory with us.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from rpcflow.devices import Attribute

from .base import BackendError, KernelError, KernelSource
from .cuda_like import CudaLikeBackend, Driver, GpuDevice, package_version
from .elf import MAGIC, cuda_kernels
from .gpu_kernels import Image
from .ptx import Entry, entries
from .rtc import Compiler

_INSTALL: Final = "pip install 'rpcflow[cuda]'"
_LOG_NBYTES: Final = 1 << 14
_ARCHITECTURE: Final = ("-arch", "--gpu-architecture")
_REAL: Final = ("sm_", "-arch=sm_", "--gpu-architecture=sm_")
_ATTRIBUTES: Final = {
    Attribute.warp_size: "WARP_SIZE",
    Attribute.max_shared_memory_per_block: "MAX_SHARED_MEMORY_PER_BLOCK",
    Attribute.max_clock_rate: "CLOCK_RATE",
    Attribute.multi_processor_count: "MULTIPROCESSOR_COUNT",
    Attribute.max_registers_per_block: "MAX_REGISTERS_PER_BLOCK",
    Attribute.l2_cache_size_bytes: "L2_CACHE_SIZE",
    Attribute.image_pitch_alignment: "TEXTURE_PITCH_ALIGNMENT",
}
_LOST: Final = (
    "ECC_UNCORRECTABLE",
    "ILLEGAL_ADDRESS",
    "LAUNCH_TIMEOUT",
    "CONTEXT_IS_DESTROYED",
    "ASSERT",
    "HARDWARE_STACK_ERROR",
    "ILLEGAL_INSTRUCTION",
    "MISALIGNED_ADDRESS",
    "INVALID_ADDRESS_SPACE",
    "INVALID_PC",
    "LAUNCH_FAILED",
    "NVLINK_UNCORRECTABLE",
    "CONTAINED",
    "MPS_CLIENT_TERMINATED",
    "UNKNOWN",
)
_REFUSED: Final = ("INVALID_VALUE", "LAUNCH_OUT_OF_RESOURCES", "INVALID_CLUSTER_SIZE")
_UNTAKEN: Final = (
    "INVALID_IMAGE",
    "INVALID_PTX",
    "UNSUPPORTED_PTX_VERSION",
    "NO_BINARY_FOR_GPU",
    "INVALID_SOURCE",
    "JIT_COMPILER_NOT_FOUND",
    "SHARED_OBJECT_SYMBOL_NOT_FOUND",
    "SHARED_OBJECT_INIT_FAILED",
)


class CudaBackend(CudaLikeBackend):
    """CUDA. Devices are numbered as the driver numbers them, which ``CUDA_VISIBLE_DEVICES`` changes."""

    kind = "cuda"
    suffixes = (".cu", ".ptx", ".cubin")

    def __init__(self) -> None:
        super().__init__()
        self.cu: Any = None

    def drv_find(self) -> Sequence[Any]:
        try:
            cu: Any = import_module("cuda.bindings.driver")
        except ImportError as error:
            raise BackendError(f"cuda-bindings cannot be imported ({error}): {_INSTALL}") from error
        try:
            (status,) = cu.cuInit(0)
        except RuntimeError as error:
            raise BackendError(
                f"there is no CUDA driver, libcuda.so.1 ({error}): install NVIDIA's driver; in a container, let its "
                "runtime bring it in (docker run --gpus all)"
            ) from error
        self.cu, self.driver = cu, _driver(cu)
        if status == cu.CUresult.CUDA_ERROR_NO_DEVICE:
            return ()
        if status:
            raise BackendError(f"the CUDA driver does not start: {self.told(status)}")
        status, count = cu.cuDeviceGetCount()
        if status:
            raise BackendError(f"the CUDA driver does not say which devices there are: {self.told(status)}")
        return [cu.cuDeviceGet(i)[1] for i in range(count)]

    def version(self) -> str:
        found = f"cuda-bindings {package_version('cuda-bindings')}"
        if self.found():
            found += f", driver for CUDA {self._driver_version()}"
        try:
            _, major, minor = self._compiler().api.nvrtcVersion()
        except BackendError:
            return f"{found}, no NVRTC"
        return f"{found}, NVRTC {major}.{minor}"

    def drv_open(self, dev_id: int, found: Any) -> GpuDevice:
        cu = self.cu
        nbytes = self.opening(dev_id, cu.cuDeviceTotalMem(found))
        major, minor = (self._read(found, f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
        grid = [self._read(found, f"MAX_GRID_DIM_{axis}") for axis in "XYZ"]
        block = [self._read(found, f"MAX_BLOCK_DIM_{axis}") for axis in "XYZ"]
        most = self._read(found, "MAX_THREADS_PER_BLOCK")
        return GpuDevice(
            dev_id,
            found,
            self.opening(dev_id, cu.cuDevicePrimaryCtxRetain(found)),
            f"{major}{minor}",
            int(nbytes),
            (grid[0], grid[1], grid[2]),
            (block[0], block[1], block[2]),
            most,
        )

    def drv_close(self, dev: GpuDevice) -> None:
        super().drv_close(dev)
        self.cu.cuDevicePrimaryCtxRelease(dev.handle)

    def enter(self, dev: GpuDevice) -> None:
        (status,) = self.cu.cuCtxSetCurrent(dev.context)
        if status:
            raise self.failure(dev, status)

    def address(self, pointer: Any) -> int:
        return int(pointer)

    def default_stream(self) -> Any:
        return self.cu.CUstream(0)

    def _read(self, handle: Any, name: str) -> int:
        attribute = getattr(self.cu.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self.opening(int(handle), self.cu.cuDeviceGetAttribute(attribute, handle)))

    def _driver_version(self) -> str:
        number = int(self.cu.cuDriverGetVersion()[1])
        return f"{number // 1000}.{number % 1000 // 10}"

    def drv_attribute(self, dev: GpuDevice, kind: Attribute) -> int | str | None:
        if kind in _ATTRIBUTES:
            return self._read(dev.handle, _ATTRIBUTES[kind])
        if kind is Attribute.compute_version:
            return f"{dev.target[:-1]}.{dev.target[-1]}"
        if kind is Attribute.device_name:
            name = self.done(dev, self.cu.cuDeviceGetName(256, dev.handle))
            return str(name.split(b"\0")[0].decode(errors="replace"))
        if kind is Attribute.api_version:
            return int(self.cu.cuDriverGetVersion()[1])
        if kind is Attribute.driver_version:
            return self._driver_version()
        if kind is Attribute.available_global_memory:
            self.enter(dev)
            return int(self.done(dev, self.cu.cuMemGetInfo()))
        return self.plain_attribute(dev, kind)

    # ---- kernels

    def image(self, dev: GpuDevice, source: KernelSource) -> Image:
        if source.suffix == ".cubin":
            names = cuda_kernels(source.name, source.data)
            return Image(source.data, {name: Entry(name) for name in names})
        if source.suffix == ".ptx":
            return Image(source.text.encode(), entries(source.name, source.text))
        return self._compiled(dev, source)

    def _compiler(self) -> Compiler:
        try:
            nvrtc: Any = import_module("cuda.bindings.nvrtc")
            nvrtc.nvrtcVersion()
        except (ImportError, RuntimeError) as error:
            raise BackendError(
                f"NVRTC, which compiles CUDA C++, is not here ({error}): {_INSTALL}, or pip install nvidia-cuda-nvrtc "
                "(nvidia-cuda-nvrtc-cu12 for a driver of CUDA 12)"
            ) from error

        def create(text: bytes, name: bytes) -> Any:
            return nvrtc.nvrtcCreateProgram(text, name, 0, [], [])

        return Compiler(nvrtc, "nvrtc", create, nvrtc.nvrtcDestroyProgram)

    def _compiled(self, dev: GpuDevice, source: KernelSource) -> Image:
        compiler = self._compiler()
        options = list(source.options)
        if not any(option.startswith(_ARCHITECTURE) for option in options):
            options.insert(0, f"--gpu-architecture={_architecture(compiler.api, dev.target)}")
        if "#include" in source.text:
            options += [f"--include-path={path}" for path in header_paths()]
        binary = any(option.startswith(_REAL) for option in options)  # not to be assembled by the driver
        found = compiler.compile(source, options, ("PTX", "CUBIN") if binary else ("PTX",))
        text = found[0].rstrip(b"\0")
        return Image(found[-1] if binary else text, entries(source.name, text.decode(errors="replace")))

    def load_image(self, dev: GpuDevice, name: str, image: Image) -> Any:
        cu, log = self.cu, bytearray(_LOG_NBYTES)
        option = cu.CUjit_option
        options = [option.CU_JIT_ERROR_LOG_BUFFER, option.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES]
        data = image.data if image.data.startswith(MAGIC) else image.data + b"\0"
        status, module = cu.cuModuleLoadDataEx(data, len(options), options, [log, len(log)])
        if not status:
            return module
        if status not in _statuses(cu, _UNTAKEN):
            raise self.failure(dev, status)
        words = log.split(b"\0")[0].decode(errors="replace").strip()
        text = f"{name} does not compile:\n{words or self.told(status)}"
        if status == cu.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
            text += (
                f"\nThe driver is for CUDA {self._driver_version()} and takes no newer PTX: update it, install an "
                "NVRTC as old as it is, or compile to a binary (options=['--gpu-architecture=sm_...'])"
            )
        raise KernelError(text)

    def most_threads(self, dev: GpuDevice, function: Any) -> int:
        attribute = self.cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
        return int(self.done(dev, self.cu.cuFuncGetAttribute(attribute, function)))

    def param_sizes(self, function: Any) -> tuple[int, ...] | None:
        ask = getattr(self.cu, "cuFuncGetParamInfo", None)
        if ask is None:
            return None
        sizes: list[int] = []
        try:
            while True:
                status, _, nbytes = ask(function, len(sizes))
                if status:  # it has no more
                    known = status == self.cu.CUresult.CUDA_ERROR_INVALID_VALUE
                    return tuple(sizes) if known else None
                sizes.append(int(nbytes))
        except RuntimeError:
            return None  # drivers before CUDA 12.4 have no such function


def _architecture(nvrtc: Any, target: str) -> str:
    """The device's own, if NVRTC knows it: down to a binary, which drivers of the same major release take; they take no
    PTX that is newer than they are. Else the newest that it knows and the device runs, as PTX."""
    status, known = nvrtc.nvrtcGetSupportedArchs()
    fitting = [] if status else [int(number) for number in known if int(number) <= int(target)]
    if int(target) in fitting:
        return f"sm_{target}"
    return f"compute_{max(fitting) if fitting else target}"


def header_paths() -> list[str]:
    """Where CUDA's headers are, if they are."""
    try:
        path: str | None = import_module("cuda.pathfinder").find_nvidia_header_directory("cudart")
    except (
        ImportError,
        RuntimeError,
        OSError,
    ):  # it starts a process to look further, which a session may not be allowed
        path = None
    if path is None:
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
        path = os.path.join(home, "include")
    return [found for found in (path, os.path.join(path, "cccl")) if os.path.isdir(found)]


def _statuses(cu: Any, names: Sequence[str]) -> frozenset[int]:
    """Those of them that this version of the binding knows."""
    found = (getattr(cu.CUresult, f"CUDA_ERROR_{name}", None) for name in names)
    return frozenset(int(status) for status in found if status is not None)


def _driver(cu: Any) -> Driver:
    return Driver(
        allocate=cu.cuMemAlloc,
        free=cu.cuMemFree,
        write=cu.cuMemcpyHtoDAsync,
        read=cu.cuMemcpyDtoHAsync,
        copy=cu.cuMemcpyDtoDAsync,
        new_stream=cu.cuStreamCreate,
        free_stream=cu.cuStreamDestroy,
        wait_stream=cu.cuStreamSynchronize,
        wait_all=cu.cuCtxSynchronize,
        new_event=cu.cuEventCreate,
        free_event=cu.cuEventDestroy,
        record=cu.cuEventRecord,
        wait_event=cu.cuEventSynchronize,
        elapsed=cu.cuEventElapsedTime,
        unload=cu.cuModuleUnload,
        function=cu.cuModuleGetFunction,
        launch=cu.cuLaunchKernel,
        error_text=cu.cuGetErrorString,
        nothing=0,
        out_of_memory=_statuses(cu, ["OUT_OF_MEMORY"]),
        lost=_statuses(cu, _LOST),
        refused=_statuses(cu, _REFUSED),
    )
