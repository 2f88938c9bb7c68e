# SPDX-License-Identifier: Apache-2.0
"""Values and sequences: what arguments and results look like on the line.

A sequence is an ``i32`` count, then for each value an ``i32`` type index and a payload. All integers are
little-endian. Several forms stand for the same text or bytes; each decodes to a type of its own that
remembers the form (all are ``str`` or ``bytes``), so that what was read can be written again to the byte.

==================  ==========================================================================================
Python              on the line
==================  ==========================================================================================
None                0
int                 1: i64
bool                2: i64, 0 or 1
float               3: f64
Pointer             4: u64, an opaque pointer; results carry handles in this form
DataType            5: u8 code, u8 bits, u16 lanes, four bytes of padding
Device              6: i32 type, i32 id
TensorView          7: a DLTensor without strides
str                 8: u64 length, UTF-8
bytes, FilePayload  9: u64 length, bytes
ObjectText          outer index (11 small, 65 object, or any other object index), u32 65, u64 length, UTF-8
ObjectBytes         outer index (12 small, 66 object ...), u32 66, u64 length, bytes
FunctionRef         68: u64 handle
ModuleRef           73: u64 handle
ObjectRef           outer index (115 ...), u32 115, u64 handle
==================  ==========================================================================================
"""

import enum
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from rpcflow.errors import ProtocolError

from .dtype import DataType
from .limits import BULK_NBYTES, DEFAULT_LIMITS, Limits


class TypeIndex(enum.IntEnum):
    """tvm-ffi's static type indices, as far as the wire uses them."""

    NONE = 0
    INT = 1
    BOOL = 2
    FLOAT = 3
    POINTER = 4
    DTYPE = 5
    DEVICE = 6
    DLTENSOR = 7
    RAW_STR = 8
    RAW_BYTES = 9
    RVALUE_REF = 10
    SMALL_STR = 11
    SMALL_BYTES = 12
    OBJECT = 64
    STR = 65
    BYTES = 66
    FUNCTION = 68
    SHAPE = 69
    TENSOR = 70
    ARRAY = 71
    MAP = 72
    MODULE = 73
    OBJECT_REF = 115


SMALL_NBYTES: Final = 7
"""Longest text or bytes that tvm-ffi keeps inside a value; longer ones are objects."""


class Pointer(int):
    """An opaque pointer, or a handle in an answer. Never used as an address here."""


class FunctionRef(int):
    """The handle of a remote function, as an argument."""


class ModuleRef(int):
    """The handle of a remote module, as an argument."""


class ObjectRef(int):
    """The handle of any other remote object, as an argument."""

    outer: int = TypeIndex.OBJECT_REF


class ObjectText(str):
    """Text in its object form, which keeps NULs. ``outer``: the leading type index."""

    outer: int = TypeIndex.STR

    @classmethod
    def of(cls, text: str, outer: int | None = None) -> "ObjectText":
        """``text`` under the index that tvm-ffi would give it, or under ``outer``."""
        self = cls(text)
        if outer is None:
            outer = TypeIndex.STR if len(text.encode()) > SMALL_NBYTES else TypeIndex.SMALL_STR
        self.outer = outer
        return self


class ObjectBytes(bytes):
    """Bytes in their object form. ``outer``: the leading type index."""

    outer: int = TypeIndex.BYTES


class BulkBytes(NamedTuple):
    """A buffer to send as bytes without copying it. ``outer``: as for ObjectBytes; None is the raw form."""

    data: memoryview
    outer: int | None = TypeIndex.BYTES


class FilePayload(NamedTuple):
    """``nbytes`` of an open file from ``offset`` on, to send as raw bytes straight from it."""

    fd: int
    nbytes: int
    offset: int = 0


class Device(NamedTuple):
    """A device by DLPack's number for its kind, without the session mask of stock clients."""

    dev_type: int
    dev_id: int


class TensorView(NamedTuple):
    """A compact tensor: ``data`` is the server's number for its memory, ``byte_offset`` counts from there."""

    data: int
    device: Device
    dtype: DataType
    shape: tuple[int, ...]
    byte_offset: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        elements = 1
        for extent in self.shape:
            elements *= extent
        return self.dtype.nbytes(elements)


Value = (
    None
    | int
    | bool
    | float
    | str
    | bytes
    | Pointer
    | FunctionRef
    | ModuleRef
    | ObjectRef
    | DataType
    | Device
    | TensorView
    | BulkBytes
    | FilePayload
)
Part = bytes | bytearray | memoryview | FilePayload
"""What goes to a transport: buffers, and stretches of files."""

