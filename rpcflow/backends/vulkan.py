# SPDX-License-Identifier: Apache-2.0
"""Vulkan devices, by the package ``vulkan``. Kernels are SPIR-V with compute entry points (``.spv``)."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from rpcflow.devices import Attribute
from rpcflow.protocol.sinks import Sink, ViewSink

from .base import KernelSource, Memory, Timer
from .blocks import Block, DeviceMemory
from .device import DeviceBackend
from .staging import PIECE_NBYTES
from .vulkan_api import Api, Physical
from .vulkan_kernels import VulkanKernel, load
from .vulkan_memory import Buffer, VulkanDevice
from .vulkan_streams import Stream, stamp_timer


class VulkanBackend(DeviceBackend):
    """Vulkan. Devices are numbered as their drivers list them, but GPUs come before the processor itself.

    Args:
        direct: whether the host writes to a device's memory itself where they share it.
    """

    kind = "vulkan"
    suffixes = (".spv",)

    def __init__(self, *, direct: bool = True) -> None:
        super().__init__()
        self._direct = direct
        self._api: Api | None = None

    def drv_find(self) -> Sequence[Physical]:
        self._api = Api()
        return self._api.devices

    def version(self) -> str:
        found = self.found()
        if not found:
            return ""
        drivers = dict.fromkeys(f"{device.driver}, Vulkan {device.api[0]}.{device.api[1]}" for device in found)
        return ", ".join((f"vulkan {version('vulkan')}", *drivers))

    def drv_open(self, dev_id: int, found: Physical) -> VulkanDevice:
        assert self._api is not None
        return VulkanDevice(dev_id, self._api, found, self._direct)

    def drv_close(self, dev: VulkanDevice) -> None:
        dev.close()

    def close(self) -> None:
        super().close()
        self._found = ()
        api, self._api = self._api, None
        if api is not None:
            api.close()

    # ---- streams

    def drv_stream(self, dev: VulkanDevice, first: bool) -> Stream:
        return Stream(dev)

    def drv_free_stream(self, dev: VulkanDevice, stream: Stream) -> None:
        stream.free()

    def drv_wait(self, dev: VulkanDevice, stream: Stream) -> None:
        stream.wait()

    def timer(self, dev_id: int) -> Timer | None:
        dev: VulkanDevice = self.device(dev_id)
        return stamp_timer(self.streams.get(dev_id, 0)) if dev.physical.timestamp_bits else None

    # ---- memory

    def drv_max_nbytes(self, dev: VulkanDevice) -> int:
        return min(dev.physical.max_nbytes, dev.physical.heap_nbytes() or 1 << 62)

    def drv_allocate(self, dev: VulkanDevice, nbytes: int) -> tuple[Buffer, int]:
        return dev.allocate(nbytes), 0

    def drv_free(self, dev: VulkanDevice, raw: Buffer) -> None:
        dev.drop(raw)

    def drv_write(self, dev: VulkanDevice, raw: Buffer, offset: int, data: memoryview, stream: Stream) -> None:
        if raw.pointer is not None:
            stream.wait()
            dev.ffi.memmove(raw.pointer + offset, data, len(data))
            return
        staging = dev.staging()
        for at in range(0, len(data), PIECE_NBYTES):
            piece = data[at : at + PIECE_NBYTES]
            dev.ffi.memmove(staging.pointer, piece, len(piece))
            stream.copy(staging, 0, raw, offset + at, len(piece))
            stream.wait()

    def drv_read(self, dev: VulkanDevice, raw: Buffer, offset: int, data: memoryview, stream: Stream) -> None:
        if raw.pointer is not None and raw.readable:
            stream.wait()
            dev.ffi.memmove(data, raw.pointer + offset, len(data))
            return
        staging = dev.staging()
        for at in range(0, len(data), PIECE_NBYTES):
            piece = data[at : at + PIECE_NBYTES]
            stream.copy(raw, offset + at, staging, 0, len(piece))
            stream.wait()
            dev.ffi.memmove(piece, staging.pointer, len(piece))

    def drv_copy(
        self,
        dev: VulkanDevice,
        source: Buffer,
        source_offset: int,
        target: Buffer,
        target_offset: int,
        nbytes: int,
        stream: Stream,
    ) -> None:
        stream.copy(source, source_offset, target, target_offset, nbytes)

    def sink(self, memory: Memory, offset: int, nbytes: int) -> Sink:
        """Where the host may write to the device's memory, straight into that."""
        assert isinstance(memory, DeviceMemory)
        raw: Buffer = memory.block.raw
        if not nbytes or raw.pointer is None:
            return super().sink(memory, offset, nbytes)
        dev_id = memory.device.dev_id
        dev: VulkanDevice = self.device(dev_id)
        self.streams.get(dev_id, 0).wait()
        return _BlockSink(_view(dev, raw, memory.offset + offset, nbytes), memory.block)

    def read(self, memory: Memory, offset: int, nbytes: int) -> memoryview:
        """Likewise from it."""
        assert isinstance(memory, DeviceMemory)
        raw: Buffer = memory.block.raw
        if not nbytes or raw.pointer is None or not raw.readable:
            return super().read(memory, offset, nbytes)
        dev_id = memory.device.dev_id
        dev: VulkanDevice = self.device(dev_id)
        self.streams.get(dev_id, 0).wait()
        return _view(dev, raw, memory.offset + offset, nbytes)

    # ---- the rest

    def drv_attribute(self, dev: VulkanDevice, kind: Attribute) -> int | str | None:
        physical = dev.physical
        if kind is Attribute.max_threads_per_block:
            return dev.max_threads
        if kind is Attribute.warp_size:
            return physical.subgroup[0] or 1
        if kind is Attribute.max_shared_memory_per_block:
            return int(physical.limits.maxComputeSharedMemorySize)
        if kind is Attribute.compute_version:
            return f"{physical.api[0]}.{physical.api[1]}"
        if kind is Attribute.device_name:
            return physical.name
        if kind is Attribute.max_thread_dimensions:
            return str(list(dev.max_block))
        if kind is Attribute.api_version:
            return physical.version
        if kind is Attribute.driver_version:
            return physical.driver
        return physical.heap_nbytes() if kind is Attribute.total_global_memory else None

    def load(self, source: KernelSource) -> Mapping[str, VulkanKernel]:
        return load(self, source)


class _BlockSink(ViewSink):
    """Into the memory of a block, which lives as long."""

    def __init__(self, view: memoryview, block: Block) -> None:
        super().__init__(view)
        self._block = block


def _view(dev: VulkanDevice, raw: Buffer, offset: int, nbytes: int) -> memoryview:
    return memoryview(dev.ffi.buffer(raw.pointer + offset, nbytes))
