# SPDX-License-Identifier: Apache-2.0
"""OpenCL devices, by pyopencl. Kernels are OpenCL C (``.cl``), or SPIR-V (``.spv``) where the driver takes it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

import attrs
import numpy as np

from rpcflow.devices import Attribute
from rpcflow.protocol.sinks import Sink, ViewSink

from .base import BackendError, Kernel, KernelError, KernelSource, Memory, Timer
from .blocks import DeviceMemory
from .device import DeviceBackend
from .kernels import Lazily
from .opencl_kernels import OpenCLKernel

_INSTALL: Final = "pip install 'rpcflow[opencl]'"
_MOST_EVENTS: Final = 1000
"""Kept while time is measured; they are not small."""


@attrs.define(eq=False)
class OpenCLDevice:
    """A device in use."""

    dev_id: int
    context: Any
    device: Any
    max_group: int
    max_items: list[int]
    base_align: int


class OpenCLBackend(DeviceBackend):
    """OpenCL. Devices are numbered over all platforms: GPUs, accelerators, then others, as their drivers list them."""

    kind = "opencl"
    suffixes = (".cl", ".spv")

    def __init__(self) -> None:
        super().__init__()
        self.cl: Any = None
        self.timing: _EventTimer | None = None

    def drv_find(self) -> Sequence[Any]:
        try:
            import pyopencl
        except ImportError as error:
            raise BackendError(f"pyopencl cannot be imported ({error}): {_INSTALL}") from error
        self.cl = cl = pyopencl
        try:
            devices = [device for platform in cl.get_platforms() for device in platform.get_devices()]
        except cl.Error as error:
            raise BackendError(
                f"no OpenCL driver answers ({_text(error)}): install your device's, or for the processor itself "
                "PoCL (Debian: apt-get install pocl-opencl-icd)"
            ) from error
        if not devices:
            raise BackendError("the OpenCL drivers find no device")
        gpu, accelerator = cl.device_type.GPU, cl.device_type.ACCELERATOR
        return sorted(devices, key=lambda device: (not device.type & gpu, not device.type & accelerator))

    def version(self) -> str:
        found = self.found()
        text = f"pyopencl {version('pyopencl')}"
        platforms = dict.fromkeys(f"{device.platform.name} {device.driver_version}" for device in found)
        return ", ".join((text, *platforms))

    def drv_open(self, dev_id: int, found: Any) -> OpenCLDevice:
        try:
            context = self.cl.Context([found])
        except self.cl.Error as error:
            raise BackendError(
                f"opencl({dev_id}) cannot be used: {_text(error)}", device=f"opencl({dev_id})"
            ) from error
        return OpenCLDevice(
            dev_id,
            context,
            found,
            found.max_work_group_size,
            list(found.max_work_item_sizes),
            max(found.mem_base_addr_align // 8, 1),
        )

    def drv_stream(self, dev: OpenCLDevice, first: bool) -> Any:
        return self.cl.CommandQueue(dev.context, properties=self.cl.command_queue_properties.PROFILING_ENABLE)

    def drv_free_stream(self, dev: OpenCLDevice, stream: Any) -> None:
        pass  # collecting it frees it

    def drv_wait(self, dev: OpenCLDevice, stream: Any) -> None:
        with self.told(dev):
            stream.finish()

    def drv_max_nbytes(self, dev: OpenCLDevice) -> int:
        return int(dev.device.max_mem_alloc_size)

    def drv_allocate(self, dev: OpenCLDevice, nbytes: int) -> tuple[Any, int]:
        flags = self.cl.mem_flags.READ_WRITE
        if dev.device.type & self.cl.device_type.CPU:
            flags |= self.cl.mem_flags.ALLOC_HOST_PTR  # at once: PoCL aborts where there is no room at the first use
        try:
            return self.cl.Buffer(dev.context, flags, nbytes), 0
        except self.cl.Error as error:
            raise MemoryError(f"{nbytes} bytes of opencl memory cannot be had: {_text(error)}") from error

    def drv_free(self, dev: OpenCLDevice, raw: Any) -> None:
        raw.release()

    def drv_write(self, dev: OpenCLDevice, raw: Any, offset: int, data: memoryview, stream: Any) -> None:
        with self.told(dev):
            self.cl.enqueue_copy(stream, raw, data, dst_offset=offset, is_blocking=True)

    def drv_read(self, dev: OpenCLDevice, raw: Any, offset: int, data: memoryview, stream: Any) -> None:
        with self.told(dev):
            self.cl.enqueue_copy(stream, data, raw, src_offset=offset, is_blocking=True)

    def drv_copy(
        self,
        dev: OpenCLDevice,
        source: Any,
        source_offset: int,
        target: Any,
        target_offset: int,
        nbytes: int,
        stream: Any,
    ) -> None:
        with self.told(dev):
            if source is target and abs(source_offset - target_offset) < nbytes:  # it must not overlap
                between = self.cl.Buffer(dev.context, self.cl.mem_flags.READ_WRITE, nbytes)
                self.cl.enqueue_copy(stream, between, source, byte_count=nbytes, src_offset=source_offset)
                source, source_offset = between, 0
            event = self.cl.enqueue_copy(
                stream, target, source, byte_count=nbytes, src_offset=source_offset, dst_offset=target_offset
            )
        if self.timing is not None:
            self.timing.add(event)

    def sink(self, memory: Memory, offset: int, nbytes: int) -> Sink:
        """The driver's own view of the memory: where host and device share theirs, nothing is copied."""
        assert isinstance(memory, DeviceMemory)
        if not nbytes:
            return ViewSink(memoryview(b""))
        dev = self.device(memory.device.dev_id)
        stream = self.streams.get(dev.dev_id, 0)
        with self.told(dev):
            array, _ = self.cl.enqueue_map_buffer(
                stream,
                memory.block.raw,
                self.cl.map_flags.WRITE_INVALIDATE_REGION,
                memory.offset + offset,
                (nbytes,),
                np.uint8,
                is_blocking=True,
            )
        return _MappedSink(array, stream)

    def received(self, memory: Memory, offset: int, nbytes: int, sink: Sink) -> None:
        if isinstance(sink, _MappedSink):
            with self.told(self.device(memory.device.dev_id)):
                sink.release()

    def drv_attribute(self, dev: OpenCLDevice, kind: Attribute) -> int | str | None:
        device = dev.device
        if kind is Attribute.max_threads_per_block:
            return dev.max_group
        if kind is Attribute.max_shared_memory_per_block:
            return int(device.local_mem_size)
        if kind is Attribute.compute_version:
            return str(device.opencl_c_version).removeprefix("OpenCL C ").split(" ")[0]
        if kind is Attribute.device_name:
            return str(device.name)
        if kind is Attribute.max_clock_rate:
            return int(device.max_clock_frequency) * 1000
        if kind is Attribute.multi_processor_count:
            return int(device.max_compute_units)
        if kind is Attribute.max_thread_dimensions:
            return str(dev.max_items)
        if kind is Attribute.api_version:
            major, minor = str(device.version).split(" ")[1].split(".")[:2]
            return int(major) * 100 + int(minor) * 10
        if kind is Attribute.driver_version:
            return str(device.driver_version)
        if kind is Attribute.l2_cache_size_bytes:
            return int(device.global_mem_cache_size)
        if kind is Attribute.total_global_memory:
            return int(device.global_mem_size)
        if kind is Attribute.image_pitch_alignment:
            return int(getattr(device, "image_pitch_alignment", 0)) or None
        return 1 if kind is Attribute.warp_size else None

    def timer(self, dev_id: int) -> Timer:
        self.device(dev_id)
        return _EventTimer(self)

    # ---- kernels

    def load(self, source: KernelSource) -> Mapping[str, Kernel]:
        first = source.dev_id
        programs = {first: self.build(self.device(first), source)}
        # PoCL never frees what all_kernels() makes.
        names = [name for name in programs[first].get_info(self.cl.program_info.KERNEL_NAMES).split(";") if name]
        if not names:
            raise KernelError(f"{source.name} holds no kernels")
        return Lazily(names, lambda name: OpenCLKernel(self, source, name, programs))

    def build(self, dev: OpenCLDevice, source: KernelSource) -> Any:
        """The program of a source, for one device."""
        if any("\0" in option for option in source.options):
            raise KernelError(f"{source.name}: there is a NUL in an option")
        cl = self.cl
        options = [*source.options, "-cl-kernel-arg-info"]
        try:
            if source.suffix == ".spv":
                if "cl_khr_il_program" not in dev.device.extensions and not getattr(dev.device, "il_version", ""):
                    raise KernelError(f"the driver of {dev.device.name} takes no SPIR-V: give it OpenCL C (.cl)")
                return cl.Program(dev.context, source.data).build(options)
            return cl.Program(dev.context, source.text).build(options)
        except cl.Error as error:
            raise KernelError(f"{source.name} does not compile:\n{_build_log(error)}") from error

    def told(self, dev: OpenCLDevice) -> "_Told":
        """Around calls of the driver."""
        return _Told(self.cl, dev.dev_id)

    def close(self) -> None:
        super().close()
        self._found = None


