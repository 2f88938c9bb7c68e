# SPDX-License-Identifier: Apache-2.0
"""Values between the wire and the functions that are called: by tvm-ffi where it is installed, else plain Python."""

import ctypes
from typing import Any, Final, Protocol

import numpy as np

from rpcflow import registry
from rpcflow.arrays import numpy_dtype
from rpcflow.backends import BackendTable, Memory
from rpcflow.backends.kernels import Location
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.values import Device, ObjectBytes, ObjectText, Pointer, TensorView, TypeIndex, dtype_of
from rpcflow.session.actions import Given, GivenTensor
from rpcflow.session.handles import Kind

from .dlpack import DLPackExporter, data_address

_CPU: Final = 1
_MOST_VIEWS: Final = 256
_AS_IS: Final = frozenset({type(None), bool, int, float, str, bytes, bytearray, DataType, Device, Pointer})


class ValueBridge(Protocol):
    """How arguments reach functions and results come back."""

    same_again: bool
    """Whether a function may get for a tensor the object that one got before, as nothing can be changed in it."""

    def tensor(self, memory: Memory, view: TensorView) -> Any:
        """What a function takes for a tensor."""

    def argument(self, value: Any) -> Any:
        """What a function takes for any other value."""

    def locate(self, value: Any) -> Location | None:
        """Where a tensor lies that :meth:`tensor` made, or a function returned; None for what is no tensor."""

    def result(self, value: Any) -> Any:
        """A plain value, Given or GivenTensor, for what a function returned.

        Raises:
            TypeError: it does not travel.
        """


class FfiBridge:
    """For functions of tvm-ffi."""

    same_again = True

    def __init__(self, ffi: Any, backends: BackendTable) -> None:
        self._ffi = ffi
        self._tensor = ffi.Tensor
        self._backends = backends
        self._wrappers: dict[type, Any] = {}
        self._results: dict[type, Any] = {
            ffi.Tensor: self._tensor_result,
            ffi.core.Function: lambda f: Given(TypeIndex.FUNCTION, Kind.FUNCTION, f),
            ffi.core.Device: lambda d: Device(d.dlpack_device_type(), d.index),
            ctypes.c_void_p: lambda p: Pointer(p.value or 0),
        }

    def tensor(self, memory: Memory, view: TensorView) -> Any:
        key = view[2:]
        made = memory.arguments.get(key)
        if made is None:
            exporter = DLPackExporter(
                memory.device,
                memory.address + view.byte_offset,
                view.dtype,
                view.shape,
                memory.owner,
            )
            made = self._ffi.from_dlpack(exporter)
            if len(memory.arguments) >= _MOST_VIEWS:  # a client slides a view over its memory
                memory.arguments.clear()
            memory.arguments[key] = made
        return made

    def argument(self, value: Any) -> Any:
        kind = type(value)
        if kind is DataType:
            return self._ffi.dtype.from_dlpack_data_type((value.code, value.bits, value.lanes))
        if kind is Device:
            return self._ffi.core._create_device_from_tuple(
                self._ffi.core._CLASS_DEVICE or self._ffi.Device, value.dev_type, value.dev_id
            )
        if kind is Pointer:
            return ctypes.c_void_p(int(value))
        return value

    def locate(self, value: Any) -> Location | None:
        if type(value) is not self._tensor and not isinstance(value, self._tensor):
            return None
        device = value.device
        try:
            kind = value.dtype
            dtype = dtype_of(kind.type_code, kind.bits, kind.lanes)
        except ValueError:  # tvm-ffi has no words for complex numbers
            dtype = None
        return Location(device.dlpack_device_type(), device.index, data_address(value), dtype)

    def result(self, value: Any) -> Any:
        kind = type(value)
        if kind in _AS_IS:
            return value
        convert = self._results.get(kind)
        if convert is not None:
            return convert(value)
        if isinstance(value, self._ffi.dtype):
            return DataType(value.type_code, value.bits, value.lanes)
        if isinstance(value, self._ffi.core.Device):  # TVM's own, once it is imported
            return Device(value.dlpack_device_type(), value.index)
        if isinstance(value, self._ffi.Module):
            return Given(TypeIndex.MODULE, Kind.MODULE, value)
        if isinstance(value, self._ffi.Tensor):
            return self._tensor_result(value)
        info = getattr(kind, "__tvm_ffi_type_info__", None)
        if info is not None and not isinstance(value, str | bytes):
            return Given(int(info.type_index), Kind.OBJECT, value)
        if isinstance(value, str):
            return str(value)
        if isinstance(value, bytes):
            return bytes(value)
        if isinstance(value, self._ffi.Object):
            return Given(TypeIndex.OBJECT, Kind.OBJECT, value)
        if isinstance(value, Given | GivenTensor):
            return value
        return Given(TypeIndex.OBJECT, Kind.OBJECT, value)

    def _tensor_result(self, tensor: Any) -> GivenTensor:
        if not tensor.is_contiguous():
            raise TypeError("a tensor with strides does not travel over RPC: return a contiguous copy")
        dtype = DataType(tensor.dtype.type_code, tensor.dtype.bits, tensor.dtype.lanes)
        device = Device(tensor.device.dlpack_device_type(), tensor.device.index)
        shape = tuple(int(extent) for extent in tensor.shape)
        nbytes = TensorView(0, device, dtype, shape).nbytes
        memory = self._backends.get(device).wrap(device, data_address(tensor), nbytes, tensor)
        return GivenTensor(memory, dtype, shape)


