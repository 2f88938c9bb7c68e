# SPDX-License-Identifier: Apache-2.0
"""The words of a WGSL source, and whole numbers that it reckons out of constants: sizes of workgroups, bindings."""

import re
from collections.abc import Mapping
from typing import Final

from .base import KernelError

_COMMENT: Final = re.compile("//[^\n\v\f\r\u0085\u2028\u2029]*|/\\*|\\*/")
_TOKEN: Final = re.compile(r"[^\W\d]\w*|\d[\w.]*|->|\S")
_INTEGER: Final = re.compile(r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19})[iu]?")
_DEPTH: Final = 32
"""Of constants that depend on constants, and of parentheses."""
_LIMIT: Final = 1 << 63
_OPERATORS: Final = ("|", "^", "&", "<<", "+", "*")
"""The first of each level of binary operators, those that bind least before; as many levels as that."""
_LEVELS: Final = {"|": 0, "^": 1, "&": 2, "<<": 3, ">>": 3, "+": 4, "-": 4, "*": 5, "/": 5, "%": 5}


_MOST_NESTED: Final = 256
_MOST_ELSES: Final = 1000
_MOST_OPERATORS: Final = 6000
_MOST_DECLARED: Final = 10_000


def tokenize(text: str) -> list[str]:
    """Names, numbers and single characters; comments, which may be nested, are left out.

    Raises:
        KernelError: a comment does not end.
    """
    pieces = []
    depth = kept = 0
    pos = 0
    while (found := _COMMENT.search(text, pos)) is not None:
        word = found[0]
        pos = found.end()
        if word == "/*":
            if not depth:
                pieces.append(text[kept : found.start()])
            depth += 1
        elif word == "*/":
            if depth:
                depth -= 1
                kept = pos
            else:  # only "*", and "/", at which a comment may begin
                pos = found.start() + 1
        elif depth:
            pos = found.start() + 1  # it may end in the same line, or one begin
        else:
            pieces.append(text[kept : found.start()])
            kept = pos
    if depth:
        raise KernelError("a comment does not end")
    pieces.append(text[kept:])
    return _TOKEN.findall(" ".join(pieces))


def check_nesting(text: str) -> None:
    """Refuse a source that is nested more deeply, or has longer expressions, than a compiler that recurses for each
    step can stand: naga ends the process.

    Raises:
        KernelError: it is, or no WGSL.
    """
    depth = operators = angles = nested = declared = 0
    chains = [0] * (_MOST_NESTED + 2)  # of "else", by depth; each is inside the one before for a compiler
    before = ""
    for token in tokenize(text):
        if before == "}" or token == "else":
            nested -= chains[depth]
            chains[depth] = chains[depth] + 1 if token == "else" else 0
            nested += chains[depth]
            if nested > _MOST_ELSES:
                raise KernelError(f"more than {_MOST_ELSES} branches are inside each other, those by 'else' included")
        before = token
        if token in ("(", "[", "{"):
            depth += 1
            if depth > _MOST_NESTED:
                raise KernelError(f"brackets are nested more than {_MOST_NESTED} deep")
        elif token in (")", "]", "}"):
            if depth:
                nested -= chains[depth]
                chains[depth] = 0
                depth -= 1
        elif not depth and token in ("const", "override", "alias", "struct", "fn"):
            declared += 1
            if declared > _MOST_DECLARED:
                raise KernelError(f"it declares more than {_MOST_DECLARED} constants, types and functions")
        if token in (",", ";", "{", "}"):
            operators = angles = 0
        elif token in ("&", "|", ")"):
            angles = 0
        elif token == "<":
            angles += 1
            if angles > _MOST_NESTED:
                raise KernelError(f"a type is nested more than {_MOST_NESTED} deep")
        elif token == ">":
            angles = max(angles - 1, 0)
        if not (token[0].isalnum() or token[0] in "_,;{}()[]<>"):
            operators += 1
            if operators > _MOST_OPERATORS:
                raise KernelError(f"an expression has more than {_MOST_OPERATORS} operators")


def split(tokens: list[str], separators: str, templates: bool = False) -> list[list[str]]:
    """What is between separators outside of brackets; nothing for what is empty. ``templates``: ``<`` and ``>`` are
    brackets, too."""
    parts: list[list[str]] = []
    part: list[str] = []
    depth = angles = 0
    for token in tokens:
        if token in separators and depth <= 0 and not angles:
            parts.append(part)
            part = []
            continue
        part.append(token)
        depth += (token in ("(", "[", "{")) - (token in (")", "]", "}"))
        if templates and depth <= 0:
            angles += (token == "<") - (token == ">" and angles > 0)
    parts.append(part)
    return [part for part in parts if part]


