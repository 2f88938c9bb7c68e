# SPDX-License-Identifier: Apache-2.0
"""Notices peers that go, without touching what they have sent.

A socket with unread bytes is readable all the time, so reading readiness cannot tell; epoll's hang-up events can.
"""

import select
import socket
from collections.abc import Callable
from typing import Final

import anyio

_GONE: Final = getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLHUP", 0) | getattr(select, "EPOLLERR", 0)


class GoneWatcher:
    """Calls back once when a watched socket's other end has closed or is lost. Run :meth:`run` in a task."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> None:
        """From now on, until :meth:`unwatch`. Watching again replaces the callback, and calls it if the peer is
        gone already."""
        fd = sock.fileno()
        self.unwatch(sock)
        self._epoll.register(fd, _GONE | select.EPOLLONESHOT)
        self._callbacks[fd] = callback

    def unwatch(self, sock: socket.socket) -> None:
        """No longer; must come before the socket is closed."""
        if self._callbacks.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await anyio.wait_readable(self._epoll.fileno())
            for fd, _ in self._epoll.poll(0):
                callback = self._callbacks.get(fd)
                if callback is not None:
                    callback()

    def close(self) -> None:
        """Let go of the system's resources."""
        self._epoll.close()