class PlainBridge:
    """For Python callables, where apache-tvm-ffi is not installed: tensors are NumPy arrays, and those on other
    devices :class:`~rpcflow.server.dlpack.DLPackExporter`."""

    same_again = False

    def __init__(self, backends: BackendTable) -> None:
        self._backends = backends

    def tensor(self, memory: Memory, view: TensorView) -> Any:
        if view.device.dev_type != _CPU:
            return DLPackExporter(
                memory.device, memory.address + view.byte_offset, view.dtype, view.shape, memory.owner
            )
        backend = self._backends.get(view.device)
        data = backend.read(memory, view.byte_offset, view.nbytes)
        return np.frombuffer(data, numpy_dtype(view.dtype)).reshape(view.shape)  # type: ignore[arg-type]

    def argument(self, value: Any) -> Any:
        kind = type(value)
        if kind is ObjectText:
            return str(value)
        return bytes(value) if kind is ObjectBytes else value

    def locate(self, value: Any) -> Location | None:
        if type(value) is not DLPackExporter:
            return None
        return Location(*value.device, value.address, value.dtype)

    def result(self, value: Any) -> Any:
        if type(value) in _AS_IS or isinstance(value, Given | GivenTensor):
            return value
        if type(value) is ObjectText:
            return str(value)
        if type(value) is ObjectBytes:
            return bytes(value)
        if type(value) is DLPackExporter:
            nbytes = TensorView(0, value.device, value.dtype, value.shape).nbytes
            memory = self._backends.get(value.device).wrap(value.device, value.address, nbytes, value.owner)
            return GivenTensor(memory, value.dtype, value.shape)
        if isinstance(value, np.ndarray):
            from rpcflow.arrays import data_type

            array = np.ascontiguousarray(value).reshape(value.shape)
            address = array.__array_interface__["data"][0]
            device = Device(1, 0)
            memory = self._backends.get(device).wrap(device, address, array.nbytes, array)
            return GivenTensor(memory, data_type(array.dtype), array.shape)
        if isinstance(value, np.generic):
            return self.result(value.item())
        if callable(value):
            return Given(TypeIndex.FUNCTION, Kind.FUNCTION, value)
        return Given(TypeIndex.OBJECT, Kind.OBJECT, value)


def make_bridge(backends: BackendTable) -> ValueBridge:
    """The bridge for what is installed."""
    ffi = registry.tvm_ffi()
    return PlainBridge(backends) if ffi is None else FfiBridge(ffi, backends)