class Constants:
    """The ``const`` and ``override`` declarations of a module.

    Args:
        given: values for overrides, by name or number.
    """

    def __init__(self, given: Mapping[str, float]) -> None:
        self._given = given
        self._declared: dict[str, list[str] | None] = {}
        self._values: dict[str, int] = {}

    def declare(self, name: str, value: list[str] | None, number: list[str] | None) -> None:
        """One of them. ``value``: its tokens; ``number``: of an override, likewise."""
        for key in (name, "".join(number or ())):
            if key and key in self._given:
                value = tokenize(str(self._given[key]))
        self._declared[name] = value

    def value(self, tokens: list[str]) -> int:
        """The whole number that an expression gives; an attribute's may have a comma behind.

        Raises:
            KernelError: it cannot be told.
        """
        return self._expression(tokens[:-1] if tokens[-1:] == [","] else tokens, 0)

    def _expression(self, tokens: list[str], depth: int) -> int:
        if depth > _DEPTH:
            raise KernelError(f"a constant is nested more than {_DEPTH} deep")
        reader = _Reader(self, tokens, depth)
        found = reader.binary(0)
        reader.end()
        return found

    def named(self, name: str, depth: int) -> int:
        """The value of a constant."""
        if name not in self._values:
            value = self._declared.get(name)
            if value is None:
                raise KernelError(f"the value of {name!r} is not known")
            self._values[name] = self._expression(value, depth + 1)
        return self._values[name]


class _Reader:
    """Reckons an expression out."""

    def __init__(self, constants: Constants, tokens: list[str], depth: int) -> None:
        self._constants = constants
        self._tokens = tokens
        self._pos = 0
        self._depth = depth

    def _next(self) -> str:
        if self._pos >= len(self._tokens):
            raise self._unclear()
        self._pos += 1
        return self._tokens[self._pos - 1]

    def _unclear(self) -> KernelError:
        return KernelError(f"{' '.join(self._tokens[:32])!r} is no whole number that could be reckoned out")

    def end(self) -> None:
        """Nothing may come behind."""
        if self._pos != len(self._tokens):
            raise self._unclear()

    def _operator(self) -> str:
        ahead = self._tokens[self._pos : self._pos + 2]
        if ahead in (["<", "<"], [">", ">"]):
            return ahead[0] * 2
        return ahead[0] if ahead and ahead[0] in _LEVELS else ""

    def binary(self, level: int) -> int:
        """Operators of this level and those that bind more."""
        if level == len(_OPERATORS):
            return self._unary()
        left = self.binary(level + 1)
        while (operator := self._operator()) and _LEVELS[operator] == level:
            self._pos += len(operator)
            left = self._checked(self._apply(operator, left, self.binary(level + 1)))
        return left

    def _apply(self, operator: str, left: int, right: int) -> int:
        if operator in ("/", "%"):  # towards zero
            if not right:
                raise self._unclear()
            quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
            return quotient if operator == "/" else left - quotient * right
        if operator in ("+", "-", "*"):
            return left + right if operator == "+" else left - right if operator == "-" else left * right
        if operator in ("<<", ">>"):
            if not 0 <= right < 64:
                raise self._unclear()
            return left << right if operator == "<<" else left >> right
        return left & right if operator == "&" else left | right if operator == "|" else left ^ right

    def _checked(self, value: int) -> int:
        if not -_LIMIT <= value < _LIMIT:
            raise self._unclear()
        return value

    def _unary(self) -> int:
        signs = []
        while self._pos < len(self._tokens) and self._tokens[self._pos] in ("-", "~", "+"):
            signs.append(self._next())
        value = self._primary()
        for sign in reversed(signs):
            value = -value if sign == "-" else ~value if sign == "~" else value
        return self._checked(value)

    def _primary(self) -> int:
        token = self._next()
        if token == "(":
            return self._list(1)[0]
        if token in ("u32", "i32"):
            self._open()
            return self._list(1)[0]
        if token in ("min", "max"):
            self._open()
            values = self._list(2)
            return min(values) if token == "min" else max(values)
        if token.isidentifier():
            return self._constants.named(token, self._depth)
        found = _INTEGER.fullmatch(token)
        if found is None:
            raise self._unclear()
        return self._checked(int(found[1], 0) if found[1][:2] in ("0x", "0X") else int(found[1]))

    def _open(self) -> None:
        if self._next() != "(":
            raise self._unclear()

    def _list(self, count: int) -> list[int]:
        """So many expressions, up to the closing parenthesis."""
        self._depth += 1
        if self._depth > _DEPTH:
            raise KernelError(f"a constant is nested more than {_DEPTH} deep")
        values = [self.binary(0)]
        while len(values) < count:
            if self._next() != ",":
                raise self._unclear()
            values.append(self.binary(0))
        if self._next() != ")":
            raise self._unclear()
        self._depth -= 1
        return values
