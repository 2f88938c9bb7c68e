# SPDX-License-Identifier: Apache-2.0
"""Functions a server offers, by name.

With apache-tvm-ffi installed this is tvm-ffi's own global registry, so that whatever a tvm-ffi package registers can
be called and the reverse; without it, a plain dictionary of Python callables.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])

_LENDING: Final = threading.RLock()
_PLAIN: Final[dict[str, Callable[..., Any]]] = {}


@overload
def register(name: str, func: None = None, override: bool = False) -> Callable[[F], F]: ...
@overload
def register(name: str, func: F, override: bool = False) -> F: ...


def register(name: str, func: F | None = None, override: bool = False) -> F | Callable[[F], F]:
    """Offer a Python callable to the sessions of this process's servers.

    Tensor arguments arrive as ``tvm_ffi.Tensor`` (``numpy.from_dlpack`` looks into them without a copy), or as NumPy
    arrays where apache-tvm-ffi is not installed.

    Args:
        name: what clients look up.
        func: the callable; leave it out to use ``register`` as a decorator.
        override: replace a function of that name.

    Raises:
        ValueError: the name is taken, and ``override`` is not set.
        TypeError: ``func`` cannot be called.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"a function's name is a text, not {name!r}")

    def put(function: F) -> F:
        if not callable(function):
            raise TypeError(f"{function!r} cannot be called")
        ffi = tvm_ffi()
        if find(name) is not None and not override:
            raise ValueError(f"a function {name!r} is registered already; override=True replaces it")
        if ffi is None:
            _PLAIN[name] = function
        else:
            ffi.register_global_func(name, function, override=override)
        return function

    return put if func is None else put(func)


def find(name: str) -> Any:
    """The function of that name, or None."""
    ffi = tvm_ffi()
    return _PLAIN.get(name) if ffi is None else ffi.get_global_func(name, allow_missing=True)


@contextlib.contextmanager
def lent(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Functions under names of tvm-ffi's global registry for as long as the block lasts, whatever is there before.
    One block at a time; there must be tvm-ffi."""
    ffi = tvm_ffi()
    with _LENDING:
        before = {name: find(name) for name in functions}
        try:
            for name, function in functions.items():
                ffi.register_global_func(name, function, override=True)
            yield
        finally:
            for name, function in before.items():
                if function is not None:
                    ffi.register_global_func(name, function, override=True)
                elif find(name) is not None:
                    ffi.registry.remove_global_func(name)


def tvm_ffi() -> Any:
    """The module tvm_ffi, or None where apache-tvm-ffi is not installed."""
    try:
        import tvm_ffi as module
    except ModuleNotFoundError as error:
        if error.name != "tvm_ffi":
            raise
        return None
    return module
