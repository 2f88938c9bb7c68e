# SPDX-License-Identifier: Apache-2.0
"""Apple's GPUs, by Metal and pyobjc. Kernels are Metal's language, as source (``.metal``).

Memory is shared by host and device, and data are received straight into it: on a Mac whose GPU has memory of its own
that is right, and slow. Streams are command queues; each launch is a command buffer, and what goes wrong in one is told
when its queue is next waited for.

Names and behaviour are those of Apple's documentation and of pyobjc 12's metadata. The latter has no way out for the
reflection of ``newComputePipelineStateWithFunction:options:reflection:error:``; the variant with a completion handler
gives it.
"""

import ctypes
import platform
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import attrs

from rpcflow.devices import Attribute
from rpcflow.protocol.sinks import Sink, ViewSink

from .base import BackendError, Kernel, KernelError, KernelSource, Memory, Timer
from .blocks import DeviceMemory
from .device import DeviceBackend
from .kernels import Lazily
from .metal_kernels import MetalKernel
from .metal_source import declarations

_INSTALL: Final = "pip install 'rpcflow[metal]'"
_COMPLETED: Final = 4
_FAILED: Final = 5
"""Of MTLCommandBufferStatus, the last two."""
_KERNEL: Final = 3
"""MTLFunctionTypeKernel."""
_REFLECTION: Final = 1 | 2
"""MTLPipelineOption: bindings, with the types in their buffers."""
_UNDER_WAY: Final = 64
"""Command buffers that a queue has under way at most; it makes the next one wait."""
_BLIT_ALIGNMENT: Final = 4


@attrs.frozen(eq=False)
class _Device:
    dev_id: int
    device: Any
    most_threads: list[int]
    most_local: int


@attrs.frozen(eq=False)
class _Buffer:
    buffer: Any
    view: memoryview


