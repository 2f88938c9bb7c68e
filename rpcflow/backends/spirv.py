# SPDX-License-Identifier: Apache-2.0
"""What a SPIR-V module says of its compute kernels: blocks of threads, buffers, push constants.

After the SPIR-V specification, version 1.6: chapter 2.3 for the layout, 3 for the numbers. The bytes are a stranger's,
and drivers trust them: every length is checked, and what is read here is read once, front to back.
"""

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import attrs

from rpcflow.protocol.dtype import DataType, DTypeCode

from .base import KernelError

_MAGIC: Final = b"\x03\x02\x23\x07"
_MAX_NBYTES: Final = 16 << 20
_MAX_KERNELS: Final = 1024
_MAX_BOUND: Final = 0x3FFFFF
"""Of ids, a limit that every driver must keep to (chapter 2.17)."""
_MAX_SET: Final = 31
_MAX_BINDING: Final = 1023
_INTERFACE_HAS_ALL: Final = (1, 4)
"""Since this version an entry point lists all variables that it uses."""

# Instructions (chapter 3.49) by number, and how many words of one are the least.
_NAME, _MEMBER_NAME, _LINE, _EXT_INST, _MEMORY_MODEL, _ENTRY_POINT, _EXECUTION_MODE = 5, 6, 8, 12, 14, 15, 16
_CAPABILITY, _TYPE_BOOL, _TYPE_INT, _TYPE_FLOAT, _TYPE_VECTOR, _TYPE_MATRIX = 17, 20, 21, 22, 23, 24
_TYPE_IMAGE, _TYPE_SAMPLER, _TYPE_SAMPLED_IMAGE, _TYPE_ARRAY, _TYPE_RUNTIME_ARRAY, _TYPE_STRUCT = 25, 26, 27, 28, 29, 30
_TYPE_POINTER, _TYPE_ACCELERATION = 32, 5341
_CONSTANT, _CONSTANT_COMPOSITE, _SPEC_CONSTANT, _SPEC_CONSTANT_COMPOSITE = 43, 44, 50, 51
_FUNCTION, _FUNCTION_END, _FUNCTION_CALL, _VARIABLE, _LOAD, _STORE = 54, 56, 57, 59, 61, 62
_DECORATE, _MEMBER_DECORATE, _GROUP_DECORATE, _GROUP_MEMBER_DECORATE = 71, 72, 74, 75
_EXECUTION_MODE_ID: Final = 331
_LEAST: Final = {
    _NAME: 3,
    _MEMBER_NAME: 4,
    _MEMORY_MODEL: 3,
    _ENTRY_POINT: 4,
    _EXECUTION_MODE: 3,
    _EXECUTION_MODE_ID: 3,
    _CAPABILITY: 2,
    _TYPE_BOOL: 2,
    _TYPE_INT: 4,
    _TYPE_FLOAT: 3,
    _TYPE_VECTOR: 4,
    _TYPE_MATRIX: 4,
    _TYPE_IMAGE: 9,
    _TYPE_SAMPLER: 2,
    _TYPE_SAMPLED_IMAGE: 3,
    _TYPE_ARRAY: 4,
    _TYPE_RUNTIME_ARRAY: 3,
    _TYPE_STRUCT: 2,
    _TYPE_POINTER: 4,
    _TYPE_ACCELERATION: 2,
    _CONSTANT: 4,
    _CONSTANT_COMPOSITE: 3,
    _SPEC_CONSTANT: 4,
    _SPEC_CONSTANT_COMPOSITE: 3,
    _FUNCTION: 5,
    _FUNCTION_CALL: 4,
    _VARIABLE: 4,
    _DECORATE: 3,
    _MEMBER_DECORATE: 4,
    _GROUP_DECORATE: 2,
    _GROUP_MEMBER_DECORATE: 2,
}
_TYPES: Final = {
    _TYPE_BOOL: "bool",
    _TYPE_INT: "int",
    _TYPE_FLOAT: "float",
    _TYPE_VECTOR: "a vector",
    _TYPE_MATRIX: "a matrix",
    _TYPE_IMAGE: "an image",
    _TYPE_SAMPLER: "a sampler",
    _TYPE_SAMPLED_IMAGE: "an image with its sampler",
    _TYPE_ARRAY: "an array",
    _TYPE_RUNTIME_ARRAY: "an array",
    _TYPE_STRUCT: "a struct",
    _TYPE_POINTER: "a pointer",
    _TYPE_ACCELERATION: "an acceleration structure",
}
_OPERANDS_END: Final = {_LINE: 1, _LOAD: 4, _STORE: 3, 79: 5, 81: 4, 82: 5, 246: 3, 247: 2, 250: 4, 251: 3, 252: 1}
"""Where the ids of an instruction end and its literal numbers begin; others are taken to be ids throughout."""

_COMPUTE, _KERNEL = 5, 6  # execution models
_KERNEL_CAPABILITY: Final = 6
_PHYSICAL_MODELS: Final = (1, 2)
_LOCAL_SIZE, _LOCAL_SIZE_ID = 17, 38  # execution modes
_BUFFER_BLOCK, _BUILTIN, _BINDING, _SET, _OFFSET = 3, 11, 33, 34, 35  # decorations
_WANTED: Final = frozenset((_BUFFER_BLOCK, _BINDING, _SET))
_WORKGROUP_SIZE: Final = 25  # a builtin
_UNIFORM_CONSTANT, _INPUT, _UNIFORM, _OUTPUT, _WORKGROUP = 0, 1, 2, 3, 4  # storage classes
_PRIVATE, _PUSH_CONSTANT, _STORAGE_BUFFER = 6, 9, 12
_WITHIN: Final = frozenset((_INPUT, _OUTPUT, _WORKGROUP, _PRIVATE))
"""Storage classes of what nobody passes."""


@attrs.frozen
class Buffer:
    """A storage buffer, by where its descriptor is."""

    set: int
    binding: int
    name: str
    element: DataType | None = None  # of the array that is all of it, where it is that


@attrs.frozen
class PushConstant:
    """A scalar among the push constants, so many bytes from their start."""

    offset: int
    dtype: DataType
    name: str


@attrs.frozen
class EntryPoint:
    """A compute kernel. ``buffers`` in order of set and binding, ``push`` in order of offset; ``shared_nbytes``: of the
    memory that a block shares, at least."""

    name: str
    block: tuple[int, int, int]
    buffers: tuple[Buffer, ...]
    push: tuple[PushConstant, ...]
    shared_nbytes: int


@attrs.frozen
class Module:
    """A file of them. ``version``: of SPIR-V; ``capabilities``: by number, what it needs of a device."""

    version: tuple[int, int]
    capabilities: frozenset[int]
    entry_points: tuple[EntryPoint, ...]


class _Type(NamedTuple):
    op: int
    operands: tuple[int, ...]
    nbytes: int  # at least


class _Variable(NamedTuple):
    storage: int
    type_id: int


class _Entry(NamedTuple):
    function: int
    name: str
    interface: tuple[int, ...]


def parse(file: str, data: bytes) -> Module:
    """A module's compute kernels.

    Args:
        file: its name, for errors.
        data: all of it.

    Raises:
        KernelError: it is no SPIR-V, it is cut off, it is OpenCL's, or a kernel takes what cannot be passed.
    """
    return _Reader(file, data).module()


