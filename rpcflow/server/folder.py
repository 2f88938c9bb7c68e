# SPDX-License-Identifier: Apache-2.0
"""A session's files: one folder, and no way out of it but to the folders allowed by name."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Final

from rpcflow.errors import PermissionDeniedError
from rpcflow.protocol.limits import BULK_NBYTES
from rpcflow.protocol.values import FilePayload

_CHUNK: Final = 1 << 20
PREFIX: Final = ".rpcflow-"
"""Of what rpcflow itself keeps in a session's folder; no listing shows it."""


def remove_tree(path: str) -> None:
    """Remove a folder and all in it, whatever its modes and however deep it is. What is not ours to remove stays."""
    try:
        shutil.rmtree(path, ignore_errors=True)
    except RecursionError:
        pass  # for the tools below depth is no matter
    if os.path.lexists(path):
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            try:
                subprocess.run([*command, "--", path], stderr=subprocess.DEVNULL, check=False)
            except OSError:
                pass  # there is no such tool


class SessionFolder:
    """The folder of one session.

    Args:
        path: where it is; it must exist.
        allowed: further folders that paths may lie in.
    """

    def __init__(self, path: str, allowed: Sequence[str] = ()) -> None:
        self.path = os.path.realpath(path)
        self._roots = [self.path, *(os.path.realpath(root) for root in allowed)]

    def resolve(self, name: str) -> str:
        """The absolute path of ``name``, symbolic links followed.

        Raises:
            PermissionDeniedError: it lies outside.
        """
        if not name or "\0" in name:
            raise PermissionDeniedError(f"{name!r} is not a path", path=name)
        path = os.path.realpath(os.path.join(self.path, name))
        for root in self._roots:
            if path == root or path.startswith(root.rstrip(os.sep) + os.sep):
                return path
        raise PermissionDeniedError(
            f"the path {name!r} leaves the session's folder; the server's --allow-path opens others", path=name
        )

    def target(self, name: str) -> str:
        """Where an upload called ``name`` goes; missing subfolders are made."""
        path = self.resolve(name)
        if path in self._roots or os.path.isdir(path):
            raise IsADirectoryError(f"{name!r} is a folder")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Put a file there, whole or not at all."""
        sink = FileSink(self.target(name))
        try:
            sink.write(memoryview(data))
            sink.finish()
            if sink.error is not None:
                raise sink.error
        except BaseException:
            sink.abandon()
            raise

    def existing(self, name: str) -> str:
        """The path of a file that is there.

        Raises:
            FileNotFoundError: it is not.
        """
        path = self.resolve(name)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"there is no file {name!r} in the session's folder")
        return path

    def read(self, name: str) -> bytes | FilePayload:
        """A file's contents; a long one to be sent straight from it. Whoever sends it closes ``fd``."""
        fd = os.open(self.existing(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            nbytes = os.fstat(fd).st_size
            if nbytes >= BULK_NBYTES:
                payload, fd = FilePayload(fd, nbytes), -1
                return payload
            with os.fdopen(fd, "rb", closefd=False) as file:
                return file.read()
        finally:
            if fd >= 0:
                os.close(fd)

    def remove(self, name: str) -> None:
        """Remove a file; of a symbolic link, the link. Where there is none, nothing is done: clients of stock tidy up
        under names that may not be there, the empty one among them, and take an error for a failed run.

        Raises:
            PermissionDeniedError: it lies outside.
            FileNotFoundError: it is a folder.
        """
        if not name:
            return
        try:
            parent = self.resolve(os.path.dirname(name) or ".")
        except PermissionDeniedError:
            self.resolve(name)  # says the same of the whole path
            raise
        path = os.path.join(parent, os.path.basename(name))
        if not os.path.basename(name) or not (os.path.islink(path) or os.path.isfile(path)):
            if not os.path.lexists(self.resolve(name)):
                return
            path = self.existing(name)
        os.unlink(path)

    def listdir(self, name: str) -> list[str]:
        """The names in a folder, sorted; an upload under way is not among them."""
        path = self.resolve(name or ".")
        if not os.path.isdir(path):
            raise FileNotFoundError(f"there is no folder {name!r} in the session's folder")
        names = (os.fsencode(entry).decode(errors="backslashreplace") for entry in os.listdir(path))
        return sorted(entry for entry in names if not entry.startswith(PREFIX))


class FileSink:
    """Data that go to disk as they arrive; the file gets its name when it is whole."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd, self._temporary = tempfile.mkstemp(prefix=PREFIX + "upload-", dir=os.path.dirname(path))
        self._scratch = memoryview(bytearray(_CHUNK))
        self.error: OSError | None = None

    def get_buffer(self) -> memoryview:
        return self._scratch

    def filled(self, nbytes: int) -> None:
        if self.error is None:
            try:
                self.write(self._scratch[:nbytes])
            except OSError as error:  # told when the data are in: until then the line belongs to them
                self.error = error

    def write(self, data: memoryview) -> None:
        """Append to the file."""
        while len(data):
            data = data[os.write(self._fd, data) :]

    def finish(self) -> "FileSink":
        if self.error is None:
            try:
                os.fchmod(self._fd, 0o755)  # an uploaded program may be run
                os.replace(self._temporary, self._path)
            except OSError as error:
                self.error = error
        if self.error is None:
            os.close(self._fd)
            self._fd = -1
        else:
            self.abandon()
        return self

    def abandon(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            try:
                os.unlink(self._temporary)
            except OSError:
                pass  # user code has been there before us
