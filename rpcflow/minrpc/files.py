# SPDX-License-Identifier: Apache-2.0
"""Files that a compiler reads and writes on our behalf."""

import os
import tempfile
from types import TracebackType
from typing import IO, Any, Final, Self

_BY_NUMBER: Final = "/proc/self/fd"


class Files:
    """Files with names for a compiler; a context manager.

    Where the system can open a descriptor by its number (Linux) they have no other name: so nothing is left of them
    whatever ends this process. Elsewhere they lie in a temporary folder.
    """

    def __init__(self) -> None:
        self._opened: dict[str, IO[bytes]] = {}
        self._folder = None if os.path.isdir(_BY_NUMBER) else tempfile.TemporaryDirectory(prefix="rpcflow-link-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._opened.values():
            file.close()
        if self._folder is not None:
            self._folder.cleanup()

    def write(self, name: str, data: bytes = b"") -> str:
        """Make a file or write it anew; how a program started with :meth:`options` calls it."""
        if self._folder is not None:
            with open(os.path.join(self._folder.name, name), "wb") as file:
                file.write(data)
            return name
        opened = self._opened.get(name)
        if opened is None:
            opened = self._opened[name] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        opened.seek(0)
        opened.truncate()
        view = memoryview(data)
        while view:
            view = view[opened.write(view) :]
        return f"{_BY_NUMBER}/{opened.fileno()}"

    def read(self, name: str) -> bytes:
        """What is in a file now."""
        if self._folder is not None:
            with open(os.path.join(self._folder.name, name), "rb") as file:
                return file.read()
        opened = self._opened[name]
        opened.seek(0)
        return opened.read()

    def options(self) -> dict[str, Any]:
        """For ``subprocess.Popen``: how a program finds the files."""
        if self._folder is not None:
            return {"cwd": self._folder.name}
        return {"pass_fds": [file.fileno() for file in self._opened.values()]}
