# SPDX-License-Identifier: Apache-2.0
"""What there is on this machine for a server to offer: versions, compilers, backends and their devices."""

import platform
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any, Final

import attrs

from rpcflow import __version__
from rpcflow.backends.base import Backend
from rpcflow.devices import DEVICE_TYPES, Attribute

_GROUP: Final = "rpcflow.backends"
_MOST_DEVICES: Final = 16
_COMPILERS: Final = ("c++", "g++", "clang++")
_PACKAGES: Final = {
    "apache-tvm-ffi": "a server needs it to load modules, and a host to compile with: pip install 'rpcflow[server]'",
    "apache-tvm": "only modules that TVM compiled need it, or its runtime library (--load-library)",
    "wsproto": "ws:// and the web port of a proxy need it: pip install 'rpcflow[web]'",
}


@attrs.frozen
class Item:
    """A line of the inventory. ``there``: None where it is not, and is not needed by everybody; False is a fault."""

    there: bool | None
    name: str
    text: str


def inventory() -> Iterator[Item]:
    """Everything, in order. Backends are loaded for it."""
    yield Item(True, "python", f"{platform.python_version()} on {platform.system()}, {platform.machine()}")
    yield Item(True, "rpcflow", __version__)
    for package, use in _PACKAGES.items():
        try:
            yield Item(True, package, version(package))
        except PackageNotFoundError:
            yield Item(None, package, f"not installed; {use}")
    found = next(filter(None, map(shutil.which, _COMPILERS)), None)
    missing = "none found; needed where kernels are compiled or object files are linked: apt-get install g++"
    yield Item(True if found else None, "compiler", found or missing)
    found = shutil.which("ninja")
    missing = "none found; tvm_ffi.cpp compiles with it: apt-get install ninja-build, or pip install ninja"
    yield Item(True if found else None, "ninja", found or missing)
    points = {point.name: point for point in entry_points(group=_GROUP)}
    for name in sorted({"cpu", *points}):
        yield _backend(name, points[name].load if name != "cpu" else _cpu)


def _cpu() -> Backend:
    from rpcflow.backends.cpu import backend

    return backend


def _backend(name: str, load: Callable[[], Any]) -> Item:
    try:
        backend: Backend = load()
        devices = list(_devices(backend, name))
    except Exception as error:  # it is anybody's code: what it raises is what is to be shown
        return Item(False, f"backend {name}", f"{type(error).__name__}: {' '.join(str(error).split())}")
    text = "; ".join(devices) if devices else "loaded, and finds no device"
    return Item(True, f"backend {name}", "".join(letter if letter.isprintable() else "?" for letter in text))


def _devices(backend: Backend, name: str) -> Iterator[str]:
    dev_type = DEVICE_TYPES.get(name)
    if dev_type is None:
        raise ValueError(f"{name!r} is not a kind of device")
    most = 1 if name == "cpu" else _MOST_DEVICES
    for dev_id in range(most):
        if not backend.attribute(dev_id, Attribute.exist):
            return
        what = [f"{name}({dev_id})"]
        title = backend.attribute(dev_id, Attribute.device_name)
        if title:
            what.append(str(title))
        memory = backend.attribute(dev_id, Attribute.total_global_memory)
        if isinstance(memory, int):
            what.append(f"{memory / 2**30:.1f} GiB")
        yield " ".join(what)
