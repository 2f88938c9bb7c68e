# SPDX-License-Identifier: Apache-2.0
"""Host arrays: NumPy's dtypes and ours, and contiguous bytes out of whatever holds an array."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .protocol.dtype import DataType, DTypeCode

_PLAIN: Final = {
    DTypeCode.INT: "int",
    DTypeCode.UINT: "uint",
    DTypeCode.FLOAT: "float",
    DTypeCode.COMPLEX: "complex",
}


def numpy_dtype(dtype: DataType) -> np.dtype[Any]:
    """NumPy's dtype for one lane of ``dtype``; bfloat16, float8 and the like by ml_dtypes. What has fewer than 8 bits
    takes a byte there: see :func:`packed`.

    Raises:
        TypeError: NumPy has none.
    """
    if dtype.code == DTypeCode.BOOL:
        return np.dtype(np.bool_)
    if dtype.code == DTypeCode.OPAQUE and dtype.bits == 64:
        return np.dtype(np.uint64)
    scalar = DataType(dtype.code, dtype.bits)
    name = str(scalar)
    made: np.dtype[Any] | None = None
    if dtype.code in _PLAIN:
        try:
            made = np.dtype(name)
        except TypeError:
            pass  # ml_dtypes may have it
    if made is None:
        import ml_dtypes

        kind = getattr(ml_dtypes, name, None)
        made = None if kind is None else np.dtype(kind)
    if made is None or made.itemsize != scalar.itemsize:
        raise TypeError(f"NumPy has no dtype for {dtype}; take its bytes by view(shape, 'uint8')")
    return made


def data_type(dtype: Any) -> DataType:
    """Ours for a name, a DataType, a NumPy or ml_dtypes dtype, or a tvm_ffi.dtype.

    Raises:
        TypeError: it is none of these, or has no counterpart.
    """
    if isinstance(dtype, DataType):
        return dtype
    if hasattr(dtype, "type_code"):  # tvm_ffi.dtype
        return DataType(int(dtype.type_code), int(dtype.bits), int(dtype.lanes))
    try:
        if isinstance(dtype, str):
            return DataType.parse(str(dtype))
        return DataType.parse(np.dtype(dtype).name)
    except (ValueError, TypeError):
        pass
    try:
        # numpy spells some of its own names differently ("<f4", "double")
        return DataType.parse(np.dtype(dtype).name)
    except (ValueError, TypeError):
        raise TypeError(f"{dtype!r} is not a dtype that a tensor can have") from None


def to_numpy(array: Any) -> npt.NDArray[Any]:
    """An array for anything NumPy, the buffer protocol, DLPack or a nested list can offer, uncopied where possible."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "__array__") or hasattr(array, "__array_interface__"):
        return np.asarray(array)
    if hasattr(array, "__dlpack__"):
        return np.from_dlpack(array)
    result = np.asarray(array)
    if result.dtype == object:
        raise TypeError(f"a {type(array).__name__} is not an array of numbers")
    return result


def packed(data: memoryview, bits: int) -> memoryview:
    """Elements of fewer than 8 bits, which NumPy keeps one to a byte, one after another from the lowest bit on."""
    each = np.unpackbits(np.frombuffer(data, np.uint8).reshape(-1, 1), axis=1, bitorder="little")
    return np.packbits(each[:, :bits], bitorder="little").data


def unpacked(data: memoryview, bits: int, target: memoryview, signed: bool) -> None:
    """The reverse of :func:`packed`, into ``target``."""
    count = len(target)
    each = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little").reshape(count, bits)
    whole = np.packbits(each, axis=1, bitorder="little").reshape(-1)
    if signed:
        sign = np.uint8(1 << (bits - 1))
        whole = (whole ^ sign) - sign
    target[:] = whole.data


def contiguous_bytes(array: npt.NDArray[Any]) -> memoryview:
    """All elements in row-major order and little-endian, as bytes; uncopied if they lie so already."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).data if flat.size else memoryview(b"")
