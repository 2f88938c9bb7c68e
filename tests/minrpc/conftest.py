# SPDX-License-Identifier: Apache-2.0
"""Programs of the C runtime, each built once."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rpcflow.sync import with_minrpc

from ..once import once
from .building import AS_A_PROCESS, HERE, SANITIZED, build, need
from .compiled import compiled

Built = Callable[[str, str], str]

SMALL = ("-DRPCFLOW_COPY_NBYTES=256", "-DRPCFLOW_PACKET_NBYTES=512", "-DRPCFLOW_TENSOR_NBYTES=256")


@pytest.fixture(scope="session")
def tvm_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object with kernels that TVM has compiled for this machine, to be linked into a program."""
    if importlib.util.find_spec("tvm") is None:
        pytest.skip("SKIPPED, apache-tvm is missing: kernels compiled by TVM were NOT TESTED on the C runtime")
    from .compiled import compile_kernels

    return once(tmp_path_factory, "kernels.o", compile_kernels)


@pytest.fixture(scope="session")
def device_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server on pipes with the sizes of a process, and sanitizers."""
    kernels = [HERE / "kernels.c"]
    return once(tmp_path_factory, "device", lambda made: build(made, "posix_pipe.c", kernels, AS_A_PROCESS))


@pytest.fixture(scope="session")
def small_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the sizes of a board, or smaller."""
    kernels = [HERE / "kernels.c"]
    return once(tmp_path_factory, "small-device", lambda made: build(made, "posix_pipe.c", kernels, SMALL))


@pytest.fixture(scope="session")
def tvm_program(tmp_path_factory: pytest.TempPathFactory, tvm_object: Path) -> Path:
    """A server on pipes with kernels that TVM has compiled."""
    kernels = [HERE / "kernels.c", tvm_object]
    return once(tmp_path_factory, "tvm-device", lambda made: build(made, "posix_pipe.c", kernels, AS_A_PROCESS))


@pytest.fixture(scope="session")
def tcp_program(tmp_path_factory: pytest.TempPathFactory, tvm_object: Path) -> Path:
    """A server on TCP."""
    need("gcc", "gcc")
    kernels = [HERE / "kernels.c", tvm_object]
    return once(tmp_path_factory, "tcp-server", lambda made: build(made, "posix_tcp.c", kernels, AS_A_PROCESS))


@pytest.fixture(scope="session")
def library() -> Any:
    if importlib.util.find_spec("tvm") is None:
        pytest.skip("SKIPPED, apache-tvm is missing: with_minrpc was NOT TESTED on what TVM compiles")
    return compiled()


@pytest.fixture(scope="session")
def built(library: Any, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Path of the program for a server and a runtime, compiled by gcc and linked once."""
    need("gcc", "gcc")

    def build(server: str, runtime: str) -> str:
        def make(path: Path) -> None:
            library.export_library(str(path), fcompile=with_minrpc("gcc", server, runtime))

        return str(once(tmp_path_factory, f"{server}-{runtime}", make))

    return build


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Functions registered in tvm-ffi's library, compiled."""
    need("g++", "g++")
    if importlib.util.find_spec("tvm_ffi") is None:
        pytest.skip("SKIPPED, apache-tvm-ffi is missing: programs with its library were NOT TESTED")
    from tvm_ffi.libinfo import find_include_path

    command = ["g++", "-std=c++17", "-O1", "-c", f"-I{find_include_path()}", HERE / "objects.cc", "-o"]
    return once(tmp_path_factory, "objects.o", lambda made: subprocess.run([*command, made], check=True))


@pytest.fixture(scope="session")
def with_objects(library: Any, objects: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """As ``built``, with those functions, places for 8 objects, and sanitizers; all of it compiled as C++."""
    from tvm.support import cc

    def build(server: str, runtime: str) -> str:
        def make(path: Path) -> None:
            options = [*SANITIZED, "-DRPCFLOW_MAX_OBJECTS=8"]
            fcompile = with_minrpc(cc.create_executable, server, runtime)
            library.export_library(str(path), fcompile=fcompile, addons=[str(objects)], options=options)

        return str(once(tmp_path_factory, f"{server}-{runtime}-objects", make))

    return build
