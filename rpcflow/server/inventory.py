# SPDX-License-Identifier: Apache-2.0
"""What there is on this machine for a server to offer: versions, compilers, backends and their devices."""

import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import attrs

from rpcflow import __version__
from rpcflow.backends import Backend, BackendError
from rpcflow.backends.registry import backend_names, load
from rpcflow.devices import DEVICE_TYPES, Attribute
from rpcflow.session.wire_errors import describe

_MOST_DEVICES: Final = 16
_COMPILERS: Final = ("c++", "g++", "clang++")
_PACKAGES: Final = {
    "apache-tvm-ffi": "a server needs it to load modules, and a host to compile with: pip install 'rpcflow[server]'",
    "apache-tvm": "modules that TVM compiled with parallel loops, workspaces or code for cuda need it, or its runtime "
    "library (--load-library)",
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
    for name in backend_names():
        yield _backend(name)


def _backend(name: str) -> Item:
    label = f"backend {name}"
    try:
        backend = load(name)
        assert backend is not None
        absent = backend.absence()
        if absent is not None:
            return Item(None, label, _printable(f"no device: {absent}"))
        devices, version = list(_devices(backend, name)), backend.version()
        backend.close()
    except Exception as error:  # it is anybody's code: what it raises is what is to be shown
        return Item(False, label, _printable(str(error) if isinstance(error, BackendError) else describe(error)))
    if not devices:
        return Item(True, label, "loaded, and finds no device")
    return Item(True, label, _printable("; ".join(devices) + (f" [{version}]" if version else "")))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


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