I32: Final = struct.Struct("<i")
U32: Final = struct.Struct("<I")
U64: Final = struct.Struct("<Q")
_INT: Final = struct.Struct("<iq")
_FLOAT: Final = struct.Struct("<id")
_U64: Final = struct.Struct("<iQ")
_DTYPE: Final = struct.Struct("<iBBHi")
_DEVICE: Final = struct.Struct("<iii")
_OBJECT: Final = struct.Struct("<iIQ")
TENSOR_HEAD: Final = struct.Struct("<QiiiBBH")
I64_MIN: Final = -(1 << 63)
I64_MAX: Final = (1 << 63) - 1


@lru_cache(maxsize=256)
def dtype_of(code: int, bits: int, lanes: int) -> DataType:
    """The dtype, made once."""
    return DataType(code, bits, lanes)


# ---------------------------------------------------------------------------------------------- writing


class Writer:
    """Collects what a packet is made of; long buffers stay where they are and become parts of their own."""

    __slots__ = ("nbytes", "parts", "tail")

    def __init__(self) -> None:
        self.tail = bytearray()
        self.parts: list[Part] = []
        self.nbytes = 0

    def bulk(self, part: Part, nbytes: int) -> None:
        """Put a buffer or a stretch of a file into the packet, uncopied if it is long."""
        if nbytes < BULK_NBYTES and not isinstance(part, FilePayload):
            self.tail += part
            return
        if self.tail:
            self.parts.append(self.tail)
            self.nbytes += len(self.tail)
            self.tail = bytearray()
        self.parts.append(part)
        self.nbytes += nbytes

    def finish(self) -> list[Part]:
        """All parts in order; ``nbytes`` is their total."""
        if self.tail:
            self.parts.append(self.tail)
            self.nbytes += len(self.tail)
        return self.parts


def encode_tensor(out: bytearray, tensor: TensorView) -> None:
    """Append a DLTensor: 32 bytes and 8 for each dimension."""
    device, dtype, shape = tensor.device, tensor.dtype, tensor.shape
    try:
        out += TENSOR_HEAD.pack(
            tensor.data, device[0], device[1], len(shape), dtype.code, dtype.bits, dtype.lanes
        ) + struct.pack(f"<{len(shape)}qQ", *shape, tensor.byte_offset)
    except struct.error:
        raise OverflowError(f"{tensor} does not fit into the fields that the wire has for it") from None


def _text(writer: Writer, value: str) -> None:
    data = value.encode()
    writer.tail += _U64.pack(TypeIndex.RAW_STR, len(data))
    writer.bulk(data, len(data))


def _object_text(writer: Writer, value: ObjectText) -> None:
    data = value.encode()
    writer.tail += _OBJECT.pack(value.outer, TypeIndex.STR, len(data))
    writer.bulk(data, len(data))


def _bytes(writer: Writer, value: bytes) -> None:
    writer.tail += _U64.pack(TypeIndex.RAW_BYTES, len(value))
    writer.bulk(value, len(value))


def _object_bytes(writer: Writer, value: ObjectBytes) -> None:
    writer.tail += _OBJECT.pack(value.outer, TypeIndex.BYTES, len(value))
    writer.bulk(value, len(value))


def _bulk_bytes(writer: Writer, value: BulkBytes) -> None:
    data, outer = value
    if outer is None:
        writer.tail += _U64.pack(TypeIndex.RAW_BYTES, data.nbytes)
    else:
        writer.tail += _OBJECT.pack(outer, TypeIndex.BYTES, data.nbytes)
    writer.bulk(data, data.nbytes)


def _file(writer: Writer, value: FilePayload) -> None:
    writer.tail += _U64.pack(TypeIndex.RAW_BYTES, value.nbytes)
    writer.bulk(value, value.nbytes)


def _none(writer: Writer, value: None) -> None:
    writer.tail += b"\0\0\0\0"


def _int(writer: Writer, value: int) -> None:
    writer.tail += _INT.pack(TypeIndex.INT, value)


def _bool(writer: Writer, value: bool) -> None:
    writer.tail += _INT.pack(TypeIndex.BOOL, value)


def _float(writer: Writer, value: float) -> None:
    writer.tail += _FLOAT.pack(TypeIndex.FLOAT, value)


def _pointer(writer: Writer, value: Pointer) -> None:
    writer.tail += _U64.pack(TypeIndex.POINTER, value)


def _function(writer: Writer, value: FunctionRef) -> None:
    writer.tail += _U64.pack(TypeIndex.FUNCTION, value)