class MetalBackend(DeviceBackend):
    """Metal. Device 0 is the system's default one."""

    kind = "metal"
    suffixes = (".metal",)

    def __init__(self) -> None:
        super().__init__()
        self._metal: Any = None
        self._objc: Any = None
        self.size: Any = None
        """Makes an MTLSize."""
        self.unified = False
        """Whether all devices are Apple's own, which share their memory with the host."""

    def drv_find(self) -> Sequence[Any]:
        try:
            import Metal
            import objc
        except ImportError as error:
            if sys.platform != "darwin":
                raise BackendError(f"Metal is for macOS, and this is {sys.platform}; there: {_INSTALL}") from error
            raise BackendError(f"pyobjc-framework-Metal cannot be imported ({error}): {_INSTALL}") from error
        self._metal, self._objc, self.size = Metal, objc, Metal.MTLSize
        default = Metal.MTLCreateSystemDefaultDevice()
        devices = list(Metal.MTLCopyAllDevices() or ())
        if default is None:
            return devices
        first = default.registryID()
        found = [default, *(device for device in devices if device.registryID() != first)]
        self.unified = all(device.hasUnifiedMemory() for device in found)
        return found

    def version(self) -> str:
        try:
            text = f"pyobjc-framework-Metal {version('pyobjc-framework-Metal')}"
        except PackageNotFoundError:
            text = "pyobjc-framework-Metal"
        system = platform.mac_ver()[0]
        return f"{text}, macOS {system}" if system else text

    def told(self, dev_id: int) -> "_Told":
        """Around calls of Metal: makes its errors BackendErrors, and lets go of what it made by the way, which in a
        process without an event loop nobody else does."""
        return _Told(self._objc, dev_id)

    def drv_open(self, dev_id: int, found: Any) -> _Device:
        with self.told(dev_id):
            most = found.maxThreadsPerThreadgroup()
            threads = [int(most.width), int(most.height), int(most.depth)]
            return _Device(dev_id, found, threads, int(found.maxThreadgroupMemoryLength()))

    def drv_stream(self, dev: _Device, first: bool) -> "_Queue":
        with self.told(dev.dev_id):
            queue = dev.device.newCommandQueue()
        if queue is None:
            raise BackendError(f"metal({dev.dev_id}) has no more command queues", device=f"metal({dev.dev_id})")
        return _Queue(queue, f"metal({dev.dev_id})")

    def drv_free_stream(self, dev: _Device, stream: "_Queue") -> None:
        pass  # collecting it frees it

    def drv_wait(self, dev: _Device, stream: "_Queue") -> None:
        with self.told(dev.dev_id):
            stream.wait()

    # ---- memory

    def drv_max_nbytes(self, dev: _Device) -> int:
        return int(dev.device.maxBufferLength())

    def drv_allocate(self, dev: _Device, nbytes: int) -> tuple[_Buffer, int]:
        with self.told(dev.dev_id):
            buffer = dev.device.newBufferWithLength_options_(nbytes, self._metal.MTLResourceStorageModeShared)
            if buffer is None:
                raise MemoryError(f"{nbytes} bytes of metal memory cannot be had")
            return _Buffer(buffer, memoryview(buffer.contents().as_buffer(nbytes)).cast("B")), 0

    def drv_free(self, dev: _Device, raw: _Buffer) -> None:
        pass  # collecting it frees it; command buffers keep what they use

    def drv_write(self, dev: _Device, raw: _Buffer, offset: int, data: memoryview, stream: "_Queue") -> None:
        self.drv_wait(dev, stream)
        raw.view[offset : offset + len(data)] = data

    def drv_read(self, dev: _Device, raw: _Buffer, offset: int, data: memoryview, stream: "_Queue") -> None:
        self.drv_wait(dev, stream)
        data[:] = raw.view[offset : offset + len(data)]

    def drv_copy(
        self,
        dev: _Device,
        source: _Buffer,
        source_offset: int,
        target: _Buffer,
        target_offset: int,
        nbytes: int,
        stream: "_Queue",
    ) -> None:
        overlap = source is target and abs(source_offset - target_offset) < nbytes
        if overlap or (source_offset | target_offset | nbytes) % _BLIT_ALIGNMENT:  # no blit does these
            self.drv_wait(dev, stream)
            to, from_ = (ctypes.c_char.from_buffer(raw.view) for raw in (target, source))
            ctypes.memmove(ctypes.addressof(to) + target_offset, ctypes.addressof(from_) + source_offset, nbytes)
            return
        with self.told(dev.dev_id):
            commands = stream.begin()
            encoder = commands.blitCommandEncoder()
            try:
                encoder.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size_(
                    source.buffer, source_offset, target.buffer, target_offset, nbytes
                )
            finally:
                encoder.endEncoding()
            stream.commit(commands)

    def sink(self, memory: Memory, offset: int, nbytes: int) -> Sink:
        """The memory itself."""
        assert isinstance(memory, DeviceMemory)
        dev_id = memory.device.dev_id
        self.drv_wait(self.device(dev_id), self.streams.get(dev_id, 0))
        start = memory.offset + offset
        return ViewSink(memory.block.raw.view[start : start + nbytes])

    def read(self, memory: Memory, offset: int, nbytes: int) -> memoryview:
        """The memory itself."""
        assert isinstance(memory, DeviceMemory)
        dev_id = memory.device.dev_id
        self.drv_wait(self.device(dev_id), self.streams.get(dev_id, 0))
        start = memory.offset + offset
        view: memoryview = memory.block.raw.view
        return view[start : start + nbytes]

    # ---- what it says of itself

    def drv_attribute(self, dev: _Device, kind: Attribute) -> int | str | None:
        device = dev.device
        if kind is Attribute.max_threads_per_block:
            return max(dev.most_threads)
        if kind is Attribute.max_shared_memory_per_block:
            return dev.most_local
        if kind is Attribute.device_name:
            return str(device.name())
        if kind is Attribute.max_thread_dimensions:
            return str(dev.most_threads)
        if kind is Attribute.driver_version:
            return platform.mac_ver()[0] or None
        if kind is Attribute.total_global_memory:
            return int(device.recommendedMaxWorkingSetSize())
        if kind is Attribute.available_global_memory:
            return max(int(device.recommendedMaxWorkingSetSize()) - int(device.currentAllocatedSize()), 0)
        return 1 if kind is Attribute.warp_size else None  # as TVM has it for Metal

    def timer(self, dev_id: int) -> Timer:
        self.device(dev_id)
        return _BusyTimer(self, dev_id, self.streams.get(dev_id, 0))

    # ---- kernels

    def load(self, source: KernelSource) -> Mapping[str, Kernel]:
        dev = self.device(source.dev_id)
        with self.told(source.dev_id):
            library = self.compile(dev, source)
            names = [str(name) for name in library.functionNames()]
            made = {name: library.newFunctionWithName_(name) for name in names}
            # those with constants that are still open cannot be made
            kernels = [
                name for name, function in made.items() if function is not None and function.functionType() == _KERNEL
            ]
        if not kernels:
            raise KernelError(f"{source.name} holds no kernels")
        declared = declarations(source.text)
        libraries = {source.dev_id: library}
        return Lazily(kernels, lambda name: MetalKernel(self, source, name, libraries, declared.get(name, {})))

    def compile(self, dev: _Device, source: KernelSource) -> Any:
        """The library of a source, for one device."""
        options = self._compile_options(source)
        with self.told(dev.dev_id):
            library, error = dev.device.newLibraryWithSource_options_error_(source.text, options, None)
            if library is None:
                raise KernelError(f"{source.name} does not compile:\n{_words(error)}")
            return library

    def _compile_options(self, source: KernelSource) -> Any:
        options = self._metal.MTLCompileOptions.alloc().init()
        macros: dict[str, str] = {}
        for text in source.options:
            if text.startswith("-D") and len(text) > 2:
                name, equals, value = text[2:].partition("=")
                macros[name] = value if equals else "1"
            elif text in ("-ffast-math", "-fno-fast-math"):
                options.setFastMathEnabled_(text == "-ffast-math")
            else:
                raise KernelError(
                    f"{source.name}: Metal's compiler is given -DNAME=VALUE, -ffast-math or -fno-fast-math here, "
                    f"not {text!r}"
                )
        if macros:
            options.setPreprocessorMacros_(macros)
        return options

    def pipeline(self, dev: _Device, library: Any, name: str) -> tuple[Any, Any]:
        """A kernel made ready for a device, and its reflection or None."""
        given: list[Any] = []
        done = threading.Event()

        def handler(*values: Any) -> None:
            given.extend(values)
            done.set()

        device = dev.device
        with self.told(dev.dev_id):
            function = library.newFunctionWithName_(name)
            device.newComputePipelineStateWithFunction_options_completionHandler_(function, _REFLECTION, handler)
            done.wait()
            state, reflection = (*given, None, None)[:2]
            if state is None:  # pyobjc hands on the first two of the three values: ask for the error
                state, error = device.newComputePipelineStateWithFunction_error_(function, None)
                if state is None:
                    raise KernelError(f"{name!r} cannot be made ready:\n{_words(error)}", kernel=name)
            return state, reflection

    def close(self) -> None:
        super().close()
        self._found = None


