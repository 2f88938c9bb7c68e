# SPDX-License-Identifier: Apache-2.0
"""Transports by the scheme of a URL, found through the entry points ``rpcflow.transports``."""

from importlib import import_module
from importlib.metadata import entry_points
from typing import Final, cast

from .base import Transport
from .url import Url

_GROUP: Final = "rpcflow.transports"
_OPEN: Final = frozenset({"tcp", "ws"})
_TRUST: Final = frozenset({"ca", "identity", "pin"})
_OWN: Final = {
    "popen": "rpcflow.transports.popen",
    "serial": "rpcflow.transports.serial",
    "tcp": "rpcflow.transports.tcp",
    "tls": "rpcflow.transports.tls",
    "unix": "rpcflow.transports.unix",
    "ws": "rpcflow.transports.ws",
    "wss": "rpcflow.transports.wss",
}
"""Our own are found without looking through the metadata of all installed packages, which takes milliseconds."""


def find_transport(scheme: str) -> Transport:
    """The transport for a scheme.

    Raises:
        ValueError: there is none; the message lists the known ones.
    """
    if scheme in _OWN:
        return cast(Transport, import_module(_OWN[scheme]).transport)
    found = {point.name: point for point in entry_points(group=_GROUP)}
    if scheme in found:
        return cast(Transport, found[scheme].load())
    known = ", ".join(sorted({*_OWN, *found}))
    raise ValueError(f"{scheme!r} is not a known scheme; known are: {known}")


def find_meeting_transport(scheme: str) -> Transport:
    """The transport for a scheme by which services (servers, trackers, proxies) are reached.

    Raises:
        ValueError: there is none, or it leads to a device or program of one's own, where no service can be.
    """
    transport = find_transport(scheme)
    if not getattr(transport, "greets", True):
        raise ValueError(f"{scheme}: leads to a device or program of one's own; there is no tracker or proxy behind it")
    return transport


def check_transport(scheme: str) -> None:
    """Whether there is a transport for a scheme, with all it needs: for services, which use it in a task later.

    Raises:
        ValueError: there is none, or none to trackers and proxies.
        ImportError: the packages of an extra are missing.
    """
    check = getattr(find_meeting_transport(scheme), "check", None)
    if check is not None:
        check()


def check_url(url: Url) -> Url:
    """The same address, if its transport can make sense of it.

    Raises:
        ValueError: it cannot; or it says whom to trust on a line that is not encrypted, which nothing would come of.
    """
    transport = find_transport(url.scheme)
    check = getattr(transport, "check_url", None)
    if check is not None:
        check(url)
    elif url.scheme in _OPEN and (names := sorted(_TRUST & {name for name, _ in url.query})):
        raise ValueError(f"{url}: {', '.join(names)}: that is for lines with TLS (tls://, wss://), which this is not")
    return url
