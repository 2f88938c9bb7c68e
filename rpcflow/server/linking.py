# SPDX-License-Identifier: Apache-2.0
"""Shared libraries out of what compilers write: objects and archives of objects."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from typing import Final

from rpcflow.errors import RPCError

_COMPILERS: Final = ("c++", "g++", "clang++", "cc", "gcc", "clang")
LOADABLE: Final = (".so", ".dylib", ".dll")
LINKABLE: Final = (".o", ".tar")


class LinkError(RPCError):
    """A library cannot be made. ``command``: what was run, or None."""

    command: list[str] | None = None


def linked(path: str) -> str:
    """The shared library for ``path``: itself, or linked from it and put beside it.

    Raises:
        LinkError: there is no compiler, the linker failed, or the file is none of the known kinds.
    """
    if path.endswith(LOADABLE):
        return path
    if not path.endswith(LINKABLE):
        known = ", ".join((*LOADABLE, *LINKABLE))
        raise LinkError(f"{os.path.basename(path)!r} cannot be loaded as a module; known suffixes: {known}")
    with tempfile.TemporaryDirectory(prefix="rpcflow-link-") as folder:
        objects = [path] if path.endswith(".o") else _unpack(path, folder)
        output = f"{path}.so"
        command = [_compiler(), "-shared", "-fPIC", "-o", output, *objects]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if run.returncode:
        raise LinkError(
            f"linking {os.path.basename(path)!r} failed: {' '.join(command)}\n{run.stderr.strip()}",
            command=command,
        )
    return output


def _compiler() -> str:
    for name in (os.environ.get("CXX"), *_COMPILERS):
        if name and (path := shutil.which(name)):
            return path
    raise LinkError(
        "objects can only be loaded where there is a compiler to link them with: install one on the device "
        "(on Debian: apt-get install g++), or upload a shared library (.so)",
    )


def _unpack(path: str, folder: str) -> list[str]:
    objects: list[str] = []
    try:
        with tarfile.open(path) as archive:
            for i, member in enumerate(archive):
                if member.isfile() and member.name.endswith(".o"):
                    source = archive.extractfile(member)
                    assert source is not None
                    objects.append(os.path.join(folder, f"{i}.o"))  # its own name could lead anywhere
                    with source, open(objects[-1], "wb") as target:
                        shutil.copyfileobj(source, target)
    except tarfile.TarError as error:
        raise LinkError(f"{os.path.basename(path)!r} is not a tar archive: {error}") from error
    if not objects:
        raise LinkError(f"{os.path.basename(path)!r} holds no objects")
    return objects
