# SPDX-License-Identifier: Apache-2.0
"""What a process of ours says beside the protocol."""

import os
import sys
from collections import deque
from typing import Final

_LAST_LINES: Final = 80
_LINE_CHARACTERS: Final = 400
_LAST_READS: Final = 16
"""Reads that empty a pipe, were it as large as the system allows: somebody may go on writing to it."""


class LastWords:
    """What a process writes to its standard output and error: passed on to our standard error, and the last of it
    kept.

    Args:
        fd: the reading end of its pipe, which must not block.

    Attributes:
        ended: whether nobody has the writing end any more.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ended = False
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._open = b""

    def look(self) -> bool:
        """Take some of what is there; whether there was any."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return False
        except OSError:  # closed by another thread
            data = b""
        if not data:
            self.ended = True
            return False
        *lines, self._open = (self._open + data).split(b"\n")
        self._open = self._open[-_LINE_CHARACTERS:]
        self._lines.extend(line.decode(errors="replace")[:_LINE_CHARACTERS] for line in lines)
        try:
            sys.stderr.write(data.decode(errors="replace"))
            sys.stderr.flush()
        except (AttributeError, OSError, ValueError):
            pass  # this program has no standard error, or nobody reads it
        return True

    def finish(self) -> str:
        """The last lines, what is still in the pipe among them."""
        for _ in range(_LAST_READS):
            if not self.look():
                break
        lines = [*self._lines, *([self._open.decode(errors="replace")] if self._open else [])]
        return "\n".join(lines)

    def close(self) -> None:
        """Close the pipe."""
        self.ended = True
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