class _Reader:
    def __init__(self, file: str, data: bytes) -> None:
        self.file = file
        self.words, self.version, self.bound = self._header(data)
        self.capabilities: set[int] = set()
        self.entries: list[_Entry] = []
        self.opencl = False
        self.sizes: dict[int, tuple[bool, tuple[int, int, int]]] = {}
        self.workgroup_size = 0
        self.names: dict[int, str] = {}
        self.member_names: dict[tuple[int, int], str] = {}
        self.decorations: dict[tuple[int, int], int] = {}
        self.offsets: dict[tuple[int, int], int] = {}
        self.types: dict[int, _Type] = {}
        self.constants: dict[int, int] = {}
        self.composites: dict[int, tuple[int, ...]] = {}
        self.variables: dict[int, _Variable] = {}
        self.uses: dict[int, set[int]] = {}
        self.calls: dict[int, set[int]] = {}

    def wrong(self, text: str, kernel: str | None = None) -> KernelError:
        return KernelError(f"{self.file}: {text}", kernel=kernel)

    # ---- the binary

    def _header(self, data: bytes) -> tuple[memoryview, tuple[int, int], int]:
        if data[:4] == _MAGIC[::-1]:
            raise self.wrong("this is SPIR-V in the byte order of big-endian machines; devices here take little-endian")
        if data[:4] != _MAGIC:
            raise self.wrong("this is no SPIR-V: it does not begin with its magic number")
        if len(data) % 4 or len(data) < 20:
            raise self.wrong(f"the SPIR-V is cut off: {len(data)} bytes are no whole words with a header")
        if len(data) > _MAX_NBYTES:
            raise self.wrong(f"{len(data)} bytes of SPIR-V are more than the {_MAX_NBYTES} that are taken")
        words = array("I" if array("I").itemsize == 4 else "L", data)
        if sys.byteorder == "big":
            words.byteswap()
        _, version, _, bound, schema = words[:5]
        if version & 0xFF0000FF or schema:
            raise self.wrong("the SPIR-V has a header of a kind that is not known")
        if not 1 <= bound <= _MAX_BOUND:
            raise self.wrong(f"the SPIR-V says that its ids are below {bound}; at most {_MAX_BOUND} may be")
        return memoryview(words), (version >> 16 & 0xFF, version >> 8 & 0xFF), bound

    def instructions(self) -> Iterator[tuple[int, memoryview]]:
        """Each: what it is, and its words."""
        words, pos, end = self.words, 5, len(self.words)
        while pos < end:
            op, length = words[pos] & 0xFFFF, words[pos] >> 16
            if not length:
                raise self.wrong(f"the instruction at word {pos} of the SPIR-V has no length")
            if pos + length > end:
                raise self.wrong(f"the SPIR-V is cut off in the middle of the instruction at word {pos}")
            if length < _LEAST.get(op, 1):
                raise self.wrong(f"the instruction at word {pos} of the SPIR-V is too short")
            yield op, words[pos : pos + length]
            pos += length

    def text(self, words: memoryview) -> tuple[str, int]:
        """A text at the start of words, and how many it takes."""
        data = struct.pack(f"<{len(words)}I", *words)
        end = data.find(0)
        if end < 0:
            raise self.wrong("a name in the SPIR-V has no end")
        return data[:end].decode(errors="replace"), end // 4 + 1

    def ids(self, words: Iterable[int]) -> tuple[int, ...]:
        found = tuple(words)
        for number in found:
            if not 0 < number < self.bound:
                raise self.wrong(f"the SPIR-V uses the id {number}, which is not below its bound")
        return found

    def module(self) -> Module:
        function = 0
        for op, words in self.instructions():
            if function:
                function = self.in_function(function, op, words)
            elif op == _FUNCTION:
                (function,) = self.ids(words[2:3])
                if function in self.uses:
                    raise self.wrong(f"the SPIR-V has two functions of the id {function}")
                self.uses[function], self.calls[function] = set(), set()
            else:
                self.outside(op, words)
        if function:
            raise self.wrong("the SPIR-V is cut off in the middle of a function")
        if self.opencl or _KERNEL_CAPABILITY in self.capabilities:
            raise self.wrong("this SPIR-V is OpenCL's: load it with backend='opencl'")
        if not self.entries:
            raise self.wrong("the SPIR-V has no compute kernel (an entry point of the model GLCompute)")
        if len(self.entries) > _MAX_KERNELS:
            raise self.wrong(f"{len(self.entries)} compute kernels in a file are too many: {_MAX_KERNELS} may be")
        names = [entry.name for entry in self.entries]
        if len(set(names)) < len(names):
            raise self.wrong("the SPIR-V has two compute kernels of one name")
        points = tuple(self.entry_point(entry) for entry in self.entries)
        return Module(self.version, frozenset(self.capabilities), points)

    def outside(self, op: int, words: memoryview) -> None:
        """An instruction that is in no function."""
        if op in _TYPES:
            self.type(op, words)
        elif op == _DECORATE:
            value = words[3] if len(words) > 3 else 0
            if words[2] in _WANTED:
                self.decorations[words[1], words[2]] = value
            elif words[2] == _BUILTIN and value == _WORKGROUP_SIZE:
                self.workgroup_size = words[1]
        elif op == _MEMBER_DECORATE:
            if words[3] == _OFFSET and len(words) > 4:
                self.offsets[words[1], words[2]] = words[4]
        elif op == _NAME:
            self.names[words[1]] = self.text(words[2:])[0]
        elif op == _MEMBER_NAME:
            self.member_names[words[1], words[2]] = self.text(words[3:])[0]
        elif op in (_CONSTANT, _SPEC_CONSTANT):
            (number,) = self.ids(words[2:3])
            self.constants[number] = words[3]
        elif op in (_CONSTANT_COMPOSITE, _SPEC_CONSTANT_COMPOSITE):
            (number,) = self.ids(words[2:3])
            if len(words) == 6:  # the one that is looked for has three parts
                self.composites[number] = self.ids(words[3:])
        elif op == _VARIABLE:
            type_id, number = self.ids(words[1:3])
            self.variables[number] = _Variable(words[3], type_id)
        elif op == _ENTRY_POINT:
            name, length = self.text(words[3:])
            if words[1] == _COMPUTE:
                (function,) = self.ids(words[2:3])
                self.entries.append(_Entry(function, name, self.ids(words[3 + length :])))
            self.opencl |= words[1] == _KERNEL
        elif op in (_EXECUTION_MODE, _EXECUTION_MODE_ID):
            self.execution_mode(op, words)
        elif op == _CAPABILITY:
            self.capabilities.add(words[1])
        elif op == _MEMORY_MODEL:
            self.opencl |= words[1] in _PHYSICAL_MODELS
        elif op in (_GROUP_DECORATE, _GROUP_MEMBER_DECORATE):
            raise self.wrong("the SPIR-V has groups of decorations, which are not read: compile it anew")

    def execution_mode(self, op: int, words: memoryview) -> None:
        by_id = op == _EXECUTION_MODE_ID
        if words[2] == (_LOCAL_SIZE_ID if by_id else _LOCAL_SIZE):
            if len(words) != 6:
                raise self.wrong("the SPIR-V gives a block other than three extents")
            self.sizes[words[1]] = by_id, (words[3], words[4], words[5])

    def type(self, op: int, words: memoryview) -> None:
        (number,) = self.ids(words[1:2])
        operands = tuple(words[2:])
        nbytes = 0
        if op in (_TYPE_INT, _TYPE_FLOAT):
            nbytes = operands[0] // 8
        elif op == _TYPE_BOOL:
            nbytes = 4
        elif op in (_TYPE_VECTOR, _TYPE_MATRIX):
            nbytes = self.nbytes(operands[0]) * operands[1]
        elif op == _TYPE_ARRAY:
            nbytes = self.nbytes(operands[0]) * self.constants.get(operands[1], 1)
        elif op == _TYPE_STRUCT:
            nbytes = sum(self.nbytes(member) for member in operands)
        self.types[number] = _Type(op, operands, nbytes)

    def nbytes(self, type_id: int) -> int:
        found = self.types.get(type_id)
        return 0 if found is None else min(found.nbytes, 1 << 62)  # numbers must not grow with the file

    def in_function(self, function: int, op: int, words: memoryview) -> int:
        """An instruction of a function; the function that the next one is in, 0 for none."""
        if op == _FUNCTION_END:
            return 0
        if op == _FUNCTION:
            raise self.wrong("the SPIR-V has a function within a function")
        if op == _FUNCTION_CALL:
            self.calls[function].add(words[3])
        variables = self.variables
        operands = words[1 : _OPERANDS_END.get(op, len(words))]
        if op == _EXT_INST and len(words) > 4:
            operands = words[5:]
        elif op == _VARIABLE:
            operands = words[4:]
        uses = self.uses[function]
        for word in operands:
            if word in variables:
                uses.add(word)
        return function

    # ---- a kernel

    def entry_point(self, entry: _Entry) -> EntryPoint:
        if entry.function not in self.uses:
            raise self.wrong(f"the kernel {entry.name!r} has no function", entry.name)
        used = self.reachable(entry.function)
        if self.version >= _INTERFACE_HAS_ALL:
            used.update(number for number in entry.interface if number in self.variables)
        buffers: dict[tuple[int, int], Buffer] = {}
        push: tuple[PushConstant, ...] | None = None
        shared = 0
        for number in sorted(used):
            storage, pointer_id = self.variables[number]
            pointer = self.types.get(pointer_id)
            if pointer is None or pointer.op != _TYPE_POINTER or pointer.operands[1] not in self.types:
                raise self.wrong(f"the variable {number} of the SPIR-V has no type", entry.name)
            type_id = pointer.operands[1]
            if storage == _WORKGROUP:
                shared += self.nbytes(type_id)
            elif storage == _PUSH_CONSTANT:
                if push is not None:
                    raise self.wrong(f"the kernel {entry.name!r} has two blocks of push constants", entry.name)
                push = self.push_constants(entry.name, type_id)
            elif storage not in _WITHIN:
                buffer = self.buffer(entry.name, number, storage, type_id)
                buffers.setdefault((buffer.set, buffer.binding), buffer)
        ordered = tuple(buffers[where] for where in sorted(buffers))
        return EntryPoint(entry.name, self.block(entry), ordered, push or (), shared)

    def reachable(self, function: int) -> set[int]:
        """The variables that a function and those which it calls refer to."""
        used: set[int] = set()
        seen, ahead = {function}, [function]
        while ahead:
            number = ahead.pop()
            used |= self.uses[number]
            for called in self.calls[number]:
                if called not in seen and called in self.uses:
                    seen.add(called)
                    ahead.append(called)
        return used

    def block(self, entry: _Entry) -> tuple[int, int, int]:
        extents: tuple[int, ...] | None = None
        by_id, given = self.sizes.get(entry.function, (False, (0, 0, 0)))
        if any(given):
            extents = self.constant(entry.name, given) if by_id else given
        if self.workgroup_size in self.composites:  # this one overrides
            extents = self.constant(entry.name, self.composites[self.workgroup_size])
        if extents is None or not all(extents):
            raise self.wrong(f"the kernel {entry.name!r} does not say how many threads a block has", entry.name)
        return extents[0], extents[1], extents[2]

    def constant(self, kernel: str, ids: Iterable[int]) -> tuple[int, ...]:
        found = []
        for number in ids:
            if number not in self.constants:
                raise self.wrong(f"the block of the kernel {kernel!r} is not made of plain constants", kernel)
            found.append(self.constants[number])
        return tuple(found)

    def buffer(self, kernel: str, number: int, storage: int, type_id: int) -> Buffer:
        kind = self.types[type_id]
        name = self.names.get(number, "")
        if not name and kind.op == _TYPE_STRUCT:
            only = self.member_names.get((type_id, 0), "") if len(kind.operands) == 1 else ""
            name = only or self.names.get(type_id, "")
        shown = repr(name) if name else f"the variable {number}"
        what = None
        if storage not in (_UNIFORM_CONSTANT, _UNIFORM, _STORAGE_BUFFER):
            what = f"a variable of the storage class {storage}"
        elif kind.op in (_TYPE_ARRAY, _TYPE_RUNTIME_ARRAY):
            what = "an array of descriptors"
        elif kind.op != _TYPE_STRUCT:
            what = _TYPES[kind.op]
        elif storage != _STORAGE_BUFFER and (type_id, _BUFFER_BLOCK) not in self.decorations:
            what = "a uniform buffer"
        if what is not None:
            raise self.wrong(
                f"the kernel {kernel!r} takes {shown}, {what}, which cannot be passed: storage buffers can, and "
                "scalars as push constants",
                kernel,
            )
        descriptor_set = self.decorations.get((number, _SET))
        binding = self.decorations.get((number, _BINDING))
        if descriptor_set is None or binding is None:
            raise self.wrong(f"the buffer {shown} of the kernel {kernel!r} has no set and binding", kernel)
        if descriptor_set > _MAX_SET or binding > _MAX_BINDING:
            raise self.wrong(
                f"the buffer {shown} of the kernel {kernel!r} is at set {descriptor_set}, binding {binding}; the last "
                f"ones are {_MAX_SET} and {_MAX_BINDING}",
                kernel,
            )
        return Buffer(descriptor_set, binding, name, self.element(kind))

    def element(self, block: Any) -> DataType | None:
        """The scalars of the array that is all there is in a block; None where it is something else."""
        if len(block.operands) != 1:
            return None
        kind: Any = self.types.get(block.operands[0])
        for _ in range(2):  # an array, of vectors maybe
            if kind is not None and kind.op in (_TYPE_RUNTIME_ARRAY, _TYPE_ARRAY, _TYPE_VECTOR):
                kind = self.types.get(kind.operands[0])
        if kind is None or kind.op not in (_TYPE_INT, _TYPE_FLOAT) or kind.operands[0] not in (8, 16, 32, 64):
            return None
        if kind.op == _TYPE_FLOAT:
            return DataType(DTypeCode.FLOAT, kind.operands[0]) if len(kind.operands) == 1 else None
        return DataType(DTypeCode.INT if kind.operands[1] else DTypeCode.UINT, kind.operands[0])

    def push_constants(self, kernel: str, type_id: int) -> tuple[PushConstant, ...]:
        kind = self.types[type_id]
        if kind.op != _TYPE_STRUCT:
            raise self.wrong(f"the push constants of the kernel {kernel!r} are no block", kernel)
        found = []
        for i, member in enumerate(kind.operands):
            name = self.member_names.get((type_id, i), "")
            shown = repr(name) if name else f"number {i}"
            offset = self.offsets.get((type_id, i))
            if offset is None:
                raise self.wrong(f"the push constant {shown} of the kernel {kernel!r} has no offset", kernel)
            found.append(PushConstant(offset, self.scalar(kernel, shown, member), name))
        found.sort(key=lambda constant: constant.offset)
        end = 0
        for constant in found:
            if constant.offset < end:
                raise self.wrong(f"the push constants of the kernel {kernel!r} overlap", kernel)
            end = constant.offset + constant.dtype.bits // 8
        return tuple(found)

    def scalar(self, kernel: str, shown: str, type_id: int) -> DataType:
        kind: Any = self.types.get(type_id, _Type(0, (), 0))
        if kind.op == _TYPE_INT and kind.operands[0] in (8, 16, 32, 64):
            return DataType(DTypeCode.INT if kind.operands[1] else DTypeCode.UINT, kind.operands[0])
        if kind.op == _TYPE_FLOAT and kind.operands[0] in (16, 32, 64) and len(kind.operands) == 1:
            return DataType(DTypeCode.FLOAT, kind.operands[0])
        what = _TYPES.get(kind.op, "of no type that is known")
        if kind.op in (_TYPE_INT, _TYPE_FLOAT):
            what = f"{what}{kind.operands[0]}"
        raise self.wrong(
            f"the push constant {shown} of the kernel {kernel!r} is {what}, which cannot be passed: scalars can", kernel
        )
