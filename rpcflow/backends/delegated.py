# SPDX-License-Identifier: Apache-2.0
"""Devices that a library of their maker drives: ``hexagon`` and ``ext_dev``. All that is done to such a device is done
by functions that the library registers, in C++ with tvm-ffi or in Python with :func:`rpcflow.register`. The server is
started with ``--load-library lib.so``, or ``--import module`` for Python; or a session loads the library as a module.

The functions are named ``rpcflow.<kind>.<operation>``, such as ``rpcflow.ext_dev.allocate``. These have to be there:

``count() -> int``
    How many devices there are.
``allocate(dev_id, nbytes, alignment, scope) -> int``
    The address of new memory, a multiple of ``alignment``; 0 where there is no room. ``scope`` is the kind of memory
    as a text, "" for the usual one.
``free(dev_id, address)``
    Let go of it; what was launched before may still use it.
``write(dev_id, address, host, nbytes, stream)``, ``read(dev_id, address, host, nbytes, stream)``
    Copy from and to host memory, behind what is in the stream, and return when it is done. ``host`` is a pointer
    (``void*``, in Python a ``ctypes.c_void_p``).

And these may be:

``copy(dev_id, source, target, nbytes, stream)``
    Copy within a device, in the order of the stream; the two may overlap. Without it data go by way of the host.
``attribute(dev_id, attribute) -> int | str | None``
    What a device says of itself, by the numbers of :class:`rpcflow.devices.Attribute`; None for what is not known.
``create_stream(dev_id) -> int``, ``free_stream(dev_id, stream)``
    Streams, by numbers or pointers of the library's own. Without them all streams are the first one, which is 0.
``synchronize(dev_id, stream)``
    Wait until a stream has done all it was given. Without it nothing is ever waited for.
``set_device(dev_id)``, ``set_stream(dev_id, stream)``
    Which device and which stream the library's other functions are to use from now on.
``start_timer(dev_id, stream)``, ``stop_timer(dev_id, stream) -> float``
    Measure by the device's clock: the seconds between the two, both in the order of the stream, the latter when all
    is done. Without them, and with one of them alone, the host's clock is used.

Addresses are from 1 to 2**63 - 1, need mean nothing to the host, and may point into an allocation: views begin there.
They are what other functions of the library find in a tensor as its data pointer. Errors that a function raises reach
the client in its words.

Where none of these is registered, TVM's runtime is looked for, with a DeviceAPI of that kind in it: see
:mod:`rpcflow.backends.delegated_tvm`.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from rpcflow import registry
from rpcflow.devices import Attribute
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.sinks import Sink, ViewSink
from rpcflow.protocol.values import Device

from .base import BackendError, Memory, Timer
from .blocks import Block, DeviceMemory, check_nbytes
from .delegated_library import Library, call, pointer
from .device import DeviceBackend

ALIGNMENT: Final = 64
_REQUIRED: Final = ("count", "allocate", "free", "write", "read")
_OPTIONAL: Final = (
    "copy",
    "attribute",
    "create_stream",
    "free_stream",
    "synchronize",
    "set_device",
    "set_stream",
    "start_timer",
    "stop_timer",
)
_MOST_DEVICES: Final = 1 << 16
_ADDRESS_MAX: Final = (1 << 63) - 1


class Functions(Library):
    """The functions ``rpcflow.<kind>.<operation>``. A block stands for itself by its address.

    Raises:
        BackendError: some are registered, but not all that have to be.
    """

    def __init__(self, kind: str, found: dict[str, Callable[..., Any]]) -> None:
        missing = [name for name in _REQUIRED if name not in found]
        if missing:
            raise BackendError(
                f"the library for {kind} devices lacks {_names(kind, missing)}; it has {_names(kind, found)}",
                device=kind,
            )
        self._kind = kind
        self._functions = found

    @property
    def words(self) -> str:
        return f"functions rpcflow.{self._kind}.*"

    def _call(self, operation: str, *args: Any) -> Any:
        return call(self._kind, f"rpcflow.{self._kind}.{operation}", self._functions[operation], *args)

    def _strange(self, operation: str, value: Any) -> BackendError:
        return BackendError(f"rpcflow.{self._kind}.{operation} returned {value!r}", device=self._kind)

    def _integer(self, operation: str, value: Any, most: int) -> int:
        if isinstance(value, ctypes.c_void_p):
            value = value.value
        if value is None:
            value = 0  # a null pointer
        if not isinstance(value, int) or not 0 <= value <= most:
            raise self._strange(operation, value)
        return int(value)

    def count(self) -> int:
        value = self._call("count")
        if value is None:
            raise self._strange("count", value)
        return self._integer("count", value, _MOST_DEVICES)

    def allocate(self, dev_id: int, nbytes: int, alignment: int, scope: str) -> tuple[int, int]:
        value = self._call("allocate", dev_id, nbytes, alignment, scope)
        address = self._integer("allocate", value, _ADDRESS_MAX)
        if not address:
            raise MemoryError(f"{nbytes} bytes of {self._kind} memory cannot be had")
        if address % alignment:
            self.free(dev_id, address)
            raise BackendError(
                f"rpcflow.{self._kind}.allocate returned {address:#x}, which is no multiple of {alignment}",
                device=self._kind,
            )
        return address, address

    def free(self, dev_id: int, raw: int) -> None:
        self._call("free", dev_id, raw)

    def foreign(self, dev_id: int, address: int, nbytes: int, owner: Any) -> int:
        return address

    def write(self, dev_id: int, raw: int, offset: int, data: memoryview, stream: int) -> None:
        self._call("write", dev_id, raw + offset, pointer(data), len(data), stream)

    def read(self, dev_id: int, raw: int, offset: int, data: memoryview, stream: int) -> None:
        self._call("read", dev_id, raw + offset, pointer(data), len(data), stream)

    def copy(
        self, dev_id: int, source: int, source_offset: int, target: int, target_offset: int, nbytes: int, stream: int
    ) -> bool:
        if "copy" not in self._functions:
            return False
        self._call("copy", dev_id, source + source_offset, target + target_offset, nbytes, stream)
        return True

    def attribute(self, dev_id: int, kind: int) -> int | str | None:
        if "attribute" not in self._functions:
            return None
        value = self._call("attribute", dev_id, kind)
        if isinstance(value, str):
            return str(value)  # tvm-ffi has a class of its own
        if value is not None and not isinstance(value, int):
            raise self._strange("attribute", value)
        return value

    def create_stream(self, dev_id: int) -> int:
        if "create_stream" not in self._functions:
            return 0
        return self._integer("create_stream", self._call("create_stream", dev_id), _ADDRESS_MAX)

    def free_stream(self, dev_id: int, stream: int) -> None:
        if stream and "free_stream" in self._functions:
            self._call("free_stream", dev_id, stream)

    def set_device(self, dev_id: int) -> None:
        if "set_device" in self._functions:
            self._call("set_device", dev_id)

    def set_stream(self, dev_id: int, stream: int) -> None:
        if "set_stream" in self._functions:
            self._call("set_stream", dev_id, stream)

    def synchronize(self, dev_id: int, stream: int) -> None:
        if "synchronize" in self._functions:
            self._call("synchronize", dev_id, stream)

    def timer(self, dev_id: int, stream: int) -> Timer | None:
        if "start_timer" in self._functions and "stop_timer" in self._functions:
            return _LibraryTimer(self, dev_id, stream)
        return None

    def start_timer(self, dev_id: int, stream: int) -> None:
        """From here on."""
        self._call("start_timer", dev_id, stream)

    def stop_timer(self, dev_id: int, stream: int) -> float:
        """Seconds up to here."""
        seconds = self._call("stop_timer", dev_id, stream)
        if not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
            raise self._strange("stop_timer", seconds)
        return float(seconds)


class _LibraryTimer:
    """By a library's functions."""

    def __init__(self, library: Functions, dev_id: int, stream: int) -> None:
        self._library = library
        self._where = (dev_id, stream)

    def start(self) -> None:
        self._library.start_timer(*self._where)

    def stop(self) -> float:
        return self._library.stop_timer(*self._where)


