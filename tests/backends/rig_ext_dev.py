# SPDX-License-Identifier: Apache-2.0
"""An accelerator that a C++ library drives: accelerator.cc by the functions that rpcflow asks for, accelerator_tvm.cc
by a DeviceAPI in TVM's runtime."""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .rigs import Rig

_HERE = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-parameter")


def load(*libraries: str) -> None:
    """In the server: as --load-library does."""
    import tvm_ffi  # noqa: F401  # what they are linked to

    for library in libraries:
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)


def make() -> Rig:
    library = build("accelerator")
    if library is None:
        return Rig("ext_dev", absent="no C++ compiler, or no apache-tvm-ffi")
    return Rig("ext_dev", prepare=functools.partial(load, library))


def make_tvm(offsets: bool = True) -> Rig:
    """``offsets``: whether it copies from the middle of a tensor."""
    runtime = tvm_runtime()
    library = build("accelerator_tvm")
    if library is None or runtime is None:
        return Rig("ext_dev", absent="no C++ compiler, or no apache-tvm")
    return Rig("ext_dev", prepare=functools.partial(_load_tvm, runtime, library, offsets))


def _load_tvm(runtime: str, library: str, offsets: bool) -> None:
    os.environ["ACCELERATOR_OFFSETS"] = str(int(offsets))
    load(runtime, library)


@functools.cache
def tvm_runtime() -> str | None:
    """libtvm_runtime.so of an installed apache-tvm, or None."""
    spec = importlib.util.find_spec("tvm")
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path((folders or ["/"])[0], "lib", "libtvm_runtime.so")
    return str(path) if path.is_file() else None


@functools.cache
def build(name: str) -> str | None:
    """The library out of NAME.cc, compiled once a process; None where that cannot be done."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or importlib.util.find_spec("tvm_ffi") is None:
        return None
    from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path, find_libtvm_ffi

    flags = [*_FLAGS, f"-I{find_include_path()}", f"-I{find_dlpack_include_path()}"]
    libraries = [str(find_libtvm_ffi())]
    if name.endswith("_tvm"):
        runtime = tvm_runtime()
        if runtime is None:
            return None
        flags.append(f"-I{Path(runtime).parent.parent}/include")
        libraries.append(runtime)
    folder = tempfile.mkdtemp(prefix=f"rpcflow-{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = f"{folder}/{name}.so"
    subprocess.run([compiler, *flags, "-o", made, str(_HERE / f"{name}.cc"), *libraries], check=True)
    return made
