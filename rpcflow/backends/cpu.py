# SPDX-License-Identifier: Apache-2.0
"""The host's own memory as a device."""

import ctypes
import os
from typing import Any, Final

import attrs
import numpy as np

from rpcflow.devices import Attribute
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.sinks import Sink, ViewSink
from rpcflow.protocol.values import Device

from .base import Backend, BackendError, Memory

ALIGNMENT: Final = 64
"""Bytes: a cache line, and the widest vector registers."""
_MAX_ALIGNMENT: Final = 1 << 21


@attrs.define(eq=False)
class CpuMemory:
    """A stretch of this process's memory. ``owner`` keeps it valid."""

    device: Device
    nbytes: int
    address: int
    owner: Any
    view: memoryview
    arguments: dict[Any, Any] = attrs.Factory(dict)


class CpuBackend(Backend):
    """Plain memory: copies are immediate, and every stream is the one there is."""

    kind = "cpu"

    def attribute(self, dev_id: int, kind: int) -> int | str | None:
        if kind == Attribute.exist:
            return 1
        if kind == Attribute.total_global_memory:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return None

    def allocate(self, device: Device, nbytes: int, alignment: int, dtype: DataType, scope: str | None) -> CpuMemory:
        if scope not in (None, "", "global"):
            raise BackendError(f"a cpu has no memory of the scope {scope!r}, only 'global'", device="cpu")
        alignment = max(alignment, ALIGNMENT, 1 << (dtype.itemsize - 1).bit_length() if dtype.itemsize else 1)
        if alignment > _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise BackendError(f"an alignment of {alignment} bytes cannot be had", device="cpu")
        try:
            block = np.empty(nbytes + alignment, np.uint8)
        except (MemoryError, ValueError) as error:
            raise MemoryError(f"{nbytes} bytes of cpu memory cannot be had") from error
        base: int = block.__array_interface__["data"][0]
        start = -base % alignment
        return CpuMemory(device, nbytes, base + start, block, block[start : start + nbytes].data)

    def free(self, memory: Memory) -> None:
        memory.arguments.clear()

    def wrap(self, device: Device, address: int, nbytes: int, owner: Any) -> CpuMemory:
        if not nbytes:
            return CpuMemory(device, 0, address, owner, memoryview(b""))
        block = (ctypes.c_char * nbytes).from_address(address)
        block.owner = owner  # type: ignore[attr-defined]  # whoever looks into the view keeps the memory
        return CpuMemory(device, nbytes, address, owner, memoryview(block).cast("B"))

    def sink(self, memory: Memory, offset: int, nbytes: int) -> Sink:
        return ViewSink(_view(memory)[offset : offset + nbytes])

    def received(self, memory: Memory, offset: int, nbytes: int, sink: Sink) -> None:
        pass  # it was received in place

    def read(self, memory: Memory, offset: int, nbytes: int) -> memoryview:
        return _view(memory)[offset : offset + nbytes]

    def copy(
        self, source: Memory, source_offset: int, target: Memory, target_offset: int, nbytes: int, stream: int
    ) -> None:
        ctypes.memmove(target.address + target_offset, source.address + source_offset, nbytes)

    def synchronize(self, dev_id: int, stream: int) -> None:
        pass  # nothing runs behind the caller's back


def _view(memory: Memory) -> memoryview:
    assert isinstance(memory, CpuMemory)
    return memory.view
