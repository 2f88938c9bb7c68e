# SPDX-License-Identifier: Apache-2.0
"""A process that a service keeps beside itself (a launcher, a gate): spoken to in JSON over a socket of whole messages,
ended by closing that, and always reaped."""

import array
import json
import os
import signal
import socket
import subprocess
from typing import Any, Final

import anyio

MESSAGE_NBYTES: Final = 1 << 16
_FDS: Final = 1


class SideProcess:
    """The service's end.

    Args:
        process: it leads a group of its own.
        control: our end of the socket, not in blocking mode.
    """

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self._process = process
        self._control = control
        self.alive = True

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def _receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and the descriptors that came with it; None at the end."""
        while True:
            try:
                data, ancillary, _, _ = self._control.recvmsg(
                    MESSAGE_NBYTES, socket.CMSG_SPACE(_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await anyio.wait_readable(self._control)
                continue
            except ConnectionError:
                return None
            fds = array.array("i")
            for _, _, payload in ancillary:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
            if not data:
                return None
            return json.loads(data), list(fds)

    async def _end(self, grace: float) -> None:
        """End it and whatever is in its group; it has so many seconds to do that by itself. Also when cancelled."""
        self.alive = False
        self._control.close()
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(grace):
                await self._wait()
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                await self._wait()

    async def _wait(self) -> None:
        """Wait for its end, and reap it."""
        try:
            fd = os.pidfd_open(self._process.pid)
        except ProcessLookupError:
            pass  # reaped already, here or by somebody else in this program
        else:
            try:
                await anyio.wait_readable(fd)
            finally:
                os.close(fd)
        self._process.wait()
