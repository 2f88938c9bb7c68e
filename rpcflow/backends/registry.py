# SPDX-License-Identifier: Apache-2.0
"""Backends by the kind of device, found through the entry points ``rpcflow.backends`` and loaded when first used."""

from importlib import import_module
from importlib.metadata import entry_points
from typing import Final, cast

from rpcflow.devices import device_name
from rpcflow.protocol.values import Device

from .base import Backend, BackendError

_GROUP: Final = "rpcflow.backends"
_OWN: Final = {"cpu": "rpcflow.backends.cpu"}


class BackendTable:
    """The backends of one session."""

    def __init__(self) -> None:
        self._loaded: dict[int, Backend | None] = {}

    def find(self, dev_type: int) -> Backend | None:
        """The backend for a kind of device, or None where this server has none."""
        if dev_type not in self._loaded:
            self._loaded[dev_type] = _load(device_name(dev_type))
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


def _load(name: str) -> Backend | None:
    if name in _OWN:
        return cast(Backend, import_module(_OWN[name]).backend)
    for point in entry_points(group=_GROUP, name=name):
        return cast(Backend, point.load())
    return None