def _module(writer: Writer, value: ModuleRef) -> None:
    writer.tail += _U64.pack(TypeIndex.MODULE, value)


def _object_ref(writer: Writer, value: ObjectRef) -> None:
    writer.tail += _OBJECT.pack(value.outer, TypeIndex.OBJECT_REF, value)


def _dtype_value(writer: Writer, value: DataType) -> None:
    writer.tail += _DTYPE.pack(TypeIndex.DTYPE, value.code, value.bits, value.lanes, 0)


def _device(writer: Writer, value: Device) -> None:
    writer.tail += _DEVICE.pack(TypeIndex.DEVICE, value[0], value[1])


def _tensor(writer: Writer, value: TensorView) -> None:
    writer.tail += b"\7\0\0\0"
    encode_tensor(writer.tail, value)


_WRITERS: Final[dict[type, Callable[[Writer, Any], None]]] = {
    type(None): _none,
    int: _int,
    bool: _bool,
    float: _float,
    str: _text,
    bytes: _bytes,
    Pointer: _pointer,
    FunctionRef: _function,
    ModuleRef: _module,
    ObjectRef: _object_ref,
    ObjectText: _object_text,
    ObjectBytes: _object_bytes,
    BulkBytes: _bulk_bytes,
    FilePayload: _file,
    DataType: _dtype_value,
    Device: _device,
    TensorView: _tensor,
}


def encode_values(writer: Writer, values: Sequence[Value]) -> None:
    """Append a sequence.

    Raises:
        TypeError: a value of a type that the table above does not have (subclasses do not count).
        OverflowError: an int of more than 64 signed bits, or any other number that its field does not hold.
        UnicodeEncodeError: text with lone surrogates.
    """
    writer.tail += I32.pack(len(values))
    for value in values:
        try:
            write = _WRITERS[type(value)]
        except KeyError:
            raise TypeError(f"a {type(value).__name__} does not travel over RPC") from None
        try:
            write(writer, value)
        except struct.error:
            what = "the number" if isinstance(value, int) and value.bit_length() > 1000 else f"{value!r}"
            field = "the 64 signed bits" if type(value) is int else "the field"
            raise OverflowError(f"{what} does not fit into {field} that the wire has for it") from None


# ---------------------------------------------------------------------------------------------- reading


def decode_tensor(buf: memoryview, pos: int, limits: Limits = DEFAULT_LIMITS) -> tuple[TensorView, int]:
    """Read a DLTensor at ``pos``; return it and the position behind it.

    Raises:
        ProtocolError: a shape that cannot be: negative, or of more elements than 63 bits count.
        struct.error: the buffer ends too early.
    """
    data, dev_type, dev_id, ndim, code, bits, lanes = TENSOR_HEAD.unpack_from(buf, pos)
    check_ndim(ndim, limits)
    fields = struct.unpack_from(f"<{ndim}qQ", buf, pos + 24)
    shape = fields[:-1]
    elements = 1
    for extent in shape:
        if extent < 0:
            raise ProtocolError(f"a tensor with the shape {shape} cannot be")
        elements *= extent
    if elements > I64_MAX or elements * bits * lanes // 8 > I64_MAX:
        raise ProtocolError(f"a tensor with the shape {shape} is larger than any memory")
    view = TensorView(data, Device(dev_type, dev_id), dtype_of(code, bits, lanes), shape, fields[-1])
    return view, pos + 32 + 8 * ndim


def check_ndim(ndim: int, limits: Limits) -> None:
    """Refuse a number of dimensions that cannot be, before anything is sized by it."""
    if not 0 <= ndim <= limits.ndim:
        raise ProtocolError(f"a tensor of {ndim} dimensions is refused; the limit is {limits.ndim}")


