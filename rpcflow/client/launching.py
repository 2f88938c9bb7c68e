# SPDX-License-Identifier: Apache-2.0
"""What goes over the line for kernels: how they are loaded, and how many threads are launched."""

import json
import operator
from collections.abc import Iterable, Mapping, Sequence

Extents = int | Sequence[int]
"""One to three extents, x first."""


def launch_arguments(grid: Extents | None, block: Extents | None) -> tuple[int, ...]:
    """The six ints behind a kernel's arguments: blocks in x, y, z, then threads of a block; all 0 for a block as the
    kernel itself says.

    Raises:
        TypeError: an extent is no int, or there is no grid.
        ValueError: an extent is less than 1, or there are more than three.
    """
    if grid is None:
        raise TypeError("a kernel is launched with grid=(x, y, z) as well as block")
    return _three("grid", grid) + ((0, 0, 0) if block is None else _three("block", block))


def _three(what: str, extents: Extents) -> tuple[int, ...]:
    given = tuple(extents) if isinstance(extents, Iterable) else (extents,)
    try:
        made = tuple(operator.index(extent) for extent in given)
    except TypeError:
        raise TypeError(f"{what}={extents!r}: extents are ints (n // 64, not n / 64)") from None
    if not 1 <= len(made) <= 3:
        raise ValueError(f"{what} has one to three extents, not {len(made)}")
    if min(made) < 1:
        raise ValueError(f"{what}={extents!r}: extents are 1 or more")
    return made + (1,) * (3 - len(made))


def loading_arguments(
    backend: str | None, signature: Mapping[str, str | Sequence[str]] | None, options: Sequence[str]
) -> list[str]:
    """What a server's load_module is told beside the file's name; nothing where there is nothing to tell.

    Raises:
        TypeError: one is of another kind than it should be.
    """
    if backend is not None and not isinstance(backend, str):
        raise TypeError(f"a backend is named by a text, not {backend!r}")
    if isinstance(options, str) or not all(isinstance(option, str) for option in options):
        raise TypeError(f"options are a list of texts, not {options!r}")
    if signature is not None and not isinstance(signature, Mapping):
        raise TypeError(
            f"a signature names the types for each kernel, {{'vadd': 'float32*, int32'}}, not {signature!r}"
        )
    types = {} if signature is None else {name: _types(name, kinds) for name, kinds in signature.items()}
    if backend is None and not types and not options:
        return []
    return [backend or "", json.dumps(types) if types else "", json.dumps(list(options)) if options else ""]


def _types(name: str, kinds: str | Sequence[str]) -> list[str]:
    listed = kinds.split(",") if isinstance(kinds, str) and kinds.strip() else list(kinds) if kinds else []
    if not all(isinstance(kind, str) for kind in listed):
        raise TypeError(f"the signature of {name!r} names types, not {kinds!r}")
    return [kind.strip() for kind in listed]
