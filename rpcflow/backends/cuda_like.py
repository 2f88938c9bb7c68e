# SPDX-License-Identifier: Apache-2.0
"""What CUDA and HIP have in common, which is nearly all: HIP's functions are CUDA's under other names.

Both bindings return tuples that begin with the status. Contexts and current devices are a thread's, so that each use
of a driver begins with :meth:`CudaLikeBackend.enter`.
"""

import abc
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from rpcflow import registry
from rpcflow.devices import Attribute

from .base import BackendError, KernelError, KernelSource, Timer
from .device import DeviceBackend
from .gpu_kernels import DeviceKernel, Image, Kernels, Program


@attrs.frozen(eq=False)
class Driver:
    """A driver's functions, as its binding has them, and the meaning of some of its statuses.

    ``out_of_memory``; ``lost``: the context is of no use any more; ``refused``: a launch that is asked for too much or
    wrongly. ``nothing``: what the binding takes for a null pointer.
    """

    allocate: Any
    free: Any
    write: Any
    read: Any
    copy: Any
    new_stream: Any
    free_stream: Any
    wait_stream: Any
    wait_all: Any
    new_event: Any
    free_event: Any
    record: Any
    wait_event: Any
    elapsed: Any
    unload: Any
    function: Any
    launch: Any
    error_text: Any
    nothing: Any
    out_of_memory: frozenset[int]
    lost: frozenset[int]
    refused: frozenset[int]


@attrs.define(eq=False)
class GpuDevice:
    """A device in use. ``handle``, ``context``: the driver's; ``target``: what compilers call its architecture."""

    dev_id: int
    handle: Any
    context: Any
    target: str
    nbytes: int
    max_grid: tuple[int, int, int]
    max_block: tuple[int, int, int]
    max_threads: int
    lost: bool = False
    blocks: set[int] = attrs.Factory(set)
    streams: set[Any] = attrs.Factory(set)


