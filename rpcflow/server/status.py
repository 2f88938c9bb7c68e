# SPDX-License-Identifier: Apache-2.0
"""One page of memory that a worker and its supervisor share: what the worker is doing, readable after its death."""

import mmap
import os
import struct
from typing import Final

_SENDING: Final = 0
_STRUCTURED: Final = 1
_CALLING: Final = 2
_LABEL_SIZE: Final = 3
_PID: Final = struct.Struct("<4xI")
_LABEL: Final = 8
_LABEL_NBYTES: Final = 200
_NBYTES: Final = mmap.PAGESIZE


class StatusPage:
    """The page, by the descriptor of an unnamed file that both ends have."""

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, _NBYTES)
        self._label: str | None = None

    @staticmethod
    def create() -> int:
        """The descriptor of a new page."""
        fd = os.memfd_create("rpcflow-session", os.MFD_CLOEXEC)
        try:
            os.truncate(fd, _NBYTES)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        """Unmap it."""
        self._page.close()

    def begin_call(self, label: str) -> None:
        """A call is in progress."""
        page = self._page
        if label is not self._label:
            self._label = label
            data = label.encode(errors="replace")[:_LABEL_NBYTES]  # a name of user code may be anything
            page[_LABEL_SIZE] = len(data)
            page[_LABEL : _LABEL + len(data)] = data
        page[_CALLING] = 1

    def end_call(self) -> None:
        """It has ended."""
        self._page[_CALLING] = 0

    def set_sending(self, sending: bool) -> None:
        """Whether part of a packet may be on the line without the rest."""
        self._page[_SENDING] = sending

    def set_structured(self) -> None:
        """The client reads structured errors."""
        self._page[_STRUCTURED] = 1

    def set_pid(self, pid: int) -> None:
        """The worker is this process, and leads a group of its own."""
        _PID.pack_into(self._page, 0, pid)

    @property
    def pid(self) -> int:
        """The worker's process and group; 0 before it has begun."""
        return int(_PID.unpack_from(self._page)[0])

    @property
    def sending(self) -> bool:
        """Whether the worker is in the middle of a packet."""
        return self._page[_SENDING] != 0

    @property
    def structured(self) -> bool:
        """Whether the client reads structured errors."""
        return self._page[_STRUCTURED] != 0

    @property
    def call(self) -> str | None:
        """The call in progress."""
        if not self._page[_CALLING]:
            return None
        size = self._page[_LABEL_SIZE]
        return self._page[_LABEL : _LABEL + size].decode(errors="replace")
