# SPDX-License-Identifier: Apache-2.0
"""Element types as DLPack names them: a code, a width in bits, a number of lanes.

Codes and names are those of DLPack's ``dlpack.h`` and of TVM's printed dtypes (``float32x4``).
"""

import enum
import functools
import re
from typing import Final

import attrs


class DTypeCode(enum.IntEnum):
    """DLPack's DLDataTypeCode."""

    INT = 0
    UINT = 1
    FLOAT = 2
    OPAQUE = 3
    BFLOAT = 4
    COMPLEX = 5
    BOOL = 6
    FLOAT8_E3M4 = 7
    FLOAT8_E4M3 = 8
    FLOAT8_E4M3B11FNUZ = 9
    FLOAT8_E4M3FN = 10
    FLOAT8_E4M3FNUZ = 11
    FLOAT8_E5M2 = 12
    FLOAT8_E5M2FNUZ = 13
    FLOAT8_E8M0FNU = 14
    FLOAT6_E2M3FN = 15
    FLOAT6_E3M2FN = 16
    FLOAT4_E2M1FN = 17


# Width is part of the name for these ("float8_e4m3fn"); for the others it follows the name ("int32").
_FIXED: Final = {
    code.name.lower(): (code, int(code.name[5]))
    for code in DTypeCode
    if code.name[:5] == "FLOAT" and len(code.name) > 5
}
_SIZED: Final = {
    "int": DTypeCode.INT,
    "uint": DTypeCode.UINT,
    "float": DTypeCode.FLOAT,
    "handle": DTypeCode.OPAQUE,
    "bfloat": DTypeCode.BFLOAT,
    "complex": DTypeCode.COMPLEX,
    "bool": DTypeCode.BOOL,
}
_SIZED_NAMES: Final = {code: name for name, code in _SIZED.items()}
_FIXED_BITS: Final[dict[int, int]] = dict(_FIXED.values())
_NAME: Final = re.compile(r"(?P<base>[a-z]+)(?P<bits>\d+)?(x(?P<lanes>\d+))?\Z", re.ASCII)


@attrs.frozen(eq=False, repr=False)
class DataType:
    """An element type. Compares equal to its name: ``DataType.parse("float32") == "float32"``.

    Args:
        code: a :class:`DTypeCode` (other numbers travel unharmed).
        bits: width of one lane, in bits.
        lanes: elements of a vector; 1 for a scalar.
    """

    code: int
    bits: int
    lanes: int = 1

    @classmethod
    def parse(cls, text: "str | DataType") -> "DataType":
        """The type that a name like ``"float32"``, ``"bool"`` or ``"int8x4"`` stands for.

        Raises:
            ValueError: no such type.
        """
        if isinstance(text, DataType):
            return text
        if text == "bool":
            return cls(DTypeCode.BOOL, 8)
        if text == "handle":
            return cls(DTypeCode.OPAQUE, 64)
        base, _, lanes_text = text.rpartition("x")
        if base in _FIXED and lanes_text.isdecimal():
            return cls(*_FIXED[base], _lanes(text, lanes_text))
        if text in _FIXED:
            return cls(*_FIXED[text])
        if text.startswith("boolx") and text[5:].isdecimal():
            return cls(DTypeCode.BOOL, 8, _lanes(text, text[5:]))
        match = _NAME.match(text)
        if match is None or match["base"] not in _SIZED:
            raise ValueError(f"{text!r} is not the name of a dtype")
        bits = int(match["bits"] or 32)
        if not 0 < bits < 256:
            raise ValueError(f"{text!r}: a dtype has 1 to 255 bits")
        return cls(_SIZED[match["base"]], bits, _lanes(text, match["lanes"] or "1"))

    @property
    def itembits(self) -> int:
        """Bits of one element, all lanes together."""
        return self.bits * self.lanes

    @property
    def itemsize(self) -> int:
        """Bytes of one element, rounded up."""
        return (self.bits * self.lanes + 7) // 8

    def nbytes(self, elements: int) -> int:
        """Bytes that so many elements take: whole bytes for all, not for each."""
        return (elements * self.bits * self.lanes + 7) // 8

    def __str__(self) -> str:
        return _name(self.code, self.bits, self.lanes)

    def __repr__(self) -> str:
        return f"DataType({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DataType):
            return (self.code, self.bits, self.lanes) == (other.code, other.bits, other.lanes)
        if isinstance(other, str):
            return str(self) == other
        try:
            return str(self) == str(other.name)  # type: ignore[attr-defined]  # numpy.dtype, tvm_ffi.dtype
        except AttributeError:
            return NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))


@functools.lru_cache(256)  # it is what a dtype is hashed by, for each tensor argument of a call
def _name(code: int, bits: int, lanes: int) -> str:
    if code == DTypeCode.OPAQUE and (bits, lanes) == (64, 1):
        return "handle"
    if code == DTypeCode.BOOL and bits == 8:
        name = "bool"
    elif code in _SIZED_NAMES:
        name = f"{_SIZED_NAMES[DTypeCode(code)]}{bits}"
    elif code in _FIXED_BITS and bits == _FIXED_BITS[code]:
        name = DTypeCode(code).name.lower()
    else:
        name = f"custom[{code}]{bits}"
    return name if lanes == 1 else f"{name}x{lanes}"


def _lanes(text: str, digits: str) -> int:
    lanes = int(digits)
    if not 0 < lanes < 65536:
        raise ValueError(f"{text!r}: a dtype has 1 to 65535 lanes")
    return lanes