def decode_text(buf: memoryview, pos: int, nbytes: int) -> str:
    """Read UTF-8. Surrogates and the like are refused, so that text can always be written again."""
    if pos + nbytes > len(buf):
        raise ProtocolError("a packet ends in the middle of a text")
    try:
        return str(buf[pos : pos + nbytes], "utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"a text is not UTF-8: {error.reason}") from None


def decode_value(index: int, buf: memoryview, pos: int, limits: Limits = DEFAULT_LIMITS) -> tuple[Value, int]:
    """Read the payload of a value whose type index was ``index``; return it and the position behind it.

    Raises:
        ProtocolError: what stands there is not a value.
        struct.error: the buffer ends too early.
    """
    if index == TypeIndex.INT:
        return _I64.unpack_from(buf, pos)[0], pos + 8
    if index == TypeIndex.POINTER:
        return Pointer(U64.unpack_from(buf, pos)[0]), pos + 8
    if index == TypeIndex.DLTENSOR:
        return decode_tensor(buf, pos, limits)
    if index == TypeIndex.RAW_STR:
        nbytes = U64.unpack_from(buf, pos)[0]
        pos += 8
        return decode_text(buf, pos, nbytes), pos + nbytes
    if index == TypeIndex.NONE:
        return None, pos
    if index == TypeIndex.FLOAT:
        return _F64.unpack_from(buf, pos)[0], pos + 8
    if index == TypeIndex.BOOL:
        flag = _I64.unpack_from(buf, pos)[0]
        if flag not in (0, 1):
            raise ProtocolError(f"a bool of value {flag}")
        return flag == 1, pos + 8
    if index == TypeIndex.RAW_BYTES:
        nbytes = U64.unpack_from(buf, pos)[0]
        pos += 8
        if pos + nbytes > len(buf):
            raise ProtocolError("a packet ends in the middle of a bytes value")
        return bytes(buf[pos : pos + nbytes]), pos + nbytes
    if index == TypeIndex.DEVICE:
        return Device(*_II.unpack_from(buf, pos)), pos + 8
    if index == TypeIndex.DTYPE:
        code, bits, lanes, _ = _DTYPE_BODY.unpack_from(buf, pos)
        return dtype_of(code, bits, lanes), pos + 8
    if index == TypeIndex.FUNCTION:
        return FunctionRef(U64.unpack_from(buf, pos)[0]), pos + 8
    if index == TypeIndex.MODULE:
        return ModuleRef(U64.unpack_from(buf, pos)[0]), pos + 8
    if index >= TypeIndex.OBJECT or index in (TypeIndex.SMALL_STR, TypeIndex.SMALL_BYTES):
        return _decode_object(index, buf, pos)
    raise ProtocolError(f"{index} is not the index of a type that travels over RPC")


_I64: Final = struct.Struct("<q")
_F64: Final = struct.Struct("<d")
_II: Final = struct.Struct("<ii")
_DTYPE_BODY: Final = struct.Struct("<BBHi")
_INNER: Final = struct.Struct("<IQ")


def _decode_object(outer: int, buf: memoryview, pos: int) -> tuple[Value, int]:
    """The reader looks only at the inner index; the outer one is kept for writing it again."""
    inner, number = _INNER.unpack_from(buf, pos)
    pos += 12
    if inner == TypeIndex.STR:
        text = ObjectText(decode_text(buf, pos, number))
        text.outer = outer
        return text, pos + number
    if inner == TypeIndex.BYTES:
        if pos + number > len(buf):
            raise ProtocolError("a packet ends in the middle of a bytes value")
        data = ObjectBytes(buf[pos : pos + number])
        data.outer = outer
        return data, pos + number
    if inner == TypeIndex.OBJECT_REF:
        ref = ObjectRef(number)
        if outer != TypeIndex.OBJECT_REF:
            ref.outer = outer
        return ref, pos
    raise ProtocolError(f"{inner} is not the index of an object that travels over RPC")


def decode_values(buf: memoryview, pos: int = 0, limits: Limits = DEFAULT_LIMITS) -> list[Value]:
    """Read a sequence that fills the buffer from ``pos`` to its end.

    Raises:
        ProtocolError: anything else stands there.
    """
    values: list[Value] = []
    try:
        (count,) = I32.unpack_from(buf, pos)
        pos += 4
        # Four bytes are the least a value takes, so that a false count cannot make us loop for long.
        if not 0 <= count <= (len(buf) - pos) // 4:
            raise ProtocolError(f"a packet of {len(buf)} bytes cannot hold {count} values")
        for _ in range(count):
            (index,) = I32.unpack_from(buf, pos)
            if index == 1:  # an int: the commonest by far
                values.append(_I64.unpack_from(buf, pos + 4)[0])
                pos += 12
            else:
                value, pos = decode_value(index, buf, pos + 4, limits)
                values.append(value)
    except struct.error:
        raise ProtocolError("a packet ends in the middle of a value") from None
    if pos != len(buf):
        raise ProtocolError(f"{len(buf) - pos} bytes stand behind the last value of a packet")
    return values


def plain(values: Iterable[Value]) -> list[Value]:
    """The values with object forms taken down to ``str`` and ``bytes``."""
    return [str(v) if type(v) is ObjectText else bytes(v) if type(v) is ObjectBytes else v for v in values]