class _Told:
    """Makes a driver's errors BackendErrors."""

    def __init__(self, cl: Any, dev_id: int) -> None:
        self._cl = cl
        self._dev_id = dev_id

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        name = f"opencl({self._dev_id})"
        if isinstance(error, self._cl.MemoryError) or "OUT_OF_HOST_MEMORY" in str(error):
            raise MemoryError(f"{name}: {_text(error)}") from error
        if isinstance(error, self._cl.Error):
            raise BackendError(f"{name}: {_text(error)}", device=name) from error


class _MappedSink(ViewSink):
    """Into memory that a driver lends for the time being."""

    def __init__(self, array: Any, stream: Any) -> None:
        super().__init__(array.data)
        self._mapping: Any = array.base
        self._stream = stream

    def release(self) -> None:
        """Give it back to the device."""
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            self._view = memoryview(b"")
            mapping.release(self._stream)

    def abandon(self) -> None:
        self._view = memoryview(b"")
        self._mapping = None  # collecting it gives it back, and raises nothing


class _EventTimer:
    """The time in which the device was at work on what was launched and copied, as TVM counts it; not that in between,
    when it waits for the host."""

    def __init__(self, backend: OpenCLBackend) -> None:
        self._backend = backend
        self._events: list[Any] = []
        self._seconds = 0.0
        self._seen = False

    def start(self) -> None:
        self._events.clear()
        self._seconds = 0.0
        self._seen = False
        self._backend.timing = self

    def add(self, event: Any) -> None:
        """One more command."""
        self._events.append(event)
        if len(self._events) >= _MOST_EVENTS:
            self._count()

    def stop(self) -> float | None:
        self._backend.timing = None
        self._count()
        return self._seconds if self._seen else None

    def _count(self) -> None:
        events, self._events = self._events, []
        self._seen = self._seen or bool(events)
        for event in events:
            event.wait()
            self._seconds += (event.profile.end - event.profile.start) * 1e-9


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())


def _build_log(error: Exception) -> str:
    """The compiler's own words, without what the binding puts around them."""
    lines = str(error).splitlines()
    start = next((i + 1 for i, line in enumerate(lines) if line.startswith("Build on ")), 0)
    return "\n".join(line for line in lines[start:] if line.strip() and not line.startswith("(options:"))
