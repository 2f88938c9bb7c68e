# SPDX-License-Identifier: Apache-2.0
"""The two packets that small calls are made of, read in one step when they come whole and alone.

They are read by the same rules as all others: what is not exactly one such packet is left to the reader.
"""

import struct
from typing import Any, Final

from .limits import Limits
from .packets import Code
from .values import Value, decode_values

_HEAD: Final = struct.Struct("<QiQ")
_CALL_1_INT: Final = struct.Struct("<QiQiiq")
_CALL_1_INT_NBYTES: Final = _CALL_1_INT.size
_RESULT_INT: Final = struct.Struct("<Qiiiqiq")
_RESULT_INT_NBYTES: Final = _RESULT_INT.size
_RESULT_FLOAT: Final = struct.Struct("<Qiiiqid")
_RESULT_NONE: Final = struct.pack("<Qiiiqi", 24, Code.RETURN, 2, 1, 0, 0)
_CALL: Final = int(Code.CALL_FUNC)
_RETURN: Final = int(Code.RETURN)

MISS: Final = object()
"""There is no such packet, or not alone."""


def call_in(view: memoryview, nbytes: int, limits: Limits) -> tuple[int, list[Value]] | None:
    """Handle and arguments, if the first ``nbytes`` of ``view`` are exactly one CallFunc.

    Raises:
        ProtocolError: they claim to be, and its arguments are none.
    """
    if nbytes == _CALL_1_INT_NBYTES:
        length, code, handle, count, kind, value = _CALL_1_INT.unpack_from(view)
        if length == 28 and code == _CALL and count == 1 and kind == 1:
            return handle, [value]
    if nbytes < 24 or nbytes > limits.packet_nbytes:
        return None
    length, code, handle = _HEAD.unpack_from(view)
    if code != _CALL or length != nbytes - 8:
        return None
    return handle, decode_values(view[20:nbytes], 0, limits)


def result_in(view: memoryview, nbytes: int) -> Any:
    """The result, if the first ``nbytes`` of ``view`` are exactly one Return of an int, a float or None; else
    :data:`MISS`."""
    if nbytes == _RESULT_INT_NBYTES:
        length, code, count, first, index, second, value = _RESULT_INT.unpack_from(view)
        if length == 32 and code == _RETURN and count == 2 and first == 1:
            if index == 1 and second == 1:
                return value
            if index == 3 and second == 3:
                return _RESULT_FLOAT.unpack_from(view)[6]
    elif nbytes == 32 and view[:32] == _RESULT_NONE:
        return None
    return MISS
