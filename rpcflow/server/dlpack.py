# SPDX-License-Identifier: Apache-2.0
"""Any stretch of memory as a DLPack tensor, of any dtype DLPack knows (NumPy has no names for many of them).

The layouts are those of DLPack's ``dlpack.h``: DLManagedTensor in a capsule named "dltensor", and for who asks for
version 1 DLManagedTensorVersioned in one named "dltensor_versioned". NumPy takes the former to be read-only.
"""

import ctypes
import sys
from typing import Any, Final

from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.values import Device


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (
        ("tensor", _DLTensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class _DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    )


_UNVERSIONED: Final = b"dltensor"
_VERSIONED: Final = b"dltensor_versioned"
# What C code holds on to must live until it calls the deleter: the structures, and the memory's owner.
_held: Final[dict[int, tuple[Any, ...]]] = {}


def _forget(managed: int) -> None:
    _held.pop(managed, None)


_release: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_forget)
_release_address: Final = ctypes.cast(_release, ctypes.c_void_p).value
_new_capsule: Final = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_is_valid: Final = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = (ctypes.py_object, ctypes.c_char_p)
_capsule_pointer: Final = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


# Capsules given out of which we do not know yet whether they were taken. A destructor would tell, but it would have to
# be C code: it is called while the error is on its way for which a capsule was not taken, and Python code loses that.
_given: Final[list[tuple[Any, bytes, int]]] = []


def _references(item: tuple[Any, ...]) -> int:
    return sys.getrefcount(item[0])


_ALONE: Final = _references((object(),))
"""As many as there are of what only the tuple holds; Python's releases differ."""
_COUNTS: Final = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether references are counted so that a count means something. Where not, what nobody takes is kept."""


def _sweep() -> None:
    """Let go of what was in capsules that are gone."""
    for _ in range(len(_given)):
        try:
            item = _given.pop()
        except IndexError:  # another thread has been here
            return
        if _references(item) > _ALONE:
            _given.insert(0, item)
        elif _is_valid(item[0], item[1]):  # who takes what is in it renames it; from here on nobody can
            _forget(item[2])


class DLPackExporter:
    """An object of the DLPack protocol over ``shape`` elements at ``address``; ``owner`` lives as long as they do."""

    def __init__(self, device: Device, address: int, dtype: DataType, shape: tuple[int, ...], owner: Any) -> None:
        self.device = device
        self.address = address
        self.dtype = dtype
        self.shape = shape
        self.owner = owner

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device.dev_type, self.device.dev_id

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("a tensor is given away as it is, where it is: no copy, no other device")
        ndim = len(self.shape)
        shape = (ctypes.c_int64 * max(ndim, 1))(*self.shape)
        strides = (ctypes.c_int64 * max(ndim, 1))()
        step = 1
        for i in range(ndim - 1, -1, -1):
            strides[i] = step
            step *= max(self.shape[i], 1)
        versioned = max_version is not None and max_version[0] >= 1
        managed = _DLManagedTensorVersioned(1, 0) if versioned else _DLManagedTensor()
        tensor = managed.tensor
        tensor.data = self.address
        tensor.device_type, tensor.device_id = self.device
        tensor.ndim = ndim
        tensor.code, tensor.bits, tensor.lanes = self.dtype.code, self.dtype.bits, self.dtype.lanes
        tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
        tensor.strides = ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64))
        managed.deleter = _release_address
        address = ctypes.addressof(managed)
        _held[address] = (managed, shape, strides, self.owner)
        name = _VERSIONED if versioned else _UNVERSIONED
        capsule = _new_capsule(address, name, None)
        if _COUNTS:
            if _given:
                _sweep()
            _given.append((capsule, name, address))
        return capsule


def data_address(tensor: Any) -> int:
    """Where the first element of a tvm-ffi tensor lies; its ``data_ptr()``, which versions before 0.1.13 lack."""
    if hasattr(tensor, "data_ptr"):
        return int(tensor.data_ptr())
    capsule = tensor.__dlpack__()  # frees what it holds when it is dropped
    found = _DLManagedTensor.from_address(_capsule_pointer(capsule, _UNVERSIONED)).tensor
    return int((found.data or 0) + found.byte_offset)
