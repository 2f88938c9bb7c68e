# SPDX-License-Identifier: Apache-2.0
"""Making a connected socket, in a thread or in a task."""

import errno
import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Any, Final

from rpcflow.errors import ConnectionLostError

from .sockets import wait_for

Address = tuple[int, int, int, Any]
"""Family, type, protocol and address of a socket."""
_UNDER_WAY = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN)
_PAUSE: Final = 0.01
"""Seconds between attempts where the queue of a Unix listener is full: nothing tells when there is room."""


def resolve_blocking(host: str, port: int) -> list[Address]:
    """Addresses of a host.

    Raises:
        ConnectionLostError: there is no such host.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectionLostError(f"the name {host!r} cannot be resolved: {error}") from error
    return [(family, kind, proto, address) for family, kind, proto, _, address in found]


async def resolve(host: str, port: int) -> list[Address]:
    """As :func:`resolve_blocking`, in a task."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [(family, kind, proto, address) for family, kind, proto, _, address in found]
    except (OSError, UnicodeError):
        pass  # a name: ask for it off the event loop
    import anyio  # not needed by blocking programs and workers

    try:
        names = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectionLostError(f"the name {host!r} cannot be resolved: {error}") from error
    return [(family, kind, proto, address) for family, kind, proto, _, address in names]


def connect_blocking(addresses: Sequence[Address], what: str, deadline: float | None) -> socket.socket:
    """A connected blocking socket to the first address that answers.

    Raises:
        TimeoutError: the deadline passed.
        ConnectionLostError: none answers.
    """
    last: OSError | None = None
    for family, kind, proto, address in addresses:
        sock = socket.socket(family, kind, proto)
        try:
            sock.setblocking(False)
            code = sock.connect_ex(address)
            while code == errno.EAGAIN and _is_unix(family):
                time.sleep(_pause(deadline))
                code = sock.connect_ex(address)
            if code in _UNDER_WAY:
                wait_for(sock, getattr(select, "POLLOUT", 4), deadline if deadline is not None else float("inf"))
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            sock.setblocking(True)
        except TimeoutError as error:
            sock.close()
            if error.errno is None:
                raise
            last = error
        except OSError as error:
            sock.close()
            last = error
        else:
            return sock
    raise _refused(what, last) from last


async def connect(addresses: Sequence[Address], what: str) -> socket.socket:
    """As :func:`connect_blocking`, in a task; the socket is not blocking. Nothing is left when cancelled."""
    import anyio  # not needed by blocking programs and workers

    last: OSError | None = None
    for family, kind, proto, address in addresses:
        sock = socket.socket(family, kind, proto)
        try:
            sock.setblocking(False)
            code = sock.connect_ex(address)
            while code == errno.EAGAIN and _is_unix(family):
                await anyio.sleep(_PAUSE)
                code = sock.connect_ex(address)
            if code in _UNDER_WAY:
                await anyio.wait_writable(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise _refused(what, last) from last


def _is_unix(family: int) -> bool:
    # There EAGAIN does not mean that anything is under way, but that the listener's queue is full.
    return family == getattr(socket, "AF_UNIX", None)


def _pause(deadline: float | None) -> float:
    if deadline is not None and time.monotonic() >= deadline:
        raise TimeoutError
    return _PAUSE


def _refused(what: str, error: OSError | None) -> ConnectionLostError:
    if error is None:
        return ConnectionLostError(f"cannot connect to {what}: it has no address")
    return ConnectionLostError(f"cannot connect to {what}: {error.strerror or error}")
