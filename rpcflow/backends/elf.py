# SPDX-License-Identifier: Apache-2.0
"""Which kernels a compiled file has, by its symbol table: ELF for 64 bits, little-endian, as NVIDIA's and AMD's are.

Sources: the "System V ABI" for ELF; LLVM's "User Guide for AMDGPU Backend" (a kernel NAME has a descriptor NAME.kd);
for NVIDIA's, what its compiler writes: bit 4 of ``st_other`` marks kernels among functions.
"""

import struct
from collections.abc import Iterator
from typing import Final

from .base import KernelError

MAGIC: Final = b"\x7fELF"
_BUNDLES: Final = (b"__CLANG_OFFLOAD_BUNDLE__", b"CCOB")
"""How clang's offload bundles begin, plain and compressed."""
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_CLASS_64_LITTLE: Final = b"\x02\x01"
_SYMTAB: Final = 2
_DYNSYM: Final = 11
_MOST_SYMBOLS: Final = 1 << 18
_MOST_NAME: Final = 1 << 12
_OBJECT: Final = 1
_FUNCTION: Final = 2
_CUDA_KERNEL: Final = 0x10
_DESCRIPTOR: Final = ".kd"


def cuda_kernels(file: str, data: bytes) -> list[str]:
    """The kernels of a cubin that are visible outside.

    Raises:
        KernelError: it is none, or damaged.
    """
    found = (
        name
        for name, info, other in _symbols(file, data)
        if info & 15 == _FUNCTION and info >> 4 and other & _CUDA_KERNEL
    )
    return list(dict.fromkeys(found))


def amd_kernels(file: str, data: bytes) -> list[str]:
    """The kernels of an AMD code object.

    Raises:
        KernelError: it is none, or damaged.
    """
    found = (
        name.removesuffix(_DESCRIPTOR)
        for name, info, _ in _symbols(file, data)
        if info & 15 == _OBJECT and name.endswith(_DESCRIPTOR)
    )
    return list(dict.fromkeys(name for name in found if name))


def _symbols(file: str, data: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, ``st_info`` and ``st_other`` of each symbol."""
    if data.startswith(_BUNDLES):
        raise KernelError(
            f"{file} is a bundle of code objects, which is what hipcc writes of its own: make one of them "
            "(--no-gpu-bundle-output)"
        )
    if not data.startswith(MAGIC):
        raise KernelError(f"{file} is no ELF file")
    if len(data) < _HEADER.size or data[4:6] != _CLASS_64_LITTLE:
        raise KernelError(f"{file} is no ELF file for 64 bits, little-endian")
    header = _HEADER.unpack_from(data)
    start, size, count = header[6], header[11], header[12]
    if not count:
        return
    if size != _SECTION.size or start + size * count > len(data):
        raise KernelError(f"{file} is damaged: its sections lie outside of it")
    sections = [_SECTION.unpack_from(data, start + size * i) for i in range(count)]
    left = _MOST_SYMBOLS
    for _, kind, _, _, offset, nbytes, link, _, _, _ in sections:
        if kind not in (_SYMTAB, _DYNSYM):
            continue
        if link >= count:
            raise KernelError(f"{file} is damaged: its symbols have no names")
        strings_at, strings_nbytes = sections[link][4:6]
        if offset + nbytes > len(data) or strings_at + strings_nbytes > len(data):
            raise KernelError(f"{file} is damaged: its symbols lie outside of it")
        left -= nbytes // _SYMBOL.size
        if left < 0:
            raise KernelError(f"{file} has more than {_MOST_SYMBOLS} symbols")
        for at in range(offset, offset + nbytes - _SYMBOL.size + 1, _SYMBOL.size):
            name, info, other, _, _, _ = _SYMBOL.unpack_from(data, at)
            if info & 15 not in (_OBJECT, _FUNCTION):
                continue
            end = -1
            if name < strings_nbytes:
                begin = strings_at + name
                end = data.find(b"\0", begin, min(strings_at + strings_nbytes, begin + _MOST_NAME))
            if end < 0:
                raise KernelError(f"{file} is damaged: a symbol's name lies outside of it")
            yield data[strings_at + name : end].decode("utf-8", "replace"), info, other
