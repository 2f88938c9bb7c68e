# SPDX-License-Identifier: Apache-2.0
"""Shared libraries out of what compilers write: objects and archives of objects."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from typing import IO, Final

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
        objects = [path] if path.endswith(".o") else unpacked(path, folder)
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


def archived(archive: IO[bytes], name: str) -> Iterator[bytes]:
    """The objects of an archive called ``name``, in order. What they are called in it could lead anywhere.

    Raises:
        LinkError: it is no archive, or holds no objects.
    """
    objects = 0
    try:
        with tarfile.open(fileobj=archive) as members:
            for member in members:
                if member.isfile() and member.name.endswith(".o"):
                    source = members.extractfile(member)
                    assert source is not None
                    with source:
                        yield source.read()
                    objects += 1
    except (tarfile.TarError, EOFError) as error:
        raise LinkError(f"{name!r} is not a tar archive: {error}") from error
    if not objects:
        raise LinkError(f"{name!r} holds no objects")


def unpacked(path: str, folder: str) -> list[str]:
    """The objects of an archive, put into ``folder``. Errors as :func:`archived`."""
    objects: list[str] = []
    with open(path, "rb") as archive:
        for data in archived(archive, os.path.basename(path)):
            objects.append(os.path.join(folder, f"{len(objects)}.o"))
            with open(objects[-1], "wb") as target:
                target.write(data)
    return objects
