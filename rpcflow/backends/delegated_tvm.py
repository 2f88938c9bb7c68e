# SPDX-License-Identifier: Apache-2.0
"""Devices that a DeviceAPI in TVM's runtime drives: a library that registers ``device_api.hexagon`` or
``device_api.ext_dev`` (see ``tvm/runtime/device_api.h``), with ``libtvm_runtime.so`` loaded before it.

Memory is TVM's tensors of bytes; their data pointers are what functions are given. The names and signatures used here
are those of apache-tvm 0.27.
"""

from typing import Any, Final

import numpy as np

from rpcflow import registry
from rpcflow.devices import DEVICE_TYPES, Attribute

from .base import BackendError
from .delegated_library import Library, call, pointer

_FUNCTIONS: Final = (
    "GetDeviceAttr",
    "TVMTensorAllocWithScope",
    "TVMTensorCreateView",
    "TVMTensorCopyFromBytes",
    "TVMTensorCopyToBytes",
    "TVMTensorCopyFromTo",
    "Device_StreamCreate",
    "Device_StreamFree",
    "Device_SetStream",
    "Device_StreamSync",
)
_MOST_DEVICES: Final = 16
"""A DeviceAPI says of a number whether there is such a device; Hexagon's says so of any."""


class TvmRuntime(Library):
    """A DeviceAPI, by the global functions of TVM's runtime. A block is a tensor.

    Raises:
        BackendError: the runtime lacks some of them.
    """

    in_pieces = False  # Hexagon's DeviceAPI copies only what begins at a tensor's begin

    def __init__(self, kind: str) -> None:
        found = {name: registry.find(f"runtime.{name}") for name in _FUNCTIONS}
        missing = [name for name, function in found.items() if function is None]
        if missing:
            names = ", ".join(f"runtime.{name}" for name in missing)
            raise BackendError(
                f"device_api.{kind} is registered, but TVM's runtime lacks {names}: load libtvm_runtime.so of "
                "apache-tvm 0.27 or newer (--load-library)",
                device=kind,
            )
        ffi = registry.tvm_ffi()
        assert ffi is not None  # such functions are in no other registry
        self._ffi = ffi
        self._kind = kind
        self._type = DEVICE_TYPES[kind]
        self._functions = found
        self._bytes = ffi.dtype("uint8")
        self._offsets = True

    @property
    def words(self) -> str:
        return f"TVM's runtime, device_api.{self._kind}"

    def _call(self, name: str, *args: Any) -> Any:
        return call(self._kind, f"runtime.{name}", self._functions[name], *args)

    def _device(self, dev_id: int) -> Any:
        return self._ffi.device(self._kind, dev_id)

    def count(self) -> int:
        exist = (self._call("GetDeviceAttr", self._type, i, int(Attribute.exist)) for i in range(_MOST_DEVICES))
        return next((i for i, there in enumerate(exist) if not there), _MOST_DEVICES)

    # ---- memory

    def allocate(self, dev_id: int, nbytes: int, alignment: int, scope: str) -> tuple[Any, int]:
        shape = self._ffi.Shape((nbytes,))
        made = self._call("TVMTensorAllocWithScope", shape, self._bytes, self._device(dev_id), scope or None)
        address = int(made.data_ptr())
        if not address:
            raise MemoryError(f"{nbytes} bytes of {self._kind} memory cannot be had")
        if address % alignment:
            raise BackendError(
                f"TVM's runtime has no memory on {self._kind} that is aligned to {alignment} bytes", device=self._kind
            )
        return made, address

    def free(self, dev_id: int, raw: Any) -> None:
        pass  # the tensor does when it goes

    def foreign(self, dev_id: int, address: int, nbytes: int, owner: Any) -> Any:
        return self._call("TVMTensorCreateView", owner, self._ffi.Shape((nbytes,)), self._bytes, 0)

    def _part(self, raw: Any, offset: int, nbytes: int) -> Any:
        """Some of a tensor."""
        if not offset and nbytes == raw.shape[0]:
            return raw
        return self._call("TVMTensorCreateView", raw, self._ffi.Shape((nbytes,)), self._bytes, offset)

    # ---- copies: those of the runtime use the first stream

    def write(self, dev_id: int, raw: Any, offset: int, data: memoryview, stream: int) -> None:
        self.synchronize(dev_id, stream)
        nbytes = len(data)
        if not offset or self._offsets:
            try:
                self._call("TVMTensorCopyFromBytes", self._part(raw, offset, nbytes), pointer(data), nbytes)
                return
            except BackendError:
                if not offset:
                    raise
        whole = self._whole(raw)
        whole[offset : offset + nbytes] = data
        self._call("TVMTensorCopyFromBytes", raw, pointer(whole), len(whole))
        self._offsets = False

    def read(self, dev_id: int, raw: Any, offset: int, data: memoryview, stream: int) -> None:
        self.synchronize(dev_id, stream)
        nbytes = len(data)
        if not offset or self._offsets:
            try:
                self._call("TVMTensorCopyToBytes", self._part(raw, offset, nbytes), pointer(data), nbytes)
                return
            except BackendError:
                if not offset:
                    raise
        data[:] = self._whole(raw)[offset : offset + nbytes]
        self._offsets = False

    def _whole(self, raw: Any) -> memoryview:
        """All that is in a tensor: for those DeviceAPIs that cannot copy from the middle of one."""
        whole = np.empty(raw.shape[0], np.uint8).data
        self._call("TVMTensorCopyToBytes", raw, pointer(whole), len(whole))
        return whole

    def copy(
        self, dev_id: int, source: Any, source_offset: int, target: Any, target_offset: int, nbytes: int, stream: int
    ) -> bool:
        apart = abs(int(source.data_ptr()) + source_offset - int(target.data_ptr()) - target_offset)
        if source_offset or target_offset or apart < nbytes:
            return False  # not all copy from the middle of a tensor, and none is said to take what overlaps
        self.synchronize(dev_id, stream)
        self._call("TVMTensorCopyFromTo", self._part(source, 0, nbytes), self._part(target, 0, nbytes))
        self.synchronize(dev_id, 0)
        return True

    # ---- the rest

    def attribute(self, dev_id: int, kind: int) -> int | str | None:
        value = self._call("GetDeviceAttr", self._type, dev_id, int(kind))
        if value is None or isinstance(value, int):
            return value
        return str(value)

    def create_stream(self, dev_id: int) -> int:
        return int(self._call("Device_StreamCreate", self._device(dev_id)) or 0)

    def free_stream(self, dev_id: int, stream: int) -> None:
        if stream:
            self._call("Device_StreamFree", self._device(dev_id), stream)

    def set_device(self, dev_id: int) -> None:
        pass  # the runtime does so before each call that needs it

    def set_stream(self, dev_id: int, stream: int) -> None:
        self._call("Device_SetStream", self._device(dev_id), stream)

    def synchronize(self, dev_id: int, stream: int) -> None:
        self._call("Device_StreamSync", self._device(dev_id), stream)
