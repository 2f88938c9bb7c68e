# SPDX-License-Identifier: Apache-2.0
"""The kernels in a PTX text: their names, what they take, how large their blocks must be.

Only heads of kernels are looked at: ``.entry NAME ( .param ... ) directives {``, by the grammar in NVIDIA's "PTX ISA"
(chapters 4, 5.4 and 11). Whether the rest is right, the driver's assembler says.
"""

import re
from collections.abc import Mapping
from typing import Final

import attrs

from rpcflow.protocol.dtype import DataType, DTypeCode

from .base import KernelError
from .kernels import TENSOR, Param, scalar

_SKIPPED: Final = re.compile(r'//[^\n]*|/\*.*?(?:\*/|\Z)|"(?:[^"\\\n]|\\.)*"?', re.DOTALL)
"""Comments and strings. Each begins by what it cannot contain unpaired, so that the search goes through a text once."""
_NAME: Final = re.compile(r"[A-Za-z][\w$]*|[_$%][\w$]+")
_ENTRY: Final = re.compile(rf"\.entry\s+(?P<name>{_NAME.pattern})\s*")
_DECLARED: Final = re.compile(r"\s*;")
_REQUIRED: Final = re.compile(r"\.reqntid\s+(\d{1,9})(?:\s*,\s*(\d{1,9}))?(?:\s*,\s*(\d{1,9}))?")
_TYPE: Final = re.compile(r"\.([usbf])(8|16|32|64)")
_COUNT: Final = re.compile(r"\d{1,9}")
_MANGLED: Final = re.compile(r"_Z(?:N[rVK]*|L)?(?=\d)")
_LENGTH: Final = re.compile(r"\d{1,4}")
_MOST_ENTRIES: Final = 1 << 16
_MOST_PARAMS: Final = 4096

UNMARKED: Final = "as PTX does not tell pointers from integers of 64 bits: load_module(signature=...) can"
_UNTYPED: Final = "as PTX does not say what its bits are: load_module(signature=...) can"


@attrs.frozen
class Entry:
    """A kernel in a file.

    ``params``: None where the file does not say. ``sizes``: of each parameter, in bytes. ``block``: threads, where the
    kernel says so itself. ``trouble``: why it cannot be launched without a signature; empty where it can.
    """

    name: str
    params: tuple[Param, ...] | None = None
    sizes: tuple[int, ...] | None = None
    block: tuple[int, int, int] | None = None
    trouble: str = ""


def entries(file: str, text: str) -> dict[str, Entry]:
    """The kernels of a PTX text, by name.

    Args:
        file: name of the file, for errors.

    Raises:
        KernelError: the head of one cannot be read.
    """
    code = _SKIPPED.sub(" ", text)
    found: dict[str, Entry] = {}
    position = 0
    while (match := _ENTRY.search(code, position)) is not None:
        name, position = match["name"], match.end()
        params = ""
        if code.startswith("(", position):
            end = code.find(")", position)
            if end < 0:
                raise KernelError(f"{file}: the parameters of {name!r} have no end", kernel=name)
            params, position = code[position + 1 : end], end + 1
        if _DECLARED.match(code, position):
            continue
        body = code.find("{", position)
        if body < 0:
            raise KernelError(f"{file}: {name!r} has no body", kernel=name)
        found[name] = _entry(file, name, params, code[position:body])
        position = body
        if len(found) > _MOST_ENTRIES:
            raise KernelError(f"{file} has more than {_MOST_ENTRIES} kernels")
    return found


def _entry(file: str, name: str, text: str, directives: str) -> Entry:
    parts = text.split(",") if text.strip() else []
    if len(parts) > _MOST_PARAMS:
        raise KernelError(f"{file}: {name!r} has more than {_MOST_PARAMS} parameters", kernel=name)
    params, sizes, trouble = [], [], ""
    for part in parts:
        param, size = _param(name, part)
        if param is None:
            param = TENSOR
            what = f"a struct or array of {size} bytes" if size else repr(" ".join(part.split())[:80])
            trouble = trouble or f"{name!r} takes {what}, which cannot be passed"
        params.append(param)
        sizes.append(size)
    return Entry(name, tuple(params), tuple(sizes), _block(directives), trouble)


def _param(kernel: str, text: str) -> tuple[Param | None, int]:
    """A parameter and its size; None for what no argument can be, of size 0 if that is not known."""
    words, array, count = text.strip(), "", ""
    if words.endswith("]"):
        words, array, count = words[:-1].rpartition("[")
    *head, name = words.replace(".", " .").split() or [""]
    kind = next((found for found in map(_TYPE.fullmatch, head) if found is not None), None)
    if kind is None or kind[0] == ".f8" or ".param" not in head or not _NAME.fullmatch(name):
        return None, 0
    if array and not _COUNT.fullmatch(count.strip()):
        return None, 0
    letter, bits = kind[1], int(kind[2])
    if array:
        return None, int(count) * bits // 8
    if letter == "f":
        return scalar(kernel, DataType(DTypeCode.FLOAT, bits), name), bits // 8
    if bits == 64:
        return attrs.evolve(TENSOR, name=name, note="" if ".ptr" in head else UNMARKED), 8
    if letter == "s":
        return Param(DataType(DTypeCode.INT, bits), name), bits // 8
    # compilers write .u32 for int as well
    note = _UNTYPED if letter == "b" else ""
    return Param(DataType(DTypeCode.UINT, bits), name, wraps=True, note=note), bits // 8


def _block(directives: str) -> tuple[int, int, int] | None:
    match = _REQUIRED.search(directives)
    if match is None:
        return None
    x, y, z = (int(number or 1) for number in match.groups())
    return (x, y, z) if x and y and z else None


def plain_name(name: str) -> str | None:
    """What a function is called in C++ source, without namespaces, by its mangled name: ``vadd`` of ``_Z4vaddPfS_i``;
    None for names that are not mangled so. (Itanium C++ ABI, 5.1: lengths before names.)"""
    match = _MANGLED.match(name)
    if match is None:
        return None
    position, found = match.end(), ""
    while (length := _LENGTH.match(name, position)) is not None:
        end = length.end() + int(length[0])
        found = name[length.end() : end]
        if not found or end > len(name):
            return None
        position = end
        if "N" not in match[0]:
            break
    return found or None


def aliases(names: Mapping[str, object]) -> dict[str, str]:
    """For mangled names that stand for only one kernel, their plain ones: to the mangled one."""
    plain: dict[str, list[str]] = {}
    for name in names:
        short = plain_name(name)
        if short is not None and short not in names:
            plain.setdefault(short, []).append(name)
    return {short: mangled[0] for short, mangled in plain.items() if len(mangled) == 1}
