# SPDX-License-Identifier: Apache-2.0
"""What backends of devices with a memory of their own have in common: which devices there are, blocks, streams,
copies by way of host memory. A driver's part is the methods that begin with ``drv_``."""

import abc
import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rpcflow.devices import Attribute
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.sinks import Sink, ViewSink
from rpcflow.protocol.values import Device

from .base import Backend, BackendError, Memory
from .blocks import AddressSpace, Block, DeviceMemory, check_nbytes
from .staging import PIECE_NBYTES, StagingSink
from .streams import Streams


class DeviceBackend(Backend):
    """A backend of devices, each opened when it is first used."""

    virtual = True  # see AddressSpace; else addresses are the driver's own pointers

    def __init__(self) -> None:
        self._found: Sequence[Any] | None = None
        self._why: str | None = None
        self._opened: dict[int, Any] = {}
        self.space = AddressSpace(self.kind)
        self.streams = Streams(self.kind)
        self._room = memoryview(b"")
        self._closed = False

    # ---- what a driver does

    @abc.abstractmethod
    def drv_find(self) -> Sequence[Any]:
        """The devices there are.

        Raises:
            BackendError: there are none, or no driver: why, and what to install.
        """

    @abc.abstractmethod
    def drv_open(self, dev_id: int, found: Any) -> Any:
        """Begin to use a device; what this gives, ``dev``, is what the other methods get."""

    @abc.abstractmethod
    def drv_stream(self, dev: Any, first: bool) -> Any:
        """A stream; ``first``: the one that a device has from the start."""

    @abc.abstractmethod
    def drv_free_stream(self, dev: Any, stream: Any) -> None:
        """Let go of it, once it has done all it was given."""

    @abc.abstractmethod
    def drv_wait(self, dev: Any, stream: Any) -> None:
        """Until it has done all it was given."""

    @abc.abstractmethod
    def drv_max_nbytes(self, dev: Any) -> int:
        """The longest block."""

    @abc.abstractmethod
    def drv_allocate(self, dev: Any, nbytes: int) -> tuple[Any, int]:
        """A block, and its address (of no meaning where those are ours).

        Raises:
            MemoryError: there is no room.
        """

    @abc.abstractmethod
    def drv_free(self, dev: Any, raw: Any) -> None:
        """Let go of a block; what was launched before may still use it."""

    @abc.abstractmethod
    def drv_write(self, dev: Any, raw: Any, offset: int, data: memoryview, stream: Any) -> None:
        """Host memory into a block, behind what is in the stream; done when this returns."""

    @abc.abstractmethod
    def drv_read(self, dev: Any, raw: Any, offset: int, data: memoryview, stream: Any) -> None:
        """A block into host memory, behind what is in the stream; done when this returns."""

    @abc.abstractmethod
    def drv_copy(
        self, dev: Any, source: Any, source_offset: int, target: Any, target_offset: int, nbytes: int, stream: Any
    ) -> None:
        """Within a device, in the order of the stream."""

    @abc.abstractmethod
    def drv_attribute(self, dev: Any, kind: Attribute) -> int | str | None:
        """What the device says of itself, but for whether it exists."""

    def drv_close(self, dev: Any) -> None:
        """The session is over."""

    # ---- devices

    def absence(self) -> str | None:
        if self._found is None and self._why is None:
            try:
                found = self.drv_find()
                if found:
                    self._found = found
                else:
                    self._why = f"no {self.kind} device was found"
            except BackendError as error:
                self._why = str(error)
        return self._why

    def found(self) -> Sequence[Any]:
        """The devices there are, as :meth:`drv_find` has them; empty where there are none."""
        self.absence()
        return self._found or ()

    def device(self, dev_id: int) -> Any:
        """A device, opened.

        Raises:
            BackendError: there is no such device: why, and what to install.
        """
        dev = self._opened.get(dev_id)
        if dev is None:
            if self._closed:
                raise BackendError(f"the session of {self.kind}({dev_id}) is over")
            why = self.absence()
            count = len(self.found())
            if not 0 <= dev_id < count:
                if why is None:
                    why = f"the last one is {self.kind}({count - 1})"
                raise BackendError(f"there is no {self.kind}({dev_id}) here: {why}", device=f"{self.kind}({dev_id})")
            dev = self._opened[dev_id] = self.drv_open(dev_id, self.found()[dev_id])
            self.streams.set_default(dev_id, self.drv_stream(dev, True))
        return dev

    def attribute(self, dev_id: int, kind: int) -> int | str | None:
        if kind == Attribute.exist:
            return int(0 <= dev_id < len(self.found()))
        try:
            known = Attribute(kind)
        except ValueError:
            return None
        return self.drv_attribute(self.device(dev_id), known)

    # ---- memory

    def allocate(self, device: Device, nbytes: int, alignment: int, dtype: DataType, scope: str | None) -> Memory:
        if scope not in (None, "", "global"):
            raise BackendError(
                f"{self.kind} devices have no memory of the scope {scope!r} here, only 'global'", device=self.kind
            )
        dev = self.device(device.dev_id)
        check_nbytes(self.kind, nbytes, self.drv_max_nbytes(dev))
        raw, address = self.drv_allocate(dev, max(nbytes, 1))
        if self.virtual:
            address = self.space.take()

        def release(address: int, raw: Any) -> None:
            if self.virtual:
                self.space.give_back(address)
            if not self._closed:
                self.drv_free(dev, raw)

        block = Block(device.dev_id, address, nbytes, raw, release)
        if self.virtual:
            self.space.put(block)
        return DeviceMemory(device, nbytes, address, block, block)

    def free(self, memory: Memory) -> None:
        memory.arguments.clear()

    def wrap(self, device: Device, address: int, nbytes: int, owner: Any) -> Memory:
        self.device(device.dev_id)
        if not self.virtual:
            foreign = Block(device.dev_id, address, nbytes, address, lambda address, raw: None)
            return DeviceMemory(device, nbytes, address, owner, foreign)
        block, offset = self.space.find(address)
        if offset + nbytes > block.nbytes or block.dev_id != device.dev_id:
            raise BackendError(f"a tensor of {nbytes} bytes at {address:#x} is not this session's", device=self.kind)
        return DeviceMemory(device, nbytes, address, (owner, block), block)

    # ---- copies

    def sink(self, memory: Memory, offset: int, nbytes: int) -> Sink:
        assert isinstance(memory, DeviceMemory)
        if not nbytes:
            return ViewSink(memoryview(b""))
        dev_id = memory.device.dev_id
        dev, stream = self.device(dev_id), self.streams.get(dev_id, 0)
        raw, start = memory.block.raw, memory.offset + offset
        return StagingSink(nbytes, lambda at, data: self.drv_write(dev, raw, start + at, data, stream))

    def received(self, memory: Memory, offset: int, nbytes: int, sink: Sink) -> None:
        if isinstance(sink, StagingSink):
            sink.check()

    def read(self, memory: Memory, offset: int, nbytes: int) -> memoryview:
        assert isinstance(memory, DeviceMemory)
        if not nbytes:
            return memoryview(b"")
        dev_id = memory.device.dev_id
        room = self._room if len(self._room) >= nbytes else np.empty(nbytes, np.uint8).data
        self._room = room if len(room) <= PIECE_NBYTES else memoryview(b"")
        part = room[:nbytes]
        dev = self.device(dev_id)
        self.drv_read(dev, memory.block.raw, memory.offset + offset, part, self.streams.get(dev_id, 0))
        return part

    def copy(
        self, source: Memory, source_offset: int, target: Memory, target_offset: int, nbytes: int, stream: int
    ) -> None:
        assert isinstance(source, DeviceMemory)
        assert isinstance(target, DeviceMemory)
        from_id, to_id = source.device.dev_id, target.device.dev_id
        self.streams.check(to_id, stream)
        if not nbytes:
            return
        if from_id != to_id:
            data = self.read(source, source_offset, nbytes)
            to_stream = self.streams.get(to_id, stream)
            self.drv_write(self.device(to_id), target.block.raw, target.offset + target_offset, data, to_stream)
            return
        self.drv_copy(
            self.device(to_id),
            source.block.raw,
            source.offset + source_offset,
            target.block.raw,
            target.offset + target_offset,
            nbytes,
            self.streams.get(to_id, stream),
        )

    # ---- streams

    def synchronize(self, dev_id: int, stream: int) -> None:
        dev = self.device(dev_id)
        self.drv_wait(dev, self.streams.get(dev_id, stream))

    def create_stream(self, dev_id: int) -> int:
        return self.streams.add(dev_id, self.drv_stream(self.device(dev_id), False))

    def free_stream(self, dev_id: int, stream: int) -> None:
        dev = self.device(dev_id)
        removed = self.streams.remove(dev_id, stream)
        try:
            self.drv_wait(dev, removed)
        finally:
            self.drv_free_stream(dev, removed)

    def set_stream(self, dev_id: int, stream: int) -> None:
        self.device(dev_id)
        self.streams.set_current(dev_id, stream)

    def current_stream(self, dev_id: int) -> int:
        return self.streams.current(dev_id)

    def set_device(self, dev_id: int) -> None:
        self.device(dev_id)

    def close(self) -> None:
        self._closed = True
        self.streams.clear()
        opened, self._opened = self._opened, {}
        with contextlib.ExitStack() as stack:
            for dev in opened.values():
                stack.callback(self.drv_close, dev)
