# SPDX-License-Identifier: Apache-2.0
"""``unix:///path``: sockets in the file system."""

import errno
import os
import socket
import stat
from typing import TYPE_CHECKING, Final

from rpcflow.errors import ConnectionLostError

from . import connecting
from .credentials import credentials
from .sockets import BlockingSocketChannel, send_first
from .url import Url

if TYPE_CHECKING:
    from .async_sockets import AsyncSocketChannel


class UnixTransport:
    """Connects over a Unix socket."""

    async def connect(self, url: Url, *, poll: bool | None = None) -> "AsyncSocketChannel":
        from .async_sockets import AsyncSocketChannel  # not needed by blocking programs and workers

        first = credentials(url)
        return send_first(AsyncSocketChannel(await connecting.connect([_address(url)], str(url)), poll), first)

    def connect_blocking(
        self, url: Url, *, deadline: float | None = None, poll: bool | None = None
    ) -> BlockingSocketChannel:
        first = credentials(url)
        sock = connecting.connect_blocking([_address(url)], str(url), deadline)
        return send_first(BlockingSocketChannel(sock, poll), first)


transport: Final = UnixTransport()


def _address(url: Url) -> connecting.Address:
    if not hasattr(socket, "AF_UNIX"):
        raise ConnectionLostError("this system has no Unix sockets")
    if not url.path:
        raise ValueError(f"{url} has no path")
    return (socket.AF_UNIX, socket.SOCK_STREAM, 0, url.path)


def listen(path: str, *, backlog: int = 256) -> socket.socket:
    """A listening socket, not blocking. A socket file that nobody listens on any more is replaced.

    Raises:
        OSError: the path is in use, too long, or cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(path):
                raise
            os.unlink(path)
            sock.bind(path)
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_stale(path: str) -> bool:
    if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED
