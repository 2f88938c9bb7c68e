# SPDX-License-Identifier: Apache-2.0
"""``tcp://host:port``: IPv4, IPv6 and names."""

import errno
import ipaddress
import socket
import sys
from typing import TYPE_CHECKING, Final

from . import connecting
from .credentials import credentials
from .sockets import BlockingSocketChannel, send_first, tune
from .url import Url

if TYPE_CHECKING:
    from .async_sockets import AsyncSocketChannel


class TcpTransport:
    """Connects over TCP."""

    async def connect(self, url: Url, *, poll: bool | None = None) -> "AsyncSocketChannel":
        from .async_sockets import AsyncSocketChannel  # not needed by blocking programs and workers

        first = credentials(url)
        sock = await connecting.connect(await connecting.resolve(_host(url), url.port), str(url))
        tune(sock)
        return send_first(AsyncSocketChannel(sock, poll), first)

    def connect_blocking(
        self, url: Url, *, deadline: float | None = None, poll: bool | None = None
    ) -> BlockingSocketChannel:
        first = credentials(url)
        addresses = connecting.resolve_blocking(_host(url), url.port)
        sock = connecting.connect_blocking(addresses, str(url), deadline)
        tune(sock)
        return send_first(BlockingSocketChannel(sock, poll), first)


transport: Final = TcpTransport()


def _host(url: Url) -> str:
    if not url.host:
        raise ValueError(f"{url} has no host")
    return url.host


def listen(host: str, port: int, port_end: int, *, reuse_addr: bool = True, backlog: int = 256) -> list[socket.socket]:
    """Listening sockets, not blocking, for every address of ``host``, on the first port of ``[port, port_end)`` that
    is free on all of them. Port 0 lets the system choose.

    Raises:
        OSError: no port is free (EADDRINUSE), or the host is not ours.
    """
    if not port:
        port_end = 1
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, address[0]) for family, _, _, _, address in found))
    for candidate in range(port, port_end):
        sockets: list[socket.socket] = []
        try:
            for family, address in addresses:
                sock = socket.socket(family, socket.SOCK_STREAM)
                sockets.append(sock)
                if reuse_addr and sys.platform != "win32":  # there it lets two servers share a port
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address, candidate or (sockets[0].getsockname()[1] if len(sockets) > 1 else 0)))
                sock.listen(backlog)
                sock.setblocking(False)
        except OSError as error:
            for sock in sockets:
                sock.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
        else:
            return sockets
    raise OSError(errno.EADDRINUSE, f"no port of {host} from {port} to {port_end - 1} is free")


def check_ports(port: int, port_end: int) -> None:
    """Whether ``[port, port_end)`` can be searched for a port to listen on.

    Raises:
        ValueError: it cannot.
    """
    for name, value, most in (("port", port, 65535), ("port_end", port_end, 65536)):
        if not isinstance(value, int) or not 0 <= value <= most:
            raise ValueError(f"{name}={value!r} must be a whole number from 0 to {most}")
    if port and not port < port_end:
        raise ValueError(f"there is no port from port={port} to below port_end={port_end}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
