# SPDX-License-Identifier: Apache-2.0
"""Between the line and devices whose memory the host cannot write to: a piece of host memory at a time."""

from collections.abc import Callable
from typing import Final

import numpy as np

PIECE_NBYTES: Final = 4 << 20
"""Fits into the caches, and is long enough for a transfer to run at full speed."""


class StagingSink:
    """Passes data on to a device in pieces. What goes wrong is kept for :meth:`check`.

    Args:
        nbytes: to come.
        write: puts a piece where it belongs, so many bytes from the start, before it returns.
    """

    def __init__(self, nbytes: int, write: Callable[[int, memoryview], None]) -> None:
        self._nbytes = nbytes
        self._write = write
        self._room = np.empty(min(nbytes, PIECE_NBYTES), np.uint8).data
        self._pos = 0
        self._written = 0
        self._error: Exception | None = None

    def get_buffer(self) -> memoryview:
        start = self._pos - self._written
        return self._room[start : start + self._nbytes - self._pos]

    def filled(self, nbytes: int) -> None:
        self._pos += nbytes
        if self._pos - self._written == len(self._room) or self._pos == self._nbytes:
            if self._error is None:
                try:
                    self._write(self._written, self._room[: self._pos - self._written])
                except Exception as error:  # the line is in the middle of the data: it is told afterwards
                    self._error = error
            self._written = self._pos

    def finish(self) -> None:
        return None

    def abandon(self) -> None:
        self._room = memoryview(b"")

    def check(self) -> None:
        """Raise what went wrong."""
        if self._error is not None:
            raise self._error
