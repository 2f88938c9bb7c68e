# SPDX-License-Identifier: Apache-2.0
"""What Metal's reflection leaves out of a kernel's parameters, read off the source.

By reflection ``const device int *p``, ``constant int *p`` and ``constant int &n`` are all buffers that are only read,
of elements of an int's size. The declaration says which it is. Nothing is expanded: for what stands in a macro or comes
out of a template there is no answer, and whoever asks has to do without.
"""

import re
from collections.abc import Mapping
from typing import Final

import attrs

_HEADER_LENGTH: Final = 2_000
_PARAMETERS_LENGTH: Final = 50_000
_OPENING: Final = "([{<"
_CLOSING: Final = ")]}>"
_KERNEL: Final = re.compile(r"\bkernel\b")
_LAST_WORD: Final = re.compile(r"\w+\Z")
_SPACE: Final = re.compile(r"\b(device|constant|threadgroup)\b")


@attrs.frozen
class Declared:
    """How a parameter is declared. ``space``: device, constant, threadgroup, or empty; ``pointer``: or an array; else a
    reference or a value."""

    space: str
    pointer: bool


def declarations(source: str) -> dict[str, Mapping[str, Declared]]:
    """The parameters of the kernels in a source of Metal's language, by the kernels' and their own names; of kernels of
    the same name the last. Never fails: rubbish has none."""
    text = _without_attributes(_without_comments(source))
    found: dict[str, Mapping[str, Declared]] = {}
    pos = 0
    while (keyword := _KERNEL.search(text, pos)) is not None:
        pos = keyword.end()
        begin = text.find("(", pos, pos + _HEADER_LENGTH)
        header = text[pos : max(begin, pos)].rstrip()
        name = _LAST_WORD.search(header)
        if begin < 0 or name is None or any(letter in header for letter in ";{}"):
            continue
        end, parameters = _parameters(text, begin + 1)
        if parameters is not None:
            found[name[0]] = dict(filter(None, map(_declared, parameters)))
        pos = end
    return found


def _without_comments(text: str) -> str:
    parts = []
    pos = 0
    while (start := text.find("/", pos)) >= 0:
        mark = text[start : start + 2]
        if mark not in ("//", "/*"):
            parts.append(text[pos : start + 1])
            pos = start + 1
            continue
        parts.append(text[pos:start] + " ")
        end = text.find("\n" if mark == "//" else "*/", start + 2)
        if end < 0:
            return "".join(parts)
        pos = end if mark == "//" else end + 2
    return "".join(parts) + text[pos:]


def _without_attributes(text: str) -> str:
    """``[[kernel]]`` becomes the word, others go."""
    parts = []
    pos = 0
    while (start := text.find("[[", pos)) >= 0:
        end = text.find("]]", start)
        if end < 0:
            break
        word = " kernel " if text[start + 2 : end].strip() == "kernel" else " "
        parts += [text[pos:start], word]
        pos = end + 2
    return "".join(parts) + text[pos:]


def _parameters(text: str, begin: int) -> tuple[int, list[str] | None]:
    """What stands between commas up to the closing bracket, and where that is; None where there is none."""
    most = min(len(text), begin + _PARAMETERS_LENGTH)
    depth = 0
    parts: list[str] = []
    start = begin
    for i in range(begin, most):
        letter = text[i]
        if letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            if not depth:
                return i, [*parts, text[start:i]]
            depth -= 1
        elif letter == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    return most, None


def _declared(parameter: str) -> tuple[str, Declared] | None:
    declarator = parameter.partition("=")[0]
    before, array, _ = declarator.partition("[")
    name = _LAST_WORD.search(before.rstrip())
    if name is None:
        return None
    space = _SPACE.search(before)
    return name[0], Declared(space[1] if space is not None else "", bool(array) or "*" in before)