def _names(kind: str, operations: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(f"rpcflow.{kind}.{operation}" for operation in operations)


def find_library(kind: str) -> Library:
    """What drives the devices of a kind.

    Raises:
        BackendError: nothing does: what is missing, and what to do about it.
    """
    found = {}
    for operation in (*_REQUIRED, *_OPTIONAL):
        function = registry.find(f"rpcflow.{kind}.{operation}")
        if function is not None:
            found[operation] = function
    if found:
        return Functions(kind, found)
    if registry.find(f"device_api.{kind}") is not None:
        from .delegated_tvm import TvmRuntime

        return TvmRuntime(kind)
    raise BackendError(
        f"no library drives {kind} devices here. One has to register {_names(kind, _REQUIRED)} (or device_api.{kind} "
        "in TVM's runtime): start the server with --load-library LIBRARY, or --import MODULE for one in Python",
        device=kind,
    )


class DelegatedBackend(DeviceBackend):
    """Devices of a kind that rpcflow itself knows nothing of."""

    virtual = False

    def __init__(self) -> None:
        super().__init__()
        self._library: Library | None = None

    @property
    def library(self) -> Library:
        """What drives them."""
        assert self._library is not None
        return self._library

    # ---- devices

    def absence(self) -> str | None:
        if self._found is None:
            self._why = None  # the session may have loaded the library since
        return super().absence()

    def drv_find(self) -> Sequence[int]:
        library = find_library(self.kind)
        count = library.count()
        self._library = library
        return range(count)

    def version(self) -> str:
        return self.library.words if self.found() else ""

    def drv_open(self, dev_id: int, found: int) -> int:
        return dev_id

    def drv_attribute(self, dev: int, kind: Attribute) -> int | str | None:
        return self.library.attribute(dev, kind)

    def set_device(self, dev_id: int) -> None:
        dev = self.device(dev_id)
        self.library.set_device(dev)

    # ---- memory

    def allocate(self, device: Device, nbytes: int, alignment: int, dtype: DataType, scope: str | None) -> Memory:
        dev_id = self.device(device.dev_id)
        check_nbytes(self.kind, nbytes, self.drv_max_nbytes(dev_id))
        alignment = max(alignment, ALIGNMENT)
        if alignment & (alignment - 1):
            raise BackendError(f"an alignment of {alignment} bytes cannot be had", device=self.kind)
        library = self.library
        usual = scope is None or scope == "global"
        raw, address = library.allocate(dev_id, max(nbytes, 1), alignment, "" if usual else str(scope))
        # Not the session's end, but that of the last who looks into it: the library outlives the session.
        block = Block(dev_id, address, nbytes, raw, lambda address, raw: library.free(dev_id, raw))
        return DeviceMemory(device, nbytes, address, block, block)

    def wrap(self, device: Device, address: int, nbytes: int, owner: Any) -> Memory:
        dev_id = self.device(device.dev_id)
        raw = self.library.foreign(dev_id, address, nbytes, owner)
        return DeviceMemory(device, nbytes, address, owner, Block(dev_id, address, nbytes, raw, lambda *_: None))

    def drv_max_nbytes(self, dev: int) -> int:
        return sys.maxsize

    def drv_allocate(self, dev: int, nbytes: int) -> tuple[Any, int]:
        return self.library.allocate(dev, nbytes, ALIGNMENT, "")

    def drv_free(self, dev: int, raw: Any) -> None:
        self.library.free(dev, raw)

    # ---- copies

    def sink(self, memory: Memory, offset: int, nbytes: int) -> Sink:
        if not nbytes or self.library.in_pieces:
            return super().sink(memory, offset, nbytes)
        return ViewSink(np.empty(nbytes, np.uint8).data)

    def received(self, memory: Memory, offset: int, nbytes: int, sink: Sink) -> None:
        if not nbytes or not isinstance(sink, ViewSink):
            super().received(memory, offset, nbytes, sink)
            return
        assert isinstance(memory, DeviceMemory)
        dev_id = memory.device.dev_id
        stream = self.streams.get(dev_id, 0)
        self.drv_write(dev_id, memory.block.raw, memory.offset + offset, sink.finish(), stream)

    def drv_write(self, dev: int, raw: Any, offset: int, data: memoryview, stream: int) -> None:
        self.library.write(dev, raw, offset, data, stream)

    def drv_read(self, dev: int, raw: Any, offset: int, data: memoryview, stream: int) -> None:
        self.library.read(dev, raw, offset, data, stream)

    def drv_copy(
        self, dev: int, source: Any, source_offset: int, target: Any, target_offset: int, nbytes: int, stream: int
    ) -> None:
        if not self.library.copy(dev, source, source_offset, target, target_offset, nbytes, stream):
            between = np.empty(nbytes, np.uint8).data
            self.library.read(dev, source, source_offset, between, stream)
            self.library.write(dev, target, target_offset, between, stream)

    # ---- streams

    def drv_stream(self, dev: int, first: bool) -> int:
        return 0 if first else self.library.create_stream(dev)

    def drv_free_stream(self, dev: int, stream: int) -> None:
        self.library.free_stream(dev, stream)

    def drv_wait(self, dev: int, stream: int) -> None:
        self.library.synchronize(dev, stream)

    def set_stream(self, dev_id: int, stream: int) -> None:
        dev = self.device(dev_id)
        # 0 makes the first one current here, while elsewhere it stands for the current one
        self.streams.check(dev_id, stream)
        self.streams.set_current(dev_id, stream)
        self.library.set_stream(dev, self.streams.get(dev_id, stream))

    def free_stream(self, dev_id: int, stream: int) -> None:
        self.device(dev_id)
        if stream and self.streams.current(dev_id) == stream:
            self.set_stream(dev_id, 0)
        super().free_stream(dev_id, stream)

    def timer(self, dev_id: int) -> Timer | None:
        dev = self.device(dev_id)
        return self.library.timer(dev, self.streams.get(dev_id, 0))


class HexagonBackend(DelegatedBackend):
    """Hexagon DSPs."""

    kind = "hexagon"


class ExtDevBackend(DelegatedBackend):
    """Accelerators of any maker."""

    kind = "ext_dev"
