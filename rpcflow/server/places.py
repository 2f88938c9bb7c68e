# SPDX-License-Identifier: Apache-2.0
"""Where a server is to be found: its own address, a proxy, a tracker; checked before anything is done."""

import os
from typing import Any

from rpcflow.transports import Url, check_transport, check_url
from rpcflow.transports import tcp as tcp_transport
from rpcflow.transports.url import tracker_url


def listening_path(host: str, port: int, port_end: int, insecure: bool) -> str | None:
    """The path of the socket to listen on; None where it is a host and a port.

    Raises:
        ValueError: nobody could or should listen there.
    """
    if host.startswith("unix:"):
        path = host.removeprefix("unix:").removeprefix("//")
        if not path:
            raise ValueError(f"{host!r} names no path to listen on")
        return os.path.abspath(path)  # of the folder that is current now
    tcp_transport.check_ports(port, port_end)
    if not insecure and not tcp_transport.is_loopback(host):
        raise ValueError(
            f"{host!r} can be reached from other machines and the line is not encrypted: "
            "listen on 127.0.0.1 or unix:/path, or say insecure=True (--insecure)"
        )
    return None


def proxy_url(host: str, port: int, insecure: bool) -> Url:
    """Where the proxy is.

    Raises:
        ValueError: that is no address, or one that is not to be trusted with an open line.
    """
    url = Url.parse(host, port)
    check_transport(url.scheme)
    check_url(url)
    if not insecure and url.scheme in ("tcp", "ws") and not tcp_transport.is_loopback(url.host):
        raise ValueError(
            f"the line to the proxy {url} is not encrypted, and whoever reaches that can run code here: "
            "say insecure=True (--insecure) if that is as it should be"
        )
    return url


def registering_url(tracker_addr: Any, custom_addr: str | None, unix: str | None) -> Url | None:
    """Where the tracker is, if there is one.

    Raises:
        ValueError: that is no address, or there is nothing that a tracker could tell clients.
    """
    if custom_addr is not None and (not isinstance(custom_addr, str) or custom_addr.split() != [custom_addr]):
        raise ValueError(f"custom_addr={custom_addr!r} is not the name or address of a host")
    if tracker_addr is None:
        return None
    url = tracker_url(tracker_addr)
    check_transport(url.scheme)
    check_url(url)
    if unix is not None:
        raise ValueError("a tracker sends clients to a host and a port, so a server at a Unix socket cannot register")
    return url
