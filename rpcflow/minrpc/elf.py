# SPDX-License-Identifier: Apache-2.0
"""What is read of ELF files: of firmware, of objects, and of what the linker makes of both."""

import io
import struct
from typing import Any, Final

import attrs

from rpcflow.server.linking import LinkError

_ALLOC: Final = 2
_TLS: Final = 0x400
_GLOBAL: Final = 1
_WEAK: Final = 2
_GAPS: Final = 4096
"""Bytes that alignment may leave between sections."""
_MOST_NBYTES: Final = 1 << 26


@attrs.frozen
class Elf:
    """One file.

    Args:
        name: for messages.
        machine: its processor as ELF calls it: ``EM_ARM``, ``EM_RISCV`` ...
        bits: 32 or 64.
        little: whether it is little-endian.
        relocatable: whether it is an object, which is still to be linked.
        flags: ``e_flags``.
        attributes: what the compiler says of the processor, by the names of pyelftools: ``TAG_CPU_ARCH`` ...
        build_id: None without such a note.
    """

    name: str
    machine: str
    bits: int
    little: bool
    relocatable: bool
    flags: int
    attributes: dict[str, Any]
    build_id: bytes | None
    _file: Any = attrs.field(repr=False, eq=False)

    def symbols(self) -> "list[Symbol]":
        """Its global symbols, the undefined ones too.

        Raises:
            LinkError: they cannot be read.
        """
        found = []
        try:
            for section in self._file.iter_sections("SHT_SYMTAB"):
                for symbol in section.iter_symbols():
                    if symbol["st_info"]["bind"] in ("STB_GLOBAL", "STB_WEAK"):
                        defined = symbol["st_shndx"] != "SHN_UNDEF"
                        function = symbol["st_info"]["type"] == "STT_FUNC"
                        found.append(Symbol(symbol.name, symbol["st_value"], defined, function))
        except Exception as error:  # pyelftools is not made for broken files: it raises whatever comes about
            raise _broken(self.name, error) from error
        return found

    def memory(self) -> tuple[int, bytes]:
        """Address and contents of what lies in the processor's memory when it runs, zeros included.

        Raises:
            LinkError: it cannot be read, or needs memory of its own for each thread.
        """
        try:
            sections = [s for s in self._file.iter_sections() if s["sh_flags"] & _ALLOC and s["sh_size"]]
            if any(section["sh_flags"] & _TLS for section in sections):
                raise LinkError(f"{self.name} uses thread-local variables, which loaded modules cannot have")
            if not sections:
                return 0, b""
            begin = min(section["sh_addr"] for section in sections)
            nbytes = max(section["sh_addr"] + section["sh_size"] for section in sections) - begin
            if nbytes > sum(section["sh_size"] for section in sections) + _GAPS:
                raise LinkError(f"{self.name} lies in places far from each other: it cannot be loaded in one piece")
            if nbytes > _MOST_NBYTES:
                raise LinkError(f"{self.name} takes {nbytes} bytes: no device that modules are linked for has as many")
            contents = bytearray(nbytes)
            for section in sections:
                if section["sh_type"] != "SHT_NOBITS":
                    start = section["sh_addr"] - begin
                    contents[start : start + section["sh_size"]] = section.data()
        except LinkError:
            raise
        except Exception as error:  # as above
            raise _broken(self.name, error) from error
        return begin, bytes(contents)

    def end(self) -> int:
        """The address behind all that it puts into the processor's memory; of firmware, mostly, where free RAM begins.

        Raises:
            LinkError: it cannot be read.
        """
        try:
            return max(
                (s["sh_addr"] + s["sh_size"] for s in self._file.iter_sections() if s["sh_flags"] & _ALLOC), default=0
            )
        except Exception as error:  # as above
            raise _broken(self.name, error) from error

    def weakened(self, data: bytes) -> bytes:
        """The same file with all its global symbols weak: whatever is linked with it may define them anew.

        Raises:
            LinkError: it has no symbols.
        """
        out = bytearray(data)
        offset = 12 if self.bits == 32 else 4  # of st_info in a symbol
        found = False
        for section in self._file.iter_sections("SHT_SYMTAB"):
            begin, entry = section["sh_offset"], section["sh_entsize"] or 1
            for at in range(begin + offset, min(begin + section["sh_size"], len(out)), entry):
                if out[at] >> 4 == _GLOBAL:
                    out[at] = _WEAK << 4 | out[at] & 15
                    found = True
        if not found:
            raise LinkError(f"{self.name} has no symbols: name the file as the linker wrote it, not a stripped one")
        return bytes(out)


@attrs.frozen
class Symbol:
    """A global symbol. ``value``: its address; of a function in Thumb code, one more."""

    name: str
    value: int
    defined: bool
    function: bool


def read_elf(name: str, data: bytes) -> Elf:
    """Read the contents of a file called ``name``.

    Raises:
        LinkError: that is no ELF file, or pyelftools is not installed.
    """
    try:
        from elftools.elf.elffile import ELFFile
    except ImportError as error:
        raise LinkError(
            "modules are linked for devices without Python by means of pyelftools: pip install 'rpcflow[serial]'"
        ) from error
    if not data.startswith(b"\x7fELF"):
        raise LinkError(f"{name} is not an ELF file")
    try:
        file = ELFFile(io.BytesIO(data))
        return Elf(
            name=name,
            machine=str(file["e_machine"]),
            bits=file.elfclass,
            little=file.little_endian,
            relocatable=file["e_type"] == "ET_REL",
            flags=file["e_flags"],
            attributes=_attributes(file),
            build_id=_build_id(file),
            file=file,
        )
    except Exception as error:  # as above
        raise _broken(name, error) from error


def _attributes(file: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section in file.iter_sections():
        if section["sh_type"] in ("SHT_ARM_ATTRIBUTES", "SHT_RISCV_ATTRIBUTES"):
            for vendor in section.iter_subsections():
                for scope in vendor.iter_subsubsections():
                    found.update((attribute.tag, attribute.value) for attribute in scope.iter_attributes())
    return found


def _build_id(file: Any) -> bytes | None:
    # Linker scripts put the note wherever it suits them, often in the midst of another section.
    integers = "<III" if file.little_endian else ">III"
    head = struct.pack(integers, 4, 0, 3)[8:] + b"GNU\0"
    for section in file.iter_sections():
        if section["sh_flags"] & _ALLOC and section["sh_type"] != "SHT_NOBITS":
            data = section.data()
            at = data.find(head)
            while at >= 0:
                name, nbytes, _ = struct.unpack_from(integers, data, at - 8) if at >= 8 else (0, 0, 0)
                found = bytes(data[at + 8 : at + 8 + nbytes])
                if name == 4 and len(found) == nbytes > 0:
                    return found
                at = data.find(head, at + 1)
    return None


def _broken(name: str, error: Exception) -> LinkError:
    return LinkError(f"{name} is an ELF file that cannot be read: {type(error).__name__} {error}")
