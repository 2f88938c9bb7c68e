# SPDX-License-Identifier: Apache-2.0
"""What the kernels in a WGSL source take, read from its text.

This is no compiler: naga has the last word on what is right. Here the declarations of a module are taken apart as far
as a launch needs them (the grammar and the layout of uniform buffers are those of the WGSL specification, chapters
"Textual Structure" and "Memory Layout"), and which resources an entry point uses, itself or by what it calls.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from rpcflow.protocol.dtype import DataType

from .base import KernelError
from .wgsl_constants import Constants, split, tokenize

_SCALARS: Final = {
    "i32": ("int32", 4),
    "u32": ("uint32", 4),
    "f32": ("float32", 4),
    "f16": ("float16", 2),
    "i64": ("int64", 8),
    "u64": ("uint64", 8),
    "f64": ("float64", 8),
}
"""Scalar types that a uniform buffer may hold, with their sizes, which are their alignments; those of 64 bits are
naga's own."""
_WRAPPERS: Final = ("vec2", "vec3", "vec4", "atomic")
_VECTOR: Final = re.compile("vec[234]([fiuh])")
_SUFFIXES: Final = {"f": "f32", "i": "i32", "u": "u32", "h": "f16"}
_ALIASES: Final = 32
"""Steps from an alias to what it stands for."""
_MOST_NBYTES: Final = 1 << 16
"""Of a uniform buffer; more than any device allows."""
_CLOSING: Final = {"(": ")", "{": "}", "<": ">"}
_DECLARES: Final = ("let", "var", "const")


@attrs.frozen
class Scalar:
    """A scalar in a uniform buffer. ``dtype``: by name; ``offset``: in bytes."""

    name: str
    dtype: str
    offset: int


@attrs.frozen
class Resource:
    """A buffer that is bound. ``nbytes`` and ``scalars``: of a uniform buffer; for storage 0 and nothing."""

    name: str
    group: int
    binding: int
    uniform: bool
    writable: bool = False
    nbytes: int = 0
    scalars: tuple[Scalar, ...] = ()
    element: DataType | None = None  # of the array that a storage buffer is, where it is one


@attrs.frozen
class EntryPoint:
    """A kernel: ``block``: its workgroup size; ``resources``: in order of group and binding."""

    name: str
    block: tuple[int, int, int]
    resources: tuple[Resource, ...]


def reflect(text: str, constants: Mapping[str, float] | None = None) -> tuple[EntryPoint, ...]:
    """The kernels of a source, in its order.

    Args:
        text: the source.
        constants: given to ``override`` declarations, by name or by number.

    Raises:
        KernelError: a kernel takes what cannot be passed, or the text is no WGSL.
    """
    return _Module(text, constants or {}).entry_points()


@attrs.define
class _Function:
    attributes: dict[str, list[str]]
    params: list[str]
    body: list[str]


@attrs.define
class _Variable:
    attributes: dict[str, list[str]]
    space: list[str]
    type: list[str]