class _Told:
    """See :meth:`MetalBackend.told`."""

    __slots__ = ("_dev_id", "_objc", "_pool")

    def __init__(self, objc: Any, dev_id: int) -> None:
        self._objc = objc
        self._dev_id = dev_id
        self._pool = objc.autorelease_pool()

    def __enter__(self) -> None:
        self._pool.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._pool.__exit__(kind, error, trace)
        if error is not None and isinstance(error, self._objc.error):
            name = f"metal({self._dev_id})"
            raise BackendError(f"{name}: {' '.join(str(error).split())}", device=name) from error


class _Queue:
    """A command queue with what is under way in it. All calls of it are made within :meth:`MetalBackend.told`."""

    def __init__(self, queue: Any, device: str) -> None:
        self._queue = queue
        self._device = device
        self._under_way: deque[Any] = deque()
        self._error: str | None = None
        self._busy: float | None = None
        self._until = 0.0

    def begin(self) -> Any:
        """A command buffer."""
        commands = self._queue.commandBuffer()
        if commands is None:
            raise BackendError(f"{self._device} has no more command buffers", device=self._device)
        return commands

    def commit(self, commands: Any) -> None:
        """Let it run."""
        commands.commit()
        self._under_way.append(commands)
        while len(self._under_way) > _UNDER_WAY and self._under_way[0].status() >= _COMPLETED:
            self._done(self._under_way.popleft())

    def wait(self) -> None:
        """Until all is done.

        Raises:
            BackendError: something went wrong since the last time.
        """
        while self._under_way:
            self._under_way[0].waitUntilCompleted()
            self._done(self._under_way.popleft())
        if self._error is not None:
            error, self._error = self._error, None
            raise BackendError(f"{self._device}: {error}", device=self._device)

    def measure(self) -> None:
        """From here on."""
        self.wait()
        self._busy, self._until = 0.0, 0.0

    def measured(self) -> float:
        """Seconds since :meth:`measure` in which at least one command buffer ran."""
        try:
            self.wait()
            return self._busy or 0.0
        finally:
            self._busy = None

    def _done(self, commands: Any) -> None:
        if commands.status() == _FAILED and self._error is None:
            self._error = _words(commands.error())
        if self._busy is not None:
            began, ended = float(commands.GPUStartTime()), float(commands.GPUEndTime())
            self._busy += max(0.0, ended - max(began, self._until))
            self._until = max(self._until, ended)


class _BusyTimer:
    """By the times at which command buffers began and ended on the device; what lies between them does not count."""

    def __init__(self, backend: MetalBackend, dev_id: int, queue: _Queue) -> None:
        self._backend = backend
        self._dev_id = dev_id
        self._queue = queue

    def start(self) -> None:
        with self._backend.told(self._dev_id):
            self._queue.measure()

    def stop(self) -> float | None:
        with self._backend.told(self._dev_id):
            return self._queue.measured() or None  # nothing took no time


def _words(error: Any) -> str:
    """What an NSError says."""
    return "no reason was given" if error is None else str(error.localizedDescription()).strip()
