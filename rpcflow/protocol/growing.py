# SPDX-License-Identifier: Apache-2.0
"""Bytearrays that grow without being written first.

``bytearray.extend`` fills what it adds with zeros, which for memory that a socket fills next takes longer than the
socket does. CPython's own ``PyByteArray_Resize`` only makes room; the system gives pages as they are written.
"""

import ctypes
import mmap
import sys
from typing import Any, Final

_HUGE_NBYTES: Final = 1 << 23
"""From this size on large pages pay off."""
_MADV_HUGEPAGE: Final = 14


def _resizer() -> Any:
    """``PyByteArray_Resize``, or None where Python is not CPython."""
    if sys.implementation.name != "cpython":
        return None
    resize = ctypes.pythonapi.PyByteArray_Resize
    resize.argtypes = [ctypes.py_object, ctypes.c_ssize_t]
    resize.restype = ctypes.c_int
    return resize


def _adviser() -> Any:
    """The C library's ``madvise``, or None where there are no large pages to ask for."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    advise.restype = ctypes.c_int
    return advise


_RESIZE: Final = _resizer()
_ADVISE: Final = _adviser()


def grow(data: bytearray, nbytes: int) -> None:
    """Make ``data`` longer, to ``nbytes``. What is added is undefined: it must be written before anyone sees it.

    Raises:
        BufferError: somebody looks into it.
        MemoryError: there is not so much.
    """
    before = len(data)
    if _RESIZE is None:
        data.extend(bytes(nbytes - before))
        return
    _RESIZE(data, nbytes)
    if _ADVISE is not None and nbytes >= _HUGE_NBYTES:
        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        start = -(-(address + before) // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        # Only advice: if the system has no large pages, small ones do.
        _ADVISE(start, end - start, _MADV_HUGEPAGE)
