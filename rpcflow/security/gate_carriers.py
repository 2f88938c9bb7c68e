# SPDX-License-Identifier: Apache-2.0
"""The forks of a gate: one for each session's line, which has nothing else of the gate's."""

import os
import signal
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from .carrying import Carried, carry

Owner = TypeVar("Owner")
LINGER_SECONDS: Final = 1.0
"""For the other end to read our goodbye."""


class Carriers(Generic[Owner]):
    """All that run.

    Args:
        poll: None has them poll adaptively before they sleep; False never.

    Attributes:
        wakeup: becomes readable when one has ended.
    """

    def __init__(self, poll: bool | None) -> None:
        self._poll = poll
        self._running: dict[int, Owner] = {}
        self._alive, self._alive_write = os.pipe2(os.O_CLOEXEC)
        self.wakeup, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def listen(self) -> None:
        """Hear of ends from now on."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)

    def start(self, line: Carried, owner: Owner, forsake: Callable[[], None]) -> None:
        """Give a line a process of its own. Here it is to be let go without a word then.

        Args:
            owner: given back when it has ended.
            forsake: closes, in the fork, all that is not the line's.

        Raises:
            OSError: there is no room for another process.
        """
        pid = os.fork()
        if pid:
            self._running[pid] = owner
            return
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(self._alive_write)  # its last holder is the gate: however that ends, we notice
            os.close(self.wakeup)
            os.close(self._wakeup_write)
            forsake()
            carry(line, LINGER_SECONDS, self._alive, self._poll)
            status = 0
        finally:
            os._exit(status)

    def reap(self) -> list[Owner]:
        """Whose carriers have ended."""
        try:
            os.read(self.wakeup, 4096)
        except BlockingIOError:
            pass
        ended: list[Owner] = []
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if not pid:
                return ended
            if pid in self._running:
                ended.append(self._running.pop(pid))
