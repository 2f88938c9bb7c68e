# SPDX-License-Identifier: Apache-2.0
"""Loading compiled modules, and TVM's runtime for those that need it."""

import ctypes
import importlib.util
import mmap
import os
import re
import shutil
from typing import Any, Final

from rpcflow import registry
from rpcflow.backends import BackendTable
from rpcflow.errors import RPCError

from .guard import Guard
from .tvm_kernels import TvmLoaders

_RUNTIME_SYMBOL: Final = re.compile(rb"TVMBackend(?!GetFuncFromEnv\0)")
"""In the names of what TVM-compiled code takes from TVM's runtime: parallel loops, workspaces. Kernels without them
need tvm-ffi alone. A module that needs the runtime and is loaded without it dies of a null pointer when called."""
_CONTEXT_SYMBOLS: Final = {
    b"TVMFFIFunctionCall": "TVMFFIFunctionCall",
    b"TVMFFIHandleInitOnce": "TVMFFIHandleInitOnce",
    b"TVMFFIErrorSetRaisedFromCStr": "TVMFFIErrorSetRaisedFromCStr",
    b"TVMFFIEnvModLookupFromImports": "TVMFFIEnvModLookupFromImports",
    b"TVMBackendGetFuncFromEnv": "TVMFFIEnvModLookupFromImports",  # as TVM 0.25 calls it
}
"""By which TVM-compiled code calls others, kernels among them; a library has them as pointers, with two underscores
before the name, that are filled in when it is loaded. They are tvm-ffi's, but only TVM's runtime says so to it."""
_CONTEXT_SYMBOL: Final = re.compile(rb"__TVMFFIFunctionCall\0|__TVMBackendGetFuncFromEnv\0")
_DEVICE_RUNTIMES: Final = {"cuda": ("libtvm_runtime_cuda.so",)}
"""Kinds of device code that a library of TVM's runs, beside the runtime. Its memory is the driver's, as ours is."""
_RUNTIME_FUNCTION: Final = "runtime.GetDeviceAttr"
_RUNTIME_FILES: Final = ("libtvm_runtime.so", "libtvm.so", "libtvm_runtime.dylib", "libtvm.dylib")


class ModuleError(RPCError):
    """A module cannot be loaded here."""


class ModuleLoader:
    """Loads the modules of one session.

    The system knows a library by its path and never forgets it. A file that has changed since it was loaded is
    therefore loaded from a copy.

    Args:
        folder: for copies; made when the first is.
        backends: run what modules have of device code.
        guard: keeps to the session's grant; None where everything is granted.
    """

    def __init__(self, folder: str, backends: BackendTable, guard: Guard | None = None) -> None:
        self._folder = folder
        self._loaders = TvmLoaders(backends, guard)
        self._has_context = False
        self._loaded: dict[str, tuple[int, int, int]] = {}

    def load(self, path: str) -> Any:
        """The module in a shared library.

        Raises:
            ModuleError: tvm-ffi is not installed, or the module needs TVM's runtime and that is not.
        """
        stat = os.stat(path)
        version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if self._loaded.setdefault(path, version) != version:
            folder = os.path.join(self._folder, str(len(self._loaded)))
            os.makedirs(folder, exist_ok=True)
            copy = os.path.join(folder, os.path.basename(path))
            shutil.copyfile(path, copy)
            self._loaded[copy] = version
            path = copy
        return self._load(path)

    def _load(self, path: str) -> Any:
        ffi = registry.tvm_ffi()
        if ffi is None:
            raise ModuleError("modules are loaded by apache-tvm-ffi: pip install 'rpcflow[server]' on the device")
        if _mentions(path, _RUNTIME_SYMBOL) and not _runtime_is_loaded():
            runtime = _find_runtime()
            if runtime is None:
                raise ModuleError(
                    f"{os.path.basename(path)!r} needs TVM's runtime (it has parallel loops or workspaces): install "
                    "apache-tvm on the device, or name its libtvm_runtime.so in --load-library"
                )
            ctypes.CDLL(runtime, ctypes.RTLD_GLOBAL)
        for kind, names in _DEVICE_RUNTIMES.items():
            if _has_device_code(path, kind) and registry.find(f"ffi.Module.load_from_bytes.{kind}") is None:
                _load_device_runtime(os.path.basename(path), kind, names)
        if not self._has_context and _mentions(path, _CONTEXT_SYMBOL):
            self._has_context = True
            _offer_context(ffi)
        with registry.lent(self._loaders.functions()):
            self._loaders.error = None
            try:
                return ffi.load_module(path)
            except Exception:
                error, self._loaders.error = self._loaders.error, None
                if error is None:
                    raise
                raise error from None


def _offer_context(ffi: Any) -> None:
    library = ctypes.CDLL(ffi.libinfo.find_libtvm_ffi())
    for name, function in _CONTEXT_SYMBOLS.items():
        if not hasattr(library, function):
            continue  # of an older tvm-ffi, and so of a TVM that does not ask for it
        symbol = ctypes.cast(getattr(library, function), ctypes.c_void_p)
        if library.TVMFFIEnvModRegisterContextSymbol(b"__" + name, symbol):
            raise ModuleError(f"tvm-ffi does not take the symbol {name.decode()}")


def _mentions(path: str, symbol: re.Pattern[bytes]) -> bool:
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return symbol.search(data) is not None


def _runtime_is_loaded() -> bool:
    if hasattr(ctypes.CDLL(None), "TVMBackendParallelLaunch"):
        return True
    return registry.find(_RUNTIME_FUNCTION) is not None


def _has_device_code(path: str, kind: str) -> bool:
    """Whether a library asks for the loader of that kind: its name is in there, with its length before it."""
    return _mentions(path, re.compile(re.escape(len(kind).to_bytes(8, "little") + kind.encode())))


def _load_device_runtime(module: str, kind: str, names: tuple[str, ...]) -> None:
    runtime, devices = _find_runtime(), _find_runtime(names)
    if runtime is None or devices is None:
        raise ModuleError(
            f"{module!r} has device code for {kind}, which TVM's runtime runs: install apache-tvm on the device, or "
            f"name libtvm_runtime.so and {names[0]} in --load-library"
        )
    try:
        if not _runtime_is_loaded():
            ctypes.CDLL(runtime, ctypes.RTLD_GLOBAL)
        ctypes.CDLL(devices, ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ModuleError(
            f"{module!r} has device code for {kind}, and TVM's runtime for that cannot be loaded: {error}"
        ) from error


def _find_runtime(names: tuple[str, ...] = _RUNTIME_FILES) -> str | None:
    """The runtime library of an installed apache-tvm, or another beside it, without importing that."""
    spec = importlib.util.find_spec("tvm")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for sub in ("lib", "", ".."):
            for name in names:
                path = os.path.join(folder, sub, name)
                if os.path.isfile(path):
                    return path
    return None
