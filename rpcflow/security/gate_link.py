# SPDX-License-Identifier: Apache-2.0
"""The gate's end of its control socket. What is said there is described in :mod:`rpcflow.security.gate`."""

import array
import json
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

_MESSAGE_NBYTES: Final = 1 << 16


class ServiceLink:
    """A socket of whole messages, each a JSON object.

    Args:
        control: it is this link's from now on.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def fileno(self) -> int:
        """For who waits until there is something to hear."""
        return self._control.fileno()

    def tell(self, message: dict[str, Any], fds: Sequence[int] = ()) -> bool:
        """Tell the service; False if it takes no more just now, or is gone, as the next :meth:`hear` tells."""
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], list(fds), socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def hear(self) -> tuple[dict[str, Any], socket.socket | None]:
        """The next message, and the socket that came with it; None too where there were no descriptors left for it.

        Raises:
            BlockingIOError: there is none now.
            EOFError: the service is gone.
        """
        try:
            data, ancillary, _, _ = self._control.recvmsg(
                _MESSAGE_NBYTES, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            raise EOFError from None  # it has not heard all that we had to say
        if not data:
            raise EOFError
        fds = array.array("i")
        for _, _, payload in ancillary:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        return json.loads(data), socket.socket(fileno=fds[0]) if fds else None

    def forsake(self) -> None:
        """Close our copy of it, in a fork."""
        os.close(self._control.detach())


class LinkHandler(logging.Handler):
    """Has the service log."""

    def __init__(self, link: ServiceLink) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        self._link.tell({"log": [record.levelname, record.getMessage()]})