class CudaLikeBackend(DeviceBackend):
    """A backend whose driver is like CUDA's."""

    virtual = False
    driver: Driver

    # ---- what differs

    @abc.abstractmethod
    def enter(self, dev: GpuDevice) -> None:
        """Make the device this thread's current one."""

    @abc.abstractmethod
    def address(self, pointer: Any) -> int:
        """A pointer or handle of the binding's as a number."""

    @abc.abstractmethod
    def image(self, dev: GpuDevice, source: KernelSource) -> Image:
        """What of a file is loaded on such a device: compiled, if it is source.

        Raises:
            KernelError: it does not compile.
        """

    @abc.abstractmethod
    def load_image(self, dev: GpuDevice, name: str, image: Image) -> Any:
        """The driver's module; the device is current. ``name``: of the file.

        Raises:
            KernelError: the driver does not take it.
        """

    @abc.abstractmethod
    def most_threads(self, dev: GpuDevice, function: Any) -> int:
        """How many threads a block of it has at most."""

    def param_sizes(self, function: Any) -> tuple[int, ...] | None:
        """Bytes of each parameter of a function, or None where the driver does not say."""
        return None

    def forget_error(self) -> None:  # nothing to do where none is kept
        """An error was seen to: others in this process shall not come upon it."""

    # ---- statuses

    def done(self, dev: GpuDevice, result: Sequence[Any]) -> Any:
        """What a function of the driver gave, behind its status.

        Raises:
            BackendError: the status is an error.
        """
        if result[0]:
            raise self.failure(dev, result[0])
        return result[1] if len(result) > 1 else None

    def opening(self, dev_id: int, result: Sequence[Any]) -> Any:
        """What a function of the driver gave about a device that is not open yet.

        Raises:
            BackendError: the status is an error.
        """
        if result[0]:
            name = f"{self.kind}({dev_id})"
            raise BackendError(f"{name} cannot be used: {self.told(result[0])}", device=name)
        return result[1] if len(result) > 1 else None

    def told(self, status: Any) -> str:
        """A status in the driver's words."""
        text = self.driver.error_text(status)
        text = text[-1] if isinstance(text, tuple) else text
        name = getattr(status, "name", str(status))
        return f"{name} ({text.decode(errors='replace') if hasattr(text, 'decode') else text})"

    def failure(self, dev: GpuDevice, status: Any) -> BackendError:
        """The error that a status stands for."""
        self.forget_error()
        name = f"{self.kind}({dev.dev_id})"
        text = f"{name}: {self.told(status)}"
        if status in self.driver.lost:
            dev.lost = True
            text += ": what ran there before has failed, and the device's context is lost with all its memory; begin a "
            text += "new session"
        return BackendError(text, device=name)

    # ---- memory, streams

    def drv_max_nbytes(self, dev: GpuDevice) -> int:
        return dev.nbytes

    def drv_allocate(self, dev: GpuDevice, nbytes: int) -> tuple[int, int]:
        self.enter(dev)
        result = self.driver.allocate(nbytes)
        if result[0] in self.driver.out_of_memory:
            self.forget_error()
            raise MemoryError(f"{nbytes} bytes of {self.kind} memory cannot be had: {self.told(result[0])}")
        address = self.address(self.done(dev, result))
        dev.blocks.add(address)
        return address, address

    def drv_free(self, dev: GpuDevice, raw: int) -> None:
        dev.blocks.discard(raw)
        if not dev.lost:
            self.enter(dev)
            self.done(dev, self.driver.free(raw))  # it waits for what may use it

    def drv_write(self, dev: GpuDevice, raw: int, offset: int, data: memoryview, stream: Any) -> None:
        self.enter(dev)
        self.done(dev, self.driver.write(raw + offset, _host_address(data), len(data), stream))
        self.done(dev, self.driver.wait_stream(stream))

    def drv_read(self, dev: GpuDevice, raw: int, offset: int, data: memoryview, stream: Any) -> None:
        self.enter(dev)
        self.done(dev, self.driver.read(_host_address(data), raw + offset, len(data), stream))
        self.done(dev, self.driver.wait_stream(stream))

    def drv_copy(
        self, dev: GpuDevice, source: int, source_offset: int, target: int, target_offset: int, nbytes: int, stream: Any
    ) -> None:
        begin, to = source + source_offset, target + target_offset
        if begin == to:
            return
        self.enter(dev)
        if abs(begin - to) >= nbytes:
            self.done(dev, self.driver.copy(to, begin, nbytes, stream))
            return
        between, _ = self.drv_allocate(dev, nbytes)  # it must not overlap
        try:
            self.done(dev, self.driver.copy(between, begin, nbytes, stream))
            self.done(dev, self.driver.copy(to, between, nbytes, stream))
            self.done(dev, self.driver.wait_stream(stream))
        finally:
            self.drv_free(dev, between)

    def drv_stream(self, dev: GpuDevice, first: bool) -> Any:
        if first:  # the context's own, which all others of default flags wait for and which waits for them
            return self.default_stream()
        self.enter(dev)
        stream = self.done(dev, self.driver.new_stream(0))
        dev.streams.add(stream)
        return stream

    @abc.abstractmethod
    def default_stream(self) -> Any:
        """The binding's null stream."""

    def drv_free_stream(self, dev: GpuDevice, stream: Any) -> None:
        self.enter(dev)
        dev.streams.discard(stream)
        self.done(dev, self.driver.free_stream(stream))

    def drv_wait(self, dev: GpuDevice, stream: Any) -> None:
        self.enter(dev)
        self.done(dev, self.driver.wait_stream(stream))

    def set_stream(self, dev_id: int, stream: int) -> None:
        super().set_stream(dev_id, stream)
        self._tell_stream(dev_id, self.streams.get(dev_id, 0))

    def free_stream(self, dev_id: int, stream: int) -> None:
        if stream and self.streams.current(dev_id) == stream:
            self.streams.check(dev_id, stream)
            self.set_stream(dev_id, 0)
        super().free_stream(dev_id, stream)

    def _tell_stream(self, dev_id: int, raw: Any) -> None:
        """Let tvm-ffi know the current stream: kernels that TVM or tvm_ffi.cpp compiled launch on its word."""
        ffi = registry.tvm_ffi()
        if ffi is not None:
            stream = self.address(raw)
            ffi.use_raw_stream(ffi.device(self.kind, dev_id), stream).__enter__()  # until it is told another

    def set_device(self, dev_id: int) -> None:
        self.enter(self.device(dev_id))

    def timer(self, dev_id: int) -> Timer:
        return _EventTimer(self, self.device(dev_id))

    def drv_close(self, dev: GpuDevice) -> None:
        # statuses are of no interest: whatever fails now is gone with the context
        if not dev.lost:
            self._tell_stream(dev.dev_id, self.default_stream())  # others launch on its word, also behind this session
            self.enter(dev)
            self.driver.wait_all()
            for stream in dev.streams:
                self.driver.free_stream(stream)
            for address in dev.blocks:
                self.driver.free(address)
        dev.streams.clear()
        dev.blocks.clear()

    @property
    def closed(self) -> bool:
        """Whether the session is over, and all that was the driver's given back."""
        return self._closed

    # ---- attributes, kernels

    def plain_attribute(self, dev: GpuDevice, kind: Attribute) -> int | str | None:
        """What is known since the device was opened."""
        if kind is Attribute.max_threads_per_block:
            return dev.max_threads
        if kind is Attribute.max_thread_dimensions:
            return str(list(dev.max_block))
        return dev.nbytes if kind is Attribute.total_global_memory else None

    def load(self, source: KernelSource) -> Mapping[str, DeviceKernel]:
        dev = self.device(source.dev_id)
        program = Program(self, source)
        entries = program.image(dev).entries
        if not entries:
            raise KernelError(f"{source.name} holds no kernels")
        program.module(dev)  # whatever the driver does not like in it is said now
        return Kernels(program, entries)


class _EventTimer:
    """By the device's clock at events in its stream."""

    def __init__(self, backend: CudaLikeBackend, dev: GpuDevice) -> None:
        self._backend = backend
        self._dev = dev
        self._events: list[Any] = []
        backend.enter(dev)
        for _ in range(2):
            self._events.append(backend.done(dev, backend.driver.new_event(0)))

    def start(self) -> None:
        self._record(0)

    def stop(self) -> float:
        backend, (begin, end) = self._backend, self._events
        self._record(1)
        backend.done(self._dev, backend.driver.wait_event(end))
        return float(backend.done(self._dev, backend.driver.elapsed(begin, end))) * 1e-3

    def _record(self, i: int) -> None:
        backend, dev = self._backend, self._dev
        backend.enter(dev)
        backend.done(dev, backend.driver.record(self._events[i], backend.streams.get(dev.dev_id, 0)))

    def __del__(self) -> None:
        if not (self._dev.lost or self._backend.closed):
            for event in self._events:
                self._backend.driver.free_event(event)


def _host_address(data: memoryview) -> int:
    return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])


def package_version(name: str) -> str:
    """The version of an installed package, or a question mark."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "?"