class _Module:
    """The declarations of a module, by name."""

    def __init__(self, text: str, given: Mapping[str, float]) -> None:
        self._tokens = tokenize(text)
        self._pos = 0
        self._constants = Constants(given)
        self._aliases: dict[str, list[str]] = {}
        self._structs: dict[str, list[str]] = {}
        self._variables: dict[str, _Variable] = {}
        self._functions: dict[str, _Function] = {}
        while self._pos < len(self._tokens):
            self._declaration()

    # ---- taking the text apart

    def _peek(self) -> str:
        return self._tokens[self._pos] if self._pos < len(self._tokens) else ""

    def _next(self) -> str:
        if self._pos >= len(self._tokens):
            raise KernelError("the source ends in the middle of a declaration")
        self._pos += 1
        return self._tokens[self._pos - 1]

    def _name(self) -> str:
        name = self._next()
        if not name.isidentifier():
            raise KernelError(f"a name is missing before {name!r}")
        return name

    def _expect(self, token: str) -> None:
        found = self._next()
        if found != token:
            raise KernelError(f"{token!r} is missing before {found!r}")

    def _until(self, *ends: str) -> list[str]:
        """What comes before the first of these outside all brackets; that itself is not taken."""
        begin = self._pos
        depth = 0
        while depth > 0 or self._peek() not in ends:
            token = self._next()
            depth += (token in ("(", "[", "{")) - (token in (")", "]", "}"))
        return self._tokens[begin : self._pos]

    def _within(self, opening: str) -> list[str]:
        """What is between brackets, of which only those of the same kind count."""
        self._expect(opening)
        closing, depth, begin = _CLOSING[opening], 1, self._pos
        while depth:
            token = self._next()
            depth += (token == opening) - (token == closing)
        return self._tokens[begin : self._pos - 1]

    def _attributes(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        while self._peek() == "@":
            self._pos += 1
            name = self._name()
            found[name] = self._within("(") if self._peek() == "(" else []
        return found

    def _declaration(self) -> None:
        attributes = self._attributes()
        word = self._next()
        if word == ";":
            return
        if word == "fn":
            name = self._name()
            params = self._within("(")
            while self._peek() != "{":
                self._next()
            self._functions[name] = _Function(attributes, params, self._within("{"))
        elif word == "struct":
            name = self._name()
            self._structs[name] = self._within("{")
        elif word == "var":
            space = self._within("<") if self._peek() == "<" else []
            name = self._name()
            kind = []
            if self._peek() == ":":
                self._pos += 1
                kind = self._until("=", ";")
            self._until(";")
            self._variables[name] = _Variable(attributes, space, kind)
        elif word in ("const", "override"):
            name = self._name()
            self._until("=", ";")
            value = None
            if self._next() == "=":
                value = self._until(";")
            self._constants.declare(name, value, attributes.get("id") if word == "override" else None)
        elif word == "alias":
            name = self._name()
            self._expect("=")
            self._aliases[name] = self._until(";")
        else:  # a directive, an assertion
            self._until(";")

    # ---- what they mean

    def entry_points(self) -> tuple[EntryPoint, ...]:
        found = []
        for name, function in self._functions.items():
            if "compute" in function.attributes:
                resources = [self._resource(name, used) for used in self._used(name)]
                resources.sort(key=lambda resource: (resource.group, resource.binding))
                found.append(EntryPoint(name, self._block(name, function), tuple(resources)))
        return tuple(found)

    def _block(self, name: str, function: _Function) -> tuple[int, int, int]:
        sizes = [self._constants.value(size) for size in split(function.attributes.get("workgroup_size", []), ",")]
        if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
            raise KernelError(f"{name!r} has no workgroup size that could be understood", kernel=name)
        x, y, z = (*sizes, 1, 1)[:3]
        return x, y, z

    def _used(self, entry: str) -> list[str]:
        """The variables of the module that a function uses, itself or by what it calls."""
        seen = {entry}
        waiting = [entry]
        found: dict[str, None] = {}
        while waiting:
            for name in self._mentioned(self._functions[waiting.pop()]):
                if name in self._variables:
                    if self._is_resource(self._variables[name]):
                        found[name] = None
                elif name not in seen:
                    seen.add(name)
                    waiting.append(name)
        return list(found)

    def _mentioned(self, function: _Function) -> Iterator[str]:
        """Variables and functions of the module that a function's body names, and not something of its own that is
        called the same."""
        params = (_with_attributes(param)[1] for param in split(function.params, ",", templates=True))
        scopes = [{tokens[0] for tokens in params if tokens}]

        def known(token: str) -> bool:
            return token in self._variables or token in self._functions

        closes: list[int] = []  # scopes that end with each open block
        declared = ""
        header = False  # of a loop, whose scope ends with its body
        body = function.body
        before = ""
        i = 0
        while i < len(body):
            token = body[i]
            i += 1
            if token == "{":
                closes.append(2 if header else 1)
                header = False
                scopes.append(set())
            elif token == "}":
                if not closes:
                    raise KernelError("a block ends that did not begin")
                del scopes[-closes.pop() :]
            elif token == ";":
                if declared:  # from here on, its own value does not see it
                    scopes[-1].add(declared)
                    declared = ""
            elif token == "for":
                scopes.append(set())
                header = True
            elif token in _DECLARES and before not in (".", "@"):
                if i < len(body) and body[i] == "<":
                    while i < len(body) and body[i] != ">":
                        i += 1
                    i += 1
                declared = body[i] if i < len(body) else ""
                i += 1
            elif before not in (".", "@") and known(token) and not any(token in scope for scope in scopes):
                yield token
            before = token

    @staticmethod
    def _is_resource(variable: _Variable) -> bool:
        return not variable.space or variable.space[0] not in ("private", "workgroup", "function")

    def _resource(self, entry: str, name: str) -> Resource:
        variable = self._variables[name]
        space, *access = ["".join(word) for word in split(variable.space, ",")] or [""]
        if space not in ("storage", "uniform") or not {"group", "binding"} <= variable.attributes.keys():
            kind = f"var<{space}>" if space else "".join(variable.type)
            raise KernelError(
                f"{entry!r} takes {name!r}, of the type {kind}, which cannot be passed: storage buffers and scalars "
                "in uniform buffers can",
                kernel=entry,
            )
        group, binding = (self._constants.value(variable.attributes[word]) for word in ("group", "binding"))
        if not 0 <= group < 1 << 8 or not 0 <= binding < 1 << 16:
            raise KernelError(f"{name!r} has no group and binding that could be: {group}, {binding}", kernel=entry)
        if space == "storage":
            writable = "read_write" in access or "write" in access
            return Resource(name, group, binding, False, writable, element=self._element(variable.type))
        nbytes, scalars = self._uniform(entry, name, variable.type)
        return Resource(name, group, binding, True, False, nbytes, scalars)

    def _uniform(self, entry: str, name: str, written: list[str]) -> tuple[int, tuple[Scalar, ...]]:
        kind = self._resolved(written)
        if kind in _SCALARS:
            dtype, size = _SCALARS[kind]
            return 16, (Scalar(name, dtype, 0),)
        if kind not in self._structs:
            raise self._unpassable(entry, name, written)
        offset, most = 0, 1
        scalars = []
        for member in split(self._structs[kind], ",;", templates=True):
            attributes, tokens = _with_attributes(member)
            if len(tokens) < 3 or tokens[1] != ":":
                raise KernelError(f"the structure {kind!r} could not be understood", kernel=entry)
            found = self._resolved(tokens[2:])
            if found not in _SCALARS:
                raise self._unpassable(entry, f"{name}.{tokens[0]}", tokens[2:])
            dtype, size = _SCALARS[found]
            align = self._constants.value(attributes["align"]) if "align" in attributes else size
            room = self._constants.value(attributes["size"]) if "size" in attributes else size
            if align < size or align & align - 1 or room < size or align > _MOST_NBYTES:
                raise KernelError(f"{name}.{tokens[0]} cannot be aligned to {align} and {room} long", kernel=entry)
            offset = -(-offset // align) * align
            scalars.append(Scalar(tokens[0], dtype, offset))
            offset += room
            most = max(most, align)
            if offset > _MOST_NBYTES:
                raise KernelError(f"{name!r} is longer than {_MOST_NBYTES} bytes", kernel=entry)
        if not scalars:
            raise KernelError(f"the structure {kind!r} has no members", kernel=entry)
        return -(-offset // max(most, 16)) * max(most, 16), tuple(scalars)

    def _element(self, written: list[str]) -> DataType | None:
        """The scalars of an array; None where it is none, or one of something else."""
        for _ in range(_ALIASES):
            if len(written) != 1 or written[0] not in self._aliases:
                break
            written = self._aliases[written[0]]
        if written[:2] != ["array", "<"]:
            return None
        inner = split(written[2:-1], ",", templates=True)[:1]
        kind = inner[0] if inner else []
        if len(kind) > 3 and kind[0] in _WRAPPERS and kind[1] == "<":
            kind = kind[2:-1]
        name = self._resolved(kind)
        match = _VECTOR.fullmatch(name)
        name = _SUFFIXES[match[1]] if match else name
        return DataType.parse(_SCALARS[name][0]) if name in _SCALARS else None

    def _resolved(self, kind: list[str]) -> str:
        """The name of a type, behind aliases; empty where it has more than a name."""
        for _ in range(_ALIASES):
            if len(kind) != 1:
                return ""
            if kind[0] not in self._aliases:
                return kind[0]
            kind = self._aliases[kind[0]]
        return ""

    def _unpassable(self, entry: str, name: str, kind: list[str]) -> KernelError:
        return KernelError(
            f"{entry!r} takes {name!r} of the type {''.join(kind)}, which cannot be passed: of a uniform buffer, "
            f"scalars can ({', '.join(_SCALARS)}); the rest goes into storage buffers",
            kernel=entry,
        )


def _with_attributes(tokens: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The attributes before something, and it."""
    found: dict[str, list[str]] = {}
    i = 0
    while i + 1 < len(tokens) and tokens[i] == "@":
        name = tokens[i + 1]
        i += 2
        found[name] = []
        if i < len(tokens) and tokens[i] == "(":
            depth, begin = 1, i + 1
            while depth:
                i += 1
                if i >= len(tokens):
                    raise KernelError(f"the attribute {name!r} does not end")
                depth += (tokens[i] == "(") - (tokens[i] == ")")
            found[name] = tokens[begin:i]
            i += 1
    return found, tokens[i:]
