# SPDX-License-Identifier: Apache-2.0
"""A session's files: one folder, and no way out of it but to the folders allowed by name."""

import errno
import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Sequence
from typing import Final

from rpcflow.errors import PermissionDeniedError, RPCError
from rpcflow.protocol.limits import BULK_NBYTES
from rpcflow.protocol.sinks import DiscardSink
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
        most: bytes that all files in it together may have; None for no limit. It binds what is uploaded.
    """

    def __init__(self, path: str, allowed: Sequence[str] = (), most: int | None = None) -> None:
        self.path = os.path.realpath(path)
        self._most = most
        self._elsewhere = 0  # bytes uploaded to allowed folders
        self._roots = [self.path, *(os.path.realpath(root) for root in allowed)]

    def resolve(self, name: str) -> str:
        """The absolute path of ``name``, symbolic links followed.

        Raises:
            PermissionDeniedError: it lies outside.
        """
        if not name or "\0" in name:
            raise PermissionDeniedError(f"{name!r} is not a path", path=name)
        try:
            path = os.path.realpath(os.path.join(self.path, name))
        except UnicodeEncodeError:  # half a character
            raise PermissionDeniedError(f"{name!r} is not a path") from None
        if not self._is_inside(path):
            raise _outside(name)
        return path

    def target(self, name: str) -> str:
        """Where an upload called ``name`` goes; its folder may be missing yet."""
        path = self.resolve(name)
        if path in self._roots or os.path.isdir(path):
            raise IsADirectoryError(f"{name!r} is a folder")
        return path

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Put a file there, whole or not at all."""
        sink = self.sink(name, len(data) if data else 0)  # there are none where they were thrown away as they came
        try:
            sink.write(memoryview(data))
            sink.finish()
            if sink.error is not None:
                raise sink.error
        except BaseException:
            sink.abandon()
            raise

    def sink(self, name: str, nbytes: int | None = None) -> "FileSink":
        """What an upload called ``name`` is written to; ``nbytes`` where it is known how many come.

        Raises:
            OSError: there is no room for so many, or the file cannot be made.
            PermissionDeniedError: it lies outside.
        """
        path = self.target(name)
        room = self._room(path)
        if room is not None and nbytes is not None and nbytes > room:
            raise _no_room(room)
        sink = FileSink(self._open_folder(os.path.dirname(path), name, make=True), os.path.basename(path), room)
        if nbytes is not None and not self._is_own(path):
            self._elsewhere += nbytes
        return sink

    def _room(self, path: str) -> int | None:
        """Bytes that a file may have; None for no limit. It takes the place of the one that is there."""
        if self._most is None:
            return None
        old = 0
        if self._is_own(path):
            try:
                status = os.lstat(path)
            except OSError:
                pass  # there is none
            else:
                old = _size(status) if status.st_nlink == 1 else 0
        return max(0, self._most - self._elsewhere - _nbytes(self.path) + old)

    def _is_own(self, path: str) -> bool:
        return path.startswith(self.path + os.sep)

    def _open_folder(self, path: str, name: str, make: bool = False) -> int:
        """A folder, whose path has no links in it, by its handle: from its root step by step, since somebody may have
        put a link there after the path was looked at.

        Args:
            path: as :meth:`resolve` gave it.
            name: what the client called it.
            make: make what is missing.

        Raises:
            PermissionDeniedError: a link has been put there.
        """
        root = max((root for root in self._roots if _is_in(path, root)), key=len)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(root, flags)
        try:
            for step in path[len(root) :].split(os.sep):
                if not step:
                    continue
                if make:
                    try:
                        os.mkdir(step, dir_fd=fd)
                    except FileExistsError:
                        pass
                try:
                    below = os.open(step, flags, dir_fd=fd)
                except OSError as error:
                    raise _moved(error, fd, step, name) from error
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _is_inside(self, path: str) -> bool:
        return any(_is_in(path, root) for root in self._roots)

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
        path = self.existing(name)
        folder = self._open_folder(os.path.dirname(path), name)
        step = os.path.basename(path)
        try:
            fd = os.open(step, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder)
        except OSError as error:
            raise _moved(error, folder, step, name) from error
        finally:
            os.close(folder)
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
        folder = self._open_folder(os.path.dirname(path), name)
        try:
            os.unlink(os.path.basename(path), dir_fd=folder)
        finally:
            os.close(folder)

    def listdir(self, name: str) -> list[str]:
        """The names in a folder, sorted; an upload under way is not among them."""
        path = self.resolve(name or ".")
        if not os.path.isdir(path):
            raise FileNotFoundError(f"there is no folder {name!r} in the session's folder")
        folder = self._open_folder(path, name)
        try:
            names = [os.fsencode(entry).decode(errors="backslashreplace") for entry in os.listdir(folder)]
        finally:
            os.close(folder)
        return sorted(entry for entry in names if not entry.startswith(PREFIX))


