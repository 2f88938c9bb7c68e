# SPDX-License-Identifier: Apache-2.0
"""AMD's devices, by hip-python. Kernels are HIP C++ (``.hip``, compiled by HIPRTC) or code objects (``.hsaco``).

Neither says what kernels take but in metadata that nobody here reads: they need a signature.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from rpcflow.devices import Attribute

from .base import BackendError, KernelError, KernelSource
from .cuda_like import CudaLikeBackend, Driver, GpuDevice, package_version
from .elf import amd_kernels
from .gpu_kernels import Image
from .ptx import Entry
from .rtc import Compiler

_INSTALL: Final = "pip install 'rpcflow[rocm]'"
_ATTRIBUTES: Final = {
    Attribute.warp_size: "WarpSize",
    Attribute.max_shared_memory_per_block: "MaxSharedMemoryPerBlock",
    Attribute.max_clock_rate: "ClockRate",
    Attribute.multi_processor_count: "MultiprocessorCount",
    Attribute.max_registers_per_block: "MaxRegistersPerBlock",
    Attribute.l2_cache_size_bytes: "L2CacheSize",
    Attribute.image_pitch_alignment: "TexturePitchAlignment",
}
_LOST: Final = (
    "ECCNotCorrectable",
    "IllegalAddress",
    "LaunchTimeOut",
    "ContextIsDestroyed",
    "Assert",
    "LaunchFailure",
    "PriorLaunchFailure",
)
_REFUSED: Final = ("InvalidValue", "InvalidConfiguration", "LaunchOutOfResources")
_UNTAKEN: Final = (
    "InvalidImage",
    "InvalidKernelFile",
    "NoBinaryForGpu",
    "InvalidSource",
    "SharedObjectSymbolNotFound",
    "SharedObjectInitFailed",
    "InvalidValue",
    "FileNotFound",
)


class RocmBackend(CudaLikeBackend):
    """ROCm. Devices are numbered as HIP numbers them, which ``HIP_VISIBLE_DEVICES`` changes."""

    kind = "rocm"
    suffixes = (".hip", ".hsaco")

    def __init__(self) -> None:
        super().__init__()
        self.hip: Any = None

    def drv_find(self) -> Sequence[Any]:
        try:
            hip: Any = import_module("hip").hip
        except ImportError as error:
            raise BackendError(f"hip-python cannot be imported ({error}): {_INSTALL}") from error
        try:
            (status,) = hip.hipInit(0)
        except RuntimeError as error:
            raise BackendError(
                f"there is no HIP runtime, libamdhip64.so ({error}): install ROCm (its package hip-runtime-amd; "
                "hip-python has to be of its version), and let the server use /dev/kfd and /dev/dri"
            ) from error
        self.hip, self.driver = hip, _driver(hip)
        if status == hip.hipError_t.hipErrorNoDevice:
            return ()
        if status:
            raise BackendError(f"the HIP runtime does not start: {self.told(status)}")
        status, count = hip.hipGetDeviceCount()
        if status == hip.hipError_t.hipErrorNoDevice:
            return ()
        if status:
            raise BackendError(f"the HIP runtime does not say which devices there are: {self.told(status)}")
        return range(count)

    def version(self) -> str:
        found = f"hip-python {package_version('hip-python')}"
        return f"{found}, HIP {self._runtime_version()}" if self.found() else found

    def drv_open(self, dev_id: int, found: int) -> GpuDevice:
        hip = self.hip
        self.opening(dev_id, hip.hipSetDevice(found))
        properties = self.opening(dev_id, _properties(hip, found))
        grid = [self._read(found, f"MaxGridDim{axis}") for axis in "XYZ"]
        block = [self._read(found, f"MaxBlockDim{axis}") for axis in "XYZ"]
        return GpuDevice(
            dev_id,
            found,
            None,
            _decoded(properties.gcnArchName),
            int(self.opening(dev_id, hip.hipDeviceTotalMem(found))),
            (grid[0], grid[1], grid[2]),
            (block[0], block[1], block[2]),
            self._read(found, "MaxThreadsPerBlock"),
        )

    def enter(self, dev: GpuDevice) -> None:
        (status,) = self.hip.hipSetDevice(dev.handle)
        if status:
            raise self.failure(dev, status)

    def address(self, pointer: Any) -> int:
        return pointer if isinstance(pointer, int) else int(pointer.as_c_void_p().value or 0)

    def default_stream(self) -> Any:
        return self.hip.ihipStream_t.fromObj(None)

    def forget_error(self) -> None:
        self.hip.hipGetLastError()  # HIP keeps it, and torch's next launch would be blamed for it

    def _read(self, found: int, name: str) -> int:
        attribute = getattr(self.hip.hipDeviceAttribute_t, f"hipDeviceAttribute{name}")
        return int(self.opening(found, self.hip.hipDeviceGetAttribute(attribute, found)))

    def _runtime_version(self) -> str:
        number = int(self.hip.hipRuntimeGetVersion()[1])
        return f"{number // 10_000_000}.{number % 10_000_000 // 100_000}.{number % 100_000}"

    def drv_attribute(self, dev: GpuDevice, kind: Attribute) -> int | str | None:
        hip = self.hip
        if kind in _ATTRIBUTES:
            return self._read(dev.handle, _ATTRIBUTES[kind])
        if kind is Attribute.compute_version:
            parts = (self._read(dev.handle, f"ComputeCapability{part}") for part in ("Major", "Minor"))
            return ".".join(map(str, parts))
        if kind is Attribute.device_name:
            return _decoded(self.done(dev, hip.hipDeviceGetName(256, dev.handle)))
        if kind is Attribute.gcn_arch:
            return dev.target
        if kind is Attribute.api_version:
            return int(hip.hipRuntimeGetVersion()[1])
        if kind is Attribute.driver_version:
            return self._runtime_version()
        if kind is Attribute.available_global_memory:
            self.enter(dev)
            return int(self.done(dev, hip.hipMemGetInfo()))
        return self.plain_attribute(dev, kind)

    # ---- kernels

    def image(self, dev: GpuDevice, source: KernelSource) -> Image:
        data = source.data if source.suffix == ".hsaco" else self._compiled(dev, source)
        return Image(data, {name: Entry(name) for name in amd_kernels(source.name, data)})

    def _compiled(self, dev: GpuDevice, source: KernelSource) -> bytes:
        try:
            hiprtc: Any = import_module("hip").hiprtc
            hiprtc.hiprtcVersion()
        except (ImportError, RuntimeError) as error:
            raise BackendError(
                f"HIPRTC, which compiles HIP C++, is not here ({error}): it is part of ROCm (package hip-runtime-amd), "
                f"and of hip-python: {_INSTALL}"
            ) from error
        compiler = Compiler(
            hiprtc,
            "hiprtc",
            lambda text, name: hiprtc.hiprtcCreateProgram(text, name, 0, None, None),
            lambda program: hiprtc.hiprtcDestroyProgram(program.createRef()),
        )
        options = list(source.options)
        if not any(option.startswith(("--offload-arch", "--gpu-architecture")) for option in options):
            options.insert(0, f"--offload-arch={dev.target}")
        return compiler.compile(source, options, ("Code",))[0]

    def load_image(self, dev: GpuDevice, name: str, image: Image) -> Any:
        status, module = self.hip.hipModuleLoadData(image.data)
        if not status:
            return module
        if status not in _statuses(self.hip, _UNTAKEN):
            raise self.failure(dev, status)
        self.forget_error()
        raise KernelError(f"{name} does not load on {dev.target}: {self.told(status)}")

    def most_threads(self, dev: GpuDevice, function: Any) -> int:
        attribute = self.hip.hipFunction_attribute.HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
        return int(self.done(dev, self.hip.hipFuncGetAttribute(attribute, function)))


def _properties(hip: Any, found: int) -> Any:
    try:
        return hip.hipGetDeviceProperties(found)
    except TypeError:  # hip-python before 7.14 fills what it is given
        properties = hip.hipDeviceProp_t()
        return (*hip.hipGetDeviceProperties(properties, found), properties)


def _decoded(text: Any) -> str:
    """A text as the binding has it: bytes, or an object of its own that decodes."""
    found = text if isinstance(text, str) else text.decode(errors="replace")
    return str(found).split("\0")[0]


def _statuses(hip: Any, names: Sequence[str]) -> frozenset[int]:
    """Those of them that this version of the binding knows."""
    found = (getattr(hip.hipError_t, f"hipError{name}", None) for name in names)
    return frozenset(int(status) for status in found if status is not None)


def _driver(hip: Any) -> Driver:
    return Driver(
        allocate=hip.hipMalloc,
        free=hip.hipFree,
        write=hip.hipMemcpyHtoDAsync,
        read=hip.hipMemcpyDtoHAsync,
        copy=hip.hipMemcpyDtoDAsync,
        new_stream=hip.hipStreamCreateWithFlags,
        free_stream=hip.hipStreamDestroy,
        wait_stream=hip.hipStreamSynchronize,
        wait_all=hip.hipDeviceSynchronize,
        new_event=hip.hipEventCreateWithFlags,
        free_event=hip.hipEventDestroy,
        record=hip.hipEventRecord,
        wait_event=hip.hipEventSynchronize,
        elapsed=hip.hipEventElapsedTime,
        unload=hip.hipModuleUnload,
        function=hip.hipModuleGetFunction,
        launch=hip.hipModuleLaunchKernel,
        error_text=hip.hipGetErrorString,
        nothing=None,
        out_of_memory=_statuses(hip, ["OutOfMemory"]),
        lost=_statuses(hip, _LOST),
        refused=_statuses(hip, _REFUSED),
    )
