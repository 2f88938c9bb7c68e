# SPDX-License-Identifier: Apache-2.0
"""Staying with something that may go and come back: a tracker, a proxy. Said once when it goes, not at each try."""

import logging
import math
import time

import anyio

from rpcflow.transports.logs import printable

from .backoff import Backoff


class Retrying:
    """Bookkeeping of who tries again and again.

    Args:
        what: what does not work when a try fails, for the log: "not registered with ...".
        log: where that is said.
    """

    def __init__(self, what: str, log: logging.Logger) -> None:
        self._what = what
        self._log = log
        self._backoff = Backoff()
        self._in_touch = True
        self._began = time.monotonic()
        self.failure = "it has not been tried"

    def begin(self) -> None:
        """A try begins."""
        self._began = time.monotonic()

    def succeeded(self, steady: bool = False) -> None:
        """It works. ``steady``: the next failure is the first again, however soon it comes."""
        self._in_touch = True
        if steady:
            self._backoff.ended_after(math.inf)

    async def failed(self, why: str) -> None:
        """It failed, or has worked until now: wait as long as is right before the next try."""
        self.failure = why
        level = logging.WARNING if self._in_touch else logging.DEBUG
        self._log.log(level, "%s, will try again: %s", self._what, printable(why))
        self._in_touch = False
        self._backoff.ended_after(time.monotonic() - self._began)
        await anyio.sleep(self._backoff.seconds())
