# SPDX-License-Identifier: Apache-2.0
"""``fcompile`` functions for ``export_library`` of TVM's modules: programs that offer what a module was compiled to."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import attrs

from .boards import BOARDS, RUNTIME, Board
from .building import BuildError, build, link_flags, put_in_place

_CORTEX_M: Final = "cortex_m_uart_server"
_SERVERS: Final = {
    "posix_popen_server": "posix",
    "posix_tcp_server": "posix-tcp",
    _CORTEX_M: "lm3s6965evb",
    **{f"{_CORTEX_M}:{name}": name for name, board in BOARDS.items() if "-mthumb" in board.flags},
}
"""The board that each server is built for."""
_LIBRARIES: Final = {"libtvm": 2, "libtvm_ffi": 1, "minimal": 0}
"""What ``RPCFLOW_LIBRARY`` is with each runtime."""
_PASSED_ON: Final = ("get_target_triple", "object_format", "output_format")
"""Attributes of compile functions that TVM looks at."""


def with_minrpc(
    compile_func: str | Callable[..., Any],
    server: str = "posix_popen_server",
    runtime: str = "libtvm",
) -> Callable[..., Any]:
    """A function for ``export_library(output, fcompile=...)`` that makes a program of what a module was compiled to.

    The module must have been compiled as a system library (``attrs={"system_lib_prefix": ""}``); ``system_lib()`` of
    a session with the program gives it back. The program needs no Python.

    Args:
        compile_func: a compiler's name or path, or a function ``(output, objects, options=...)`` that links an
            executable, as ``tvm.support.cc.create_executable``; it gets our C sources among the objects.
        server: ``posix_popen_server``, a process on pipes for :class:`PopenSession`; ``posix_tcp_server``; or
            ``cortex_m_uart_server``, a firmware for the board lm3s6965evb, and with ``:BOARD`` behind it for another.
        runtime: ``libtvm`` links TVM's runtime library, ``libtvm_ffi`` that of tvm-ffi alone, both as they are
            installed here: what is registered there can be called too. ``minimal`` is our C and nothing else.

    Returns:
        ``fcompile(output, objects, options=None)``. It takes sources, objects and archives, and more options for the
        compiler, a list or a text. It raises :class:`~rpcflow.minrpc.building.BuildError` when something cannot be
        compiled; a compile function raises what it likes. Then ``output`` is as it was.

    Raises:
        ValueError: there is no such server or runtime, or not this runtime for this server.
        BuildError: the library is not installed.
    """
    board = _board(server, runtime)
    if isinstance(compile_func, str):
        fcompile = _by_name(board, compile_func)
        fcompile.get_target_triple = lambda: _target_triple(compile_func)  # type: ignore[attr-defined]
    else:
        fcompile = _by_function(board, compile_func)
        for name in _PASSED_ON:
            if hasattr(compile_func, name):
                setattr(fcompile, name, getattr(compile_func, name))
    fcompile.need_system_lib = True  # type: ignore[attr-defined]
    fcompile.__name__ = fcompile.__qualname__ = "with_minrpc"  # TVM's messages show it
    return fcompile


def _by_name(board: Board, compiler: str) -> Callable[..., None]:
    def fcompile(
        output: str | os.PathLike[str],
        objects: str | Sequence[str],
        options: str | Iterable[str] | None = None,
    ) -> None:
        more = _options(options)
        sizes = [option for option in more if option.startswith("-DRPCFLOW_")]  # the runtime itself goes by them
        sized = attrs.evolve(board, flags=(*board.flags, *sizes))
        build(sized, output, _list(objects), options=more, compiler=compiler)

    return fcompile


def _by_function(board: Board, compile_func: Callable[..., Any]) -> Callable[..., Any]:
    def fcompile(
        output: str | os.PathLike[str],
        objects: str | Sequence[str],
        options: str | Iterable[str] | None = None,
    ) -> Any:
        output = Path(output)
        sources = [str(source) for pattern in board.sources for source in sorted(RUNTIME.glob(pattern))]
        more = [*board.flags, f"-I{RUNTIME / 'include'}", *_options(options), *link_flags(board), *board.libraries]
        with TemporaryDirectory(prefix="rpcflow-build-") as folder:
            made = Path(folder) / output.name  # a compile function may go by its suffix
            result = compile_func(str(made), [*_list(objects), *sources], options=more)
            if not made.is_file():
                raise BuildError(f"the compile function did not write {output.name}")
            put_in_place(made, output)
        return result

    return fcompile


def _list(objects: str | Sequence[str]) -> list[str]:
    return [objects] if isinstance(objects, str) else list(objects)


def _options(given: str | Iterable[str] | None) -> list[str]:
    if not isinstance(given, str):
        return list(given or ())
    try:
        return shlex.split(given)
    except ValueError as error:
        raise BuildError(f"options {given!r} cannot be read: {error}") from error


def _board(server: str, runtime: str) -> Board:
    """What to build for, with the library that the runtime stands for."""
    if server not in _SERVERS:
        raise ValueError(f"there is no server {server!r}; there are {', '.join(_SERVERS)}")
    if runtime not in _LIBRARIES:
        raise ValueError(f"there is no runtime {runtime!r}; there are {', '.join(_LIBRARIES)}")
    board = BOARDS[_SERVERS[server]]
    library = _LIBRARIES[runtime]
    if not library:
        return board
    if board.script:
        raise ValueError(f"runtime {runtime!r} is a library for an operating system; for {server!r} there is 'minimal'")
    packages = {"libtvm_ffi": ("tvm_ffi", "apache-tvm-ffi"), "libtvm_runtime": ("tvm", "apache-tvm")}
    names = list(packages)[:library]
    files = {name: _library(name, *packages[name], runtime) for name in names}
    headers = _package("tvm_ffi", "apache-tvm-ffi", runtime) / "include"
    return attrs.evolve(
        board,
        flags=(*board.flags, f"-DRPCFLOW_LIBRARY={library}", "-isystem", str(headers)),
        libraries=(
            "-Wl,--no-as-needed",  # they register functions: nothing need refer to them
            *(str(file) for file in files.values()),
            # Where they are found when the program runs. A comma in a path would end an argument of -Wl.
            *(word for file in files.values() for word in ("-Xlinker", "-rpath", "-Xlinker", str(file.parent))),
            *board.libraries,
        ),
    )


def _package(name: str, distribution: str, runtime: str) -> Path:
    """The folder of a package, which is not imported: it could take seconds, and hundreds of megabytes."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(f"the package {distribution} is not installed", runtime)
    return Path(spec.submodule_search_locations[0])


def _library(name: str, package: str, distribution: str, runtime: str) -> Path:
    folder = _package(package, distribution, runtime)
    for path in (folder / "lib" / f"{name}.so", folder / f"{name}.so"):
        if path.is_file():
            return path
    raise _missing(f"the package {distribution} in {folder} has no {name}.so", runtime)


def _missing(what: str, runtime: str) -> BuildError:
    others = " or ".join(repr(name) for name, library in _LIBRARIES.items() if library < _LIBRARIES[runtime])
    return BuildError(f"runtime {runtime!r} cannot be linked: {what} here; choose {others} (runtime=...)")


def _target_triple(compiler: str) -> str | None:
    """What the compiler compiles for; None where it does not say."""
    path = shutil.which(compiler)
    if path is None:
        raise BuildError(f"there is no compiler {compiler}")
    try:
        ran = subprocess.run([path, "-dumpmachine"], capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise BuildError(f"{compiler}: {error.strerror}") from error
    return ran.stdout.strip() or None
