# SPDX-License-Identifier: Apache-2.0
"""Programs for devices without Python: the C runtime for a board, with the kernels that it is to offer."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory, mkstemp
from typing import Final

from rpcflow.errors import RPCError

from .boards import BOARDS, KEPT, RUNTIME, Board

SOURCES: Final = (".c", ".cc", ".cpp", ".S")
"""Suffixes of kernels that are compiled; ``LINKED`` are linked as they are."""
LINKED: Final = (".o", ".a", ".tar")
# What the runtime itself is held to; the tests make errors of warnings, but a user's compiler may know more of them.
_STRICT: Final = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-pedantic")
_SIZE: Final = re.compile(r"^#define (RPCFLOW_\w+) ", re.MULTILINE)


class BuildError(RPCError):
    """A program for a device cannot be made. ``command``: what was run and failed, ``output``: its words; both None
    where it did not come to that."""

    command: list[str] | None = None
    output: str | None = None


def build(
    board: str | Board,
    output: str | os.PathLike[str],
    kernels: Iterable[str | os.PathLike[str]] = (),
    *,
    options: Iterable[str] = (),
    sizes: Mapping[str, int] | None = None,
    compiler: str | None = None,
) -> None:
    """Make a program for a device: the C runtime for ``board``, and ``kernels``.

    Args:
        board: what to build for: a name of :data:`BOARDS`, or one of your own.
        output: the file to write; it is there whole or not at all.
        kernels: C and C++ sources, objects (.o), libraries (.a), and TVM's archives of objects (.tar).
        options: more for the compiler, when it compiles kernels and when it links.
        sizes: macros of ``runtime/include/rpcflow/config.h`` by name, the prefix ``RPCFLOW_`` may be left out.
        compiler: which to run, instead of the board's own.

    Raises:
        BuildError: there is no such board, size, compiler or kernel; or a command failed, and this is what it said.
    """
    board = _board(board)
    found = compiler_of(board, compiler)
    output = Path(output)
    given, macros = [_file(kernel) for kernel in kernels], _macros(sizes or {})
    for kernel in given:
        if kernel.suffix not in SOURCES + LINKED:
            raise BuildError(f"{kernel} is no kernel: known suffixes are {', '.join(SOURCES + LINKED)}")
        if not kernel.is_file():
            raise BuildError(f"there is no file {kernel}")
    with TemporaryDirectory(prefix="rpcflow-build-") as folder:
        objects = compile_runtime(board, found, Path(folder), macros)
        more = [*board.flags, *macros, *options]
        for number, kernel in enumerate(given):
            objects += _objects(found, kernel, Path(folder) / f"kernel{number}", more)
        linked = Path(folder) / "linked"
        libraries = [*options, *board.libraries]
        _run("link", [found, *board.flags, *link_flags(board), *map(str, objects), *libraries, "-o", str(linked)])
        put_in_place(linked, output)


def compiler_of(board: Board, name: str | None = None) -> str:
    """Path of the compiler for a board.

    Raises:
        BuildError: there is none; says what to install.
    """
    for candidate in board.compilers if name is None else (name,):
        if path := shutil.which(candidate):
            return path
    if name is not None:
        raise BuildError(f"there is no compiler {name}")
    raise BuildError(
        f"building for {board.name} needs {board.compilers[0]}, which is not installed "
        f"(on Debian: apt-get install {board.package})"
    )


def compile_runtime(board: Board, compiler: str, folder: Path, macros: Iterable[str] = ()) -> list[Path]:
    """Compile the runtime for a board; the objects, in ``folder``.

    Raises:
        BuildError: the compiler found something wrong.
    """
    objects = []
    for pattern in board.sources:
        for source in sorted(RUNTIME.glob(pattern)):
            objects.append(folder / f"{source.parent.name}-{source.stem}.o")
            language = ["-x", "c"] if source.suffix == ".c" else []  # for those that take all for C++
            _compile(compiler, source, objects[-1], [*_STRICT, *language, *board.flags, *macros])
    return objects


def _file(given: str | os.PathLike[str]) -> Path:
    """A file as a compiler shall see it: as no option."""
    path = Path(given)
    return path.absolute() if str(path).startswith("-") else path


def _board(board: str | Board) -> Board:
    if isinstance(board, Board):
        return board
    try:
        return BOARDS[board]
    except KeyError:
        raise BuildError(f"there is no board {board!r}; there are {', '.join(BOARDS)}") from None


def _macros(sizes: Mapping[str, int]) -> list[str]:
    known = _SIZE.findall((RUNTIME / "include" / "rpcflow" / "config.h").read_text())
    macros = []
    for given, value in sizes.items():
        name = given if given.startswith("RPCFLOW_") else f"RPCFLOW_{given}"
        if name not in known:
            raise BuildError(f"there is no size {given!r}; there are {', '.join(known)}")
        macros.append(f"-D{name}={int(value)}")
    return macros


def _objects(compiler: str, kernel: Path, base: Path, flags: list[str]) -> list[Path]:
    if kernel.suffix in SOURCES:
        made = base.with_suffix(".o")
        _compile(compiler, kernel, made, flags)
        return [made]
    if kernel.suffix == ".tar":
        from rpcflow.server.linking import LinkError, unpacked

        base.mkdir()
        try:
            return [Path(path) for path in unpacked(str(kernel), str(base))]
        except LinkError as error:
            raise BuildError(str(error)) from error
    return [kernel]


def _compile(compiler: str, source: Path, made: Path, flags: Iterable[str]) -> None:
    include = ["-I", str(RUNTIME / "include")]
    _run(f"compile {source.name}", [compiler, *flags, *include, "-c", str(source), "-o", str(made)])


def link_flags(board: Board) -> list[str]:
    if board.script is None:
        return list(board.link)
    return [*board.link, *(f"-Wl,--undefined={name}" for name in KEPT), "-T", str(board.script)]


def tool_output(compiler: str, tool: str, arguments: list[str]) -> str:
    """What a tool that came with the compiler (``size``, ``nm``) prints.

    Raises:
        BuildError: it failed.
    """
    path = _run(f"find {tool}", [compiler, f"-print-prog-name={tool}"]).strip()
    return _run(f"run {tool}", [path, *arguments])


def _run(what: str, command: list[str]) -> str:
    try:
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise BuildError(f"could not {what}: {command[0]}: {error.strerror}", command=command) from error
    if ran.returncode:
        words = (ran.stderr.strip() or ran.stdout.strip()) + (
            f"\n(signal {-ran.returncode})" if ran.returncode < 0 else ""
        )
        raise BuildError(f"could not {what}:\n{shlex.join(command)}\n{words}", command=command, output=words)
    return ran.stdout


def put_in_place(made: Path, output: Path) -> None:
    """``made`` becomes ``output``, which nobody sees half written."""
    beside: str | None = None
    try:
        descriptor, beside = mkstemp(prefix=".rpcflow-", dir=output.parent)  # others may write the same output
        os.close(descriptor)
        shutil.copy(made, beside)
        os.replace(beside, output)
        beside = None
    except OSError as error:
        raise BuildError(f"could not write {output}: {error.strerror}") from error
    finally:
        if beside is not None:
            os.unlink(beside)
