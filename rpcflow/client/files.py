# SPDX-License-Identifier: Apache-2.0
"""The files of a session whose device has none: kept here, in memory, by the rules of a server's folder."""

import posixpath

from rpcflow.errors import PermissionDeniedError, RemoteError


class HostFiles:
    """Names and contents. They stay until they are removed or the session is collected; how much they hold is the
    host's memory's affair alone."""

    def __init__(self) -> None:
        self._entries: dict[str, bytes | None] = {".": None}
        """By path, without ``.`` and ``..``; None for a folder."""

    def write(self, name: str, data: memoryview) -> None:
        """Put a file there; missing folders are made.

        Raises:
            PermissionDeniedError: the path leaves the folder.
            RemoteError: there is a folder of that name, or a file where a folder is needed.
        """
        path = _resolved(name)
        if self._entries.get(path, b"") is None:
            raise _refused("IsADirectoryError", f"{name!r} is a folder")
        folders = []
        parent = posixpath.dirname(path)
        while parent:
            if self._entries.get(parent) is not None:
                raise _refused("NotADirectoryError", f"{parent!r} is a file")
            folders.append(parent)
            parent = posixpath.dirname(parent)
        self._entries |= dict.fromkeys(folders)
        self._entries[path] = bytes(data)

    def read(self, name: str) -> bytes:
        """A file's contents.

        Raises:
            PermissionDeniedError: the path leaves the folder.
            RemoteError: there is no such file.
        """
        data = self._entries.get(_resolved(name))
        if data is None:
            raise _refused("FileNotFoundError", f"there is no file {name!r} in the session's folder")
        return data

    def remove(self, name: str) -> None:
        """Remove a file; where there is none, nothing is done.

        Raises:
            PermissionDeniedError: the path leaves the folder.
            RemoteError: it is a folder.
        """
        if not name:
            return
        path = _resolved(name)
        if path in self._entries:
            self.read(name)
            del self._entries[path]

    def listdir(self, name: str) -> list[str]:
        """The names in a folder, sorted.

        Raises:
            PermissionDeniedError: the path leaves the folder.
            RemoteError: there is no such folder.
        """
        path = _resolved(name or ".")
        if self._entries.get(path, b"") is not None:
            raise _refused("FileNotFoundError", f"there is no folder {name!r} in the session's folder")
        inside = (entry for entry in self._entries if entry != "." and (posixpath.dirname(entry) or ".") == path)
        return sorted(posixpath.basename(entry) for entry in inside)


def _resolved(name: str) -> str:
    if not name or "\0" in name:
        raise PermissionDeniedError(f"{name!r} is not a path", path=name)
    path = posixpath.normpath(name)
    if path.startswith(("/", "../")) or path == "..":
        raise PermissionDeniedError(f"the path {name!r} leaves the session's folder", path=name)
    return path


def _refused(kind: str, message: str) -> RemoteError:
    """What a server would have said."""
    return RemoteError(f"{kind}: {message}", remote_message=message, remote_type=kind, remote_traceback=None)
