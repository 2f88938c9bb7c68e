# SPDX-License-Identifier: Apache-2.0
"""Loading files of kernels, by the backend that takes them."""

import json
import os
from collections.abc import Callable
from typing import Any

from rpcflow.backends import Backend, BackendError, BackendTable
from rpcflow.backends.base import KernelError, KernelSource
from rpcflow.backends.kernels import KernelModule, Location

from .guard import Guard
from .linking import LINKABLE, LOADABLE, LinkError


def is_library(path: str) -> bool:
    """Whether a file is loaded as a library, being one or being linked to one."""
    return path.endswith((*LOADABLE, *LINKABLE))


class KernelLoader:
    """Loads the kernels of one session.

    Args:
        backends: the session's.
        locate: where a tensor lies that a function is given.
        guard: keeps to the session's grant; None where everything is granted.
    """

    def __init__(
        self, backends: BackendTable, locate: Callable[[Any], Location | None], guard: Guard | None = None
    ) -> None:
        self._backends = backends
        self._locate = locate
        self._guard = guard

    def load(self, path: str, backend: str = "", signature: str = "", options: str = "") -> KernelModule:
        """The kernels in a file.

        Args:
            path: of the file; its suffix says what it is.
            backend: who shall load it; empty for the first that takes the suffix and has a device.
            signature: JSON: an object with a list of types for each kernel; or empty.
            options: JSON: a list of options for the compiler; or empty.

        Raises:
            LinkError: nobody loads files of that suffix.
            BackendError: no device is there that could run it.
            KernelError: it does not compile.
        """
        name = os.path.basename(path)
        suffix = name[name.rfind(".") :].lower() if "." in name else ""
        chosen = self._named(backend, name, suffix) if backend else self._first(name, suffix)
        guard = self._guard
        first = 0 if guard is None else guard.first_of(chosen)
        check = None if guard is None else guard.of_backend(chosen)
        with open(path, "rb") as file:
            data = file.read()
        source = KernelSource(name, suffix, data, _signature(signature), _options(options), first)
        kernels = chosen.load(source)
        known = list(kernels)  # looking one up may make it
        for kernel in source.signature:
            if kernel not in known:
                raise KernelError(
                    f"there is a signature for {kernel!r}, and {name!r} has {', '.join(known)}", kernel=kernel
                )
        return KernelModule(name, chosen, kernels, self._locate, check, first)

    def _named(self, backend: str, name: str, suffix: str) -> Backend:
        chosen = self._backends.named(backend)
        if suffix not in chosen.suffixes:
            takes = ", ".join(chosen.suffixes) or "no files of kernels"
            raise BackendError(f"the backend {backend!r} does not load {name!r}: it takes {takes}")
        why = chosen.absence()
        if why is not None:
            raise BackendError(f"{name!r} cannot be loaded: {why}", device=backend)
        return chosen

    def _first(self, name: str, suffix: str) -> Backend:
        absent = []
        for backend in self._backends.loaders(suffix):
            why = backend.absence()
            if why is None:
                return backend
            absent.append(f"{backend.kind}: {why}")
        if absent:
            absent += [f"{name}: {why}" for name, why in self._backends.broken.items()]
            raise BackendError(f"{name!r} cannot be loaded, there is no device for it. " + "; ".join(absent))
        known = ", ".join((*LOADABLE, *LINKABLE, *self.suffixes()))
        broken = "".join(f"; {name}: {why}" for name, why in self._backends.broken.items())
        raise LinkError(f"{name!r} cannot be loaded as a module; known suffixes: {known}{broken}")

    def suffixes(self) -> list[str]:
        """Those of files of kernels that any backend loads."""
        return sorted({suffix for backend in self._backends.all() for suffix in backend.suffixes})


def _signature(text: str) -> dict[str, list[str]]:
    if not text:
        return {}
    found = _json(text, "signature")
    if not isinstance(found, dict):
        raise KernelError("a signature names for each kernel the types of its parameters")
    made: dict[str, list[str]] = {}
    for name, types in found.items():
        if isinstance(types, str):
            types = types.split(",") if types.strip() else []
        if not isinstance(types, list) or not all(isinstance(kind, str) for kind in types):
            raise KernelError(f"the signature of {name!r} is no list of types")
        made[name] = types
    return made


def _options(text: str) -> list[str]:
    if not text:
        return []
    found = _json(text, "options")
    if not isinstance(found, list) or not all(isinstance(option, str) for option in found):
        raise KernelError("options for the compiler are a list of texts")
    return found


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KernelError(f"the {what} is no JSON: {error}") from None
