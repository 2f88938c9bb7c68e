# SPDX-License-Identifier: Apache-2.0
"""WebGPU devices, by the package ``wgpu``, which drives them through Vulkan, Metal or Direct3D 12. Kernels are WGSL
(``.wgsl``), or SPIR-V (``.spv``) of the kind that Vulkan takes."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from rpcflow.devices import Attribute

from .base import BackendError, KernelSource, Timer
from .device import DeviceBackend
from .webgpu_kernels import WebGPUKernel, load
from .webgpu_memory import Buffer, Device

_INSTALL: Final = "pip install 'rpcflow[webgpu]'"
_DRIVER: Final = (
    "install your device's driver for Vulkan, or for the processor itself Mesa's "
    "(Debian: apt-get install mesa-vulkan-drivers)"
)
_FEATURES: Final = ("timestamp-query", "shader-f16", "subgroup", "shader-int64", "shader-f64", "shader-float32-atomic")
"""Asked for where there; all but the first are for kernels."""
_INTERFACES: Final = ("Vulkan", "Metal", "D3D12")
"""By which a device is driven rather than by another, the best first."""
_TYPES: Final = ("DiscreteGPU", "IntegratedGPU", "Unknown", "CPU")
"""Types of device in the order in which they are numbered."""
_TIMER_NBYTES: Final = 16
_RUNTIME_FOLDER: Final = "XDG_RUNTIME_DIR"


@contextlib.contextmanager
def _runtime_folder() -> Iterator[None]:
    """The library looks for displays, and says on standard error that it finds no folder to look in. Who is not logged
    in has none: it gets an empty one."""
    if _RUNTIME_FOLDER in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="rpcflow-webgpu-") as folder:
        os.environ[_RUNTIME_FOLDER] = folder
        try:
            yield
        finally:
            os.environ.pop(_RUNTIME_FOLDER, None)


class WebGPUBackend(DeviceBackend):
    """WebGPU. A device that several interfaces lead to counts once; GPUs come before processors."""

    kind = "webgpu"
    suffixes = (".wgsl", ".spv")

    def __init__(self) -> None:
        super().__init__()
        self._wgpu: Any = None

    def drv_find(self) -> Sequence[Any]:
        try:
            import wgpu
        except (ImportError, OSError, RuntimeError) as error:  # the latter where the package lacks its library
            raise BackendError(f"wgpu cannot be imported ({error}): {_INSTALL}") from error
        self._wgpu = wgpu
        try:
            with _runtime_folder():
                adapters = wgpu.gpu.enumerate_adapters_sync()
        except (OSError, RuntimeError, wgpu.GPUError) as error:
            raise BackendError(f"wgpu finds no devices ({error}): {_DRIVER}") from error
        found = choose([adapter.info for adapter in adapters])
        if not found:
            raise BackendError(f"wgpu finds no device: {_DRIVER}")
        return [adapters[i] for i in found]

    def version(self) -> str:
        text = f"wgpu {version('wgpu')}"
        drivers = dict.fromkeys(f"{x.info['backend_type']}: {x.info['description']}".strip(": ") for x in self.found())
        return ", ".join((text, *drivers))

    def drv_open(self, dev_id: int, found: Any) -> Device:
        features = [feature for feature in _FEATURES if feature in found.features]
        return Device(self._wgpu, f"webgpu({dev_id})", found, features)

    def drv_stream(self, dev: Device, first: bool) -> Any:
        return dev  # its one queue

    def drv_free_stream(self, dev: Device, stream: Any) -> None:
        pass

    def drv_wait(self, dev: Device, stream: Any) -> None:
        dev.wait()

    def drv_max_nbytes(self, dev: Device) -> int:
        return dev.max_nbytes

    def drv_allocate(self, dev: Device, nbytes: int) -> tuple[Buffer, int]:
        return dev.allocate(nbytes), 0

    def drv_free(self, dev: Device, raw: Buffer) -> None:
        raw.handle.destroy()  # once the queue is done with it

    def drv_write(self, dev: Device, raw: Buffer, offset: int, data: memoryview, stream: Any) -> None:
        dev.write(raw, offset, data)

    def drv_read(self, dev: Device, raw: Buffer, offset: int, data: memoryview, stream: Any) -> None:
        dev.read(raw, offset, data)

    def drv_copy(
        self,
        dev: Device,
        source: Buffer,
        source_offset: int,
        target: Buffer,
        target_offset: int,
        nbytes: int,
        stream: Any,
    ) -> None:
        dev.copy(source, source_offset, target, target_offset, nbytes)

    def drv_attribute(self, dev: Device, kind: Attribute) -> int | str | None:
        if kind is Attribute.max_threads_per_block:
            return dev.max_in_block
        if kind is Attribute.max_shared_memory_per_block:
            return dev.max_shared
        if kind is Attribute.device_name:
            return str(dev.info["device"] or dev.info["description"] or dev.info["backend_type"])
        if kind is Attribute.max_thread_dimensions:
            return str(dev.max_threads)
        if kind is Attribute.driver_version:
            return str(dev.info["description"]) or None
        return None

    def timer(self, dev_id: int) -> Timer | None:
        dev: Device = self.device(dev_id)
        period = _period(dev) if "timestamp-query" in dev.features else 0.0
        return _QueryTimer(dev, period) if period else None

    def load(self, source: KernelSource) -> Mapping[str, WebGPUKernel]:
        return load(self, source)

    def drv_close(self, dev: Device) -> None:
        dev.close()

    def close(self) -> None:
        super().close()
        self._found = None


def choose(infos: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which adapters are devices, in the order in which they are numbered; given what each says of itself."""

    def interface(i: int) -> int:
        name = infos[i]["backend_type"]
        return _INTERFACES.index(name) if name in _INTERFACES else len(_INTERFACES)

    def kind(i: int) -> int:
        name = infos[i]["adapter_type"]
        return _TYPES.index(name) if name in _TYPES else _TYPES.index("Unknown")

    every = sorted(range(len(infos)), key=interface)
    if every and interface(every[0]) < len(_INTERFACES):
        every = [i for i in every if interface(i) < len(_INTERFACES)]
    by: dict[tuple[Any, Any], int] = {}
    for i in every:
        by.setdefault((infos[i]["vendor_id"], infos[i]["device_id"]), interface(i))
    kept = [i for i in every if by[infos[i]["vendor_id"], infos[i]["device_id"]] == interface(i)]
    return sorted(kept, key=kind)