class FileSink:
    """Data that go to disk as they arrive; the file gets its name when it is whole.

    Args:
        folder: a handle of where it comes into being, whatever happens to paths meanwhile; the sink's from now on.
        name: in that folder.
        room: bytes that may be written; None for no limit.
    """

    def __init__(self, folder: int, name: str, room: int | None = None) -> None:
        self._folder = folder
        self._name = name
        self._room = room
        self._left = room
        self._scratch = memoryview(bytearray(_CHUNK))
        self.error: OSError | None = None
        self._temporary = f"{PREFIX}upload-{secrets.token_hex(8)}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self._temporary, flags, 0o600, dir_fd=folder)
        except BaseException:
            os.close(folder)
            raise

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
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                assert self._room is not None
                raise _no_room(self._room)
        while len(data):
            data = data[os.write(self._fd, data) :]

    def finish(self) -> "FileSink":
        if self.error is None:
            try:
                os.fchmod(self._fd, 0o755)  # an uploaded program may be run
                os.replace(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            except OSError as error:
                self.error = error
        if self.error is None:
            self._close()
        else:
            self.abandon()
        return self

    def abandon(self) -> None:
        if self._fd >= 0:
            try:
                os.unlink(self._temporary, dir_fd=self._folder)
            except OSError:
                pass  # user code has been there before us
            self._close()

    def _close(self) -> None:
        for fd in (self._fd, self._folder):
            os.close(fd)
        self._fd = -1


class RefusedSink(DiscardSink):
    """Data that nobody wants: they are thrown away as they come, and stand for why.

    Args:
        error: what their call is to raise.
    """

    def __init__(self, error: OSError | RPCError) -> None:
        super().__init__()
        self.error = error

    def finish(self) -> "RefusedSink":  # type: ignore[override]
        return self


def _nbytes(folder: str) -> int:
    """Bytes of all files below a folder; links are not followed, and of several names of one file one counts."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            try:
                status = os.lstat(os.path.join(parent, name))
            except OSError:
                continue  # it has just been removed
            if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += _size(status)
    return total


def _size(status: os.stat_result) -> int:
    """What a file counts: what it has, or what it takes from the disk, whichever is more."""
    return max(status.st_size, status.st_blocks * 512)


def _is_in(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _moved(error: OSError, folder: int, step: str, name: str) -> OSError | PermissionDeniedError:
    """What has gone wrong at a step of a path that had no links in it before."""
    try:
        link = stat.S_ISLNK(os.stat(step, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        link = False
    return _outside(name) if link or error.errno == errno.ELOOP else error


def _no_room(room: int) -> OSError:
    return OSError(errno.EDQUOT, f"the server's policy leaves room for {room} bytes in the session's folder")


def _outside(name: str) -> PermissionDeniedError:
    return PermissionDeniedError(
        f"the path {name!r} leaves the session's folder; the server's --allow-path opens others", path=name
    )
