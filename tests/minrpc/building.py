# SPDX-License-Identifier: Apache-2.0
"""The C runtime as programs for this machine, built by its compiler into a folder of the test."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

RUNTIME: Final = Path(__file__).parents[2] / "rpcflow" / "minrpc" / "runtime"
HERE: Final = Path(__file__).parent
STRICT_C: Final = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pedantic"]
STRICT_CPP: Final = ["-x", "c++", "-std=c++17", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
SANITIZED: Final = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
AS_A_PROCESS: Final = ["-include", str(RUNTIME / "hal" / "posix_config.h")]
"""Sizes for a process; without them those of a small board."""

INCLUDE: Final = [f"-I{RUNTIME / name}" for name in ("include", "src", "hal")]

CORE: Final = tuple(
    RUNTIME / "src" / f"{name}.c"
    for name in (
        "text",
        "error",
        "memory",
        "values",
        "answer",
        "functions",
        "evaluator",
        "modules",
        "ffi",
        "half",
        "serve",
    )
)
"""The runtime without the link layer."""


def need(program: str, package: str) -> str:
    """The path of a program that the test cannot do without."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"SKIPPED, {program} is missing: NOT TESTED (Debian: apt-get install {package})")
    return found


def run(command: Sequence[str | Path]) -> str:
    """Run a compiler; its words are the failure's."""
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, f"{' '.join(map(str, command))}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def build(
    output: Path, main: str, kernels: Sequence[Path] = (), flags: Sequence[str] = (), compiler: str = "gcc"
) -> Path:
    """A server: ``main`` is a file of ``hal``, ``kernels`` are C sources and objects. ``flags`` come last."""
    gcc = need(compiler, compiler)
    sources = [*CORE, RUNTIME / "hal" / "posix.c", RUNTIME / "hal" / main, *kernels]
    run([gcc, *STRICT_C, *INCLUDE, *SANITIZED, *flags, *sources, "-lm", "-o", output])
    return output