def _period(dev: Device) -> float:
    """Seconds of one tick of the device's clock; 0 where nothing says so."""
    try:
        from wgpu.backends.wgpu_native import lib

        return float(lib.wgpuQueueGetTimestampPeriod(dev.queue._internal)) * 1e-9
    except (ImportError, AttributeError):  # it is not wgpu-native, or one before it had that
        return 0.0


class _QueryTimer:
    """By the device's clock, at passes that do nothing, before and behind."""

    def __init__(self, dev: Device, period: float) -> None:
        self._dev = dev
        self._period = period
        usage = dev.wgpu.BufferUsage
        with dev.told():
            self._queries = dev.gpu.create_query_set(type="timestamp", count=2)
            self._ticks = dev.gpu.create_buffer(size=_TIMER_NBYTES, usage=usage.QUERY_RESOLVE | usage.COPY_SRC)
        self._began = 0.0

    def _mark(self, encoder: Any, **which: int) -> None:
        encoder.begin_compute_pass(timestamp_writes={"query_set": self._queries, **which}).end()

    def start(self) -> None:
        dev = self._dev
        self._began = time.perf_counter()
        with dev.told():
            encoder = dev.gpu.create_command_encoder()
            self._mark(encoder, beginning_of_pass_write_index=0)
            dev.queue.submit([encoder.finish()])

    def stop(self) -> float:
        dev = self._dev
        with dev.told():
            encoder = dev.gpu.create_command_encoder()
            self._mark(encoder, end_of_pass_write_index=1)
            encoder.resolve_query_set(self._queries, 0, 2, self._ticks, 0)
            dev.queue.submit([encoder.finish()])
            first, last = memoryview(dev.queue.read_buffer(self._ticks)).cast("Q")
        if last <= first:  # a driver that leaves out passes that do nothing
            return time.perf_counter() - self._began
        return float(last - first) * self._period
