# SPDX-License-Identifier: Apache-2.0
"""Backends by the kind of device, found through the entry points ``rpcflow.backends`` and loaded when first used."""

import contextlib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from rpcflow.devices import DEVICE_TYPES, device_name, device_type
from rpcflow.protocol.values import Device

from .base import Backend, BackendError

_GROUP: Final = "rpcflow.backends"
_CPU: Final = "cpu"
_ORDER: Final = ("cpu", "cuda", "rocm", "metal", "vulkan", "opencl", "webgpu", "hexagon", "ext_dev")
"""Who is asked first for what several can load; others come behind, by name."""


class BackendTable:
    """The backends of one session."""

    def __init__(self) -> None:
        self._loaded: dict[int, Backend | None] = {}
        self.broken: dict[str, str] = {}
        """Those that :meth:`all` had to leave out, and why."""

    def find(self, dev_type: int) -> Backend | None:
        """The backend for a kind of device, or None where this server has none.

        Raises:
            BackendError: there is one, and it cannot be loaded.
        """
        if dev_type not in self._loaded:
            self._loaded[dev_type] = load(device_name(dev_type))
        return self._loaded[dev_type]

    def get(self, device: Device) -> Backend:
        """The backend of a device.

        Raises:
            BackendError: this server has none for that kind.
        """
        backend = self.find(device.dev_type)
        if backend is None:
            name = device_name(device.dev_type)
            raise BackendError(f"this server has no backend for {name} devices", device=f"{name}({device.dev_id})")
        return backend

    def all(self) -> Iterator[Backend]:
        """All backends that are installed, in the order in which they are asked; their devices may be missing."""
        for name in backend_names():
            try:
                backend = self.find(DEVICE_TYPES.get(name, 0))
            except BackendError as error:
                self.broken[name] = str(error)
                continue
            if backend is not None:
                yield backend

    def loaders(self, suffix: str) -> Iterator[Backend]:
        """The backends that load files of kernels of that suffix."""
        return (backend for backend in self.all() if suffix in backend.suffixes)

    def named(self, name: str) -> Backend:
        """The backend of that name, as those of kinds of devices (``"cl"`` and the like, too).

        Raises:
            BackendError: there is none.
        """
        try:
            backend = self.find(device_type(name))
        except ValueError:
            backend = None
        if backend is None:
            raise BackendError(f"this server has no backend {name!r}; it has {', '.join(backend_names())}")
        return backend

    def close(self) -> None:
        """The session is over."""
        loaded, self._loaded = self._loaded, {}
        with contextlib.ExitStack() as stack:  # what one raises does not keep the others from closing
            for backend in loaded.values():
                if backend is not None:
                    stack.callback(backend.close)


def backend_names() -> list[str]:
    """The kinds of devices that there are backends for, in the order in which they are asked."""
    names = {point.name for point in entry_points(group=_GROUP)} | {_CPU}
    return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def factory(name: str) -> Callable[[], Any] | None:
    """What makes the backend of that name: whatever its package offers, or None."""
    if name == _CPU:  # needed always, and by name it takes a tenth of the time
        return import_module("rpcflow.backends.cpu").CpuBackend  # type: ignore[no-any-return]
    point: EntryPoint | None = next(iter(entry_points(group=_GROUP, name=name)), None)
    return None if point is None else point.load()


def load(name: str) -> Backend | None:
    """The backend of that name, new; None where there is none.

    Raises:
        BackendError: it cannot be loaded.
    """
    try:
        make = factory(name)
        made = None if make is None else make()
    except Exception as error:  # it is anybody's code
        raise BackendError(f"the backend {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if make is None:
        return None
    if not isinstance(made, Backend):
        raise BackendError(f"what is installed as backend {name!r} makes a {type(made).__name__}, not a Backend")
    if made.kind != name:
        raise BackendError(f"what is installed as backend {name!r} is one for {made.kind!r}")
    return made
