# SPDX-License-Identifier: Apache-2.0
"""Log lines that others have a hand in: what came off the wire made fit for them, and not too many of them."""

import logging
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

LINES: Final = 10
SECONDS: Final = 10.0
_TEXT_CHARACTERS: Final = 200
_TRACE_CHARACTERS: Final = 500
_TRACE_LINES: Final = 60
_CUT: Final = "..."


def printable(text: str, most: int = _TEXT_CHARACTERS) -> str:
    """A text that anyone may have made, fit for one log line and for the terminal that shows it.

    What does not print is escaped as in a Python literal: control characters with line ends and escape sequences,
    characters that turn the writing direction or cannot be seen, halves of surrogate pairs. A text that then is longer
    than ``most`` characters is cut, and ends with three dots; no escape is cut in the middle.
    """
    head = text[: most + 1]
    if not head.isprintable():
        head = "".join(char if char.isprintable() else _escaped(char) for char in head)
    if len(head) <= most:
        return head
    room = max(0, most - len(_CUT))
    shown, length = [], 0
    for char in text[:room]:
        piece = char if char.isprintable() else _escaped(char)
        length += len(piece)
        if length > room:
            break
        shown.append(piece)
    return ("".join(shown) + _CUT)[:most]


def _escaped(char: str) -> str:
    return repr(char)[1:-1]


class _Window:
    """What was said for one cause since ``began``."""

    __slots__ = ("began", "held", "level", "said")

    def __init__(self, began: float) -> None:
        self.began = began
        self.said = 0
        self.held = 0
        self.level = logging.DEBUG


class LimitedLog:
    """A logger for what strangers bring about: for each cause only so many lines in a while, then how many more there
    were. Whatever is put into a line goes through :func:`printable`, numbers excepted, so that a format has ``%s``
    where the bare logger's would have ``%r``.

    A cause is a few words of ours, one of a small number; they are also what the line on the rest says.

    It is for one thread.

    Args:
        log: where lines go.
        lines: how many for each cause ...
        seconds: ... in so long.
        clock: seconds since whenever.
    """

    def __init__(
        self,
        log: logging.Logger,
        lines: int = LINES,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._lines = lines
        self._seconds = seconds
        self._clock = clock
        self._windows: dict[str, _Window] = {}

    def info(self, cause: str, fmt: str, *args: object) -> None:
        """A line, if there is room for it."""
        self._say(logging.INFO, cause, fmt, args)

    def warning(self, cause: str, fmt: str, *args: object) -> None:
        """As :meth:`info`."""
        self._say(logging.WARNING, cause, fmt, args)

    def error(self, cause: str, fmt: str, *args: object) -> None:
        """As :meth:`info`."""
        self._say(logging.ERROR, cause, fmt, args)

    def exception(self, cause: str, fmt: str, *args: object) -> None:
        """As :meth:`error`, with the trace of the error that is being handled. Its lines are indented, since an
        error's text may hold what a peer has sent, and that must not look like a line of ours."""
        if self._lets(logging.ERROR, cause):
            trace = "".join(traceback.format_exception(*sys.exc_info())).splitlines()
            trace = [f"    {printable(line, _TRACE_CHARACTERS)}" for line in trace[-_TRACE_LINES:]]
            text = "".join("\n" + line for line in trace)
            self._log.error(fmt + "%s", *map(_fit, args), text, stacklevel=2)

    def flush(self) -> None:
        """Say what was held back and not said yet: at the end, say."""
        for cause, window in self._windows.items():
            self._say_rest(cause, window)

    def _say(self, level: int, cause: str, fmt: str, args: tuple[object, ...]) -> None:
        if self._lets(level, cause):
            self._log.log(level, fmt, *map(_fit, args), stacklevel=3)

    def _lets(self, level: int, cause: str) -> bool:
        if not self._log.isEnabledFor(level):
            return False
        now = self._clock()
        window = self._windows.get(cause)
        if window is None:
            window = self._windows[cause] = _Window(now)
        elif now - window.began >= self._seconds:
            self._say_rest(cause, window)
            window.began, window.said = now, 0
        if window.said >= self._lines:
            window.held += 1
            window.level = max(window.level, level)
            return False
        window.said += 1
        return True

    def _say_rest(self, cause: str, window: _Window) -> None:
        if window.held:
            self._log.log(window.level, "... and %d more like that: %s", window.held, cause)
            window.held, window.level = 0, logging.DEBUG


def _fit(value: object) -> Any:
    return value if isinstance(value, int | float) else printable(str(value))
