# SPDX-License-Identifier: Apache-2.0
"""Addresses: ``scheme://host:port`` and ``scheme:///path``, or a host and a port. Paths of sockets, programs and
serial ports may be relative: ``unix:path``, ``popen:path``."""

import os
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode, urlsplit

import attrs

DEFAULT_PORT: Final = 9091
TRACKER_PORT: Final = 9190
_NEED_HOST: Final = frozenset({"tcp", "tls", "ws", "wss"})


@attrs.frozen
class Url:
    """Where to connect to.

    Args:
        scheme: name of the transport.
        host: name or address, without brackets; empty where the scheme has none.
        port: 0 where the scheme has none.
        path: of a socket, program or device; empty where the scheme has none.
        query: what stands behind the question mark.
        token: the bearer token to show there; never part of what an address looks like.
        proxy_key: the key to ask a proxy for that stands at this address in a server's place.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    query: tuple[tuple[str, str], ...] = ()
    token: str | None = attrs.field(default=None, repr=False)
    proxy_key: str | None = attrs.field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str, port: int | None = None, default_port: int = DEFAULT_PORT) -> "Url":
        """Read ``url``, a whole URL or only a host name or address with ``port`` beside it.

        Raises:
            ValueError: it is neither, or the port is not one.
        """
        if not isinstance(url, str) or not url:
            raise ValueError(f"{url!r} is neither a host nor a URL such as tcp://host:9091")
        if url.startswith("unix:"):
            return cls("unix", path=_unix_path(url))
        if "://" not in url and not url.startswith(("popen:", "serial:")):
            host = url.removeprefix("[").removesuffix("]")
            if not host:
                raise ValueError(f"{url!r} is not a host")
            return cls("tcp", host=host, port=_port(url, port, default_port))
        parts = urlsplit(url, allow_fragments=False)  # a file's name may have a # in it
        try:
            own_port = parts.port
        except ValueError as error:
            raise ValueError(f"{url!r}: {error}") from None
        query = tuple(parse_qsl(parts.query, keep_blank_values=True))
        if not parts.scheme:
            raise ValueError(f"{url!r} has no scheme")
        if parts.netloc and not parts.hostname:
            raise ValueError(f"{url!r} has no host")
        if not parts.netloc:
            if not parts.path:
                raise ValueError(f"{url!r} has neither a host nor a path")
            if parts.scheme in _NEED_HOST:
                raise ValueError(f"{url!r} has no host")
            return cls(parts.scheme, path=parts.path, query=query)
        default = {"ws": 80, "wss": 443}.get(parts.scheme, default_port)
        return cls(
            parts.scheme,
            parts.hostname or "",
            _port(url, own_port if own_port is not None else port, default),
            parts.path,
            query,
        )

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}" if self.path.startswith("/") else f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        query = f"?{urlencode(self.query, safe=':/')}" if self.query else ""
        slashes = "//" if host or self.path.startswith("/") else ""
        return f"{self.scheme}:{slashes}{f'{host}:{self.port}' if host else ''}{self.path}{query}"


def address_url(address: Any, default_port: int) -> Url:
    """Read an address in any of the forms people write: ``(host, port)``, a URL, ``host:port``, or a host alone.

    Raises:
        ValueError: it is none of them.
    """
    try:
        if isinstance(address, Url):
            return address
        if isinstance(address, str):
            host, _, port = address.rpartition(":")
            named = ":" not in host or (host.startswith("[") and host.endswith("]"))
            if host and named and port.isdecimal() and port.isascii():
                return Url.parse(host, int(port))
            return Url.parse(address, default_port=default_port)
        host, port = address
        return Url.parse(host, port, default_port)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{address!r} is not an address: write (host, port), host:port or a URL ({error})") from None


def tracker_url(address: Any) -> Url:
    """Where a tracker is: as :func:`address_url`, with the trackers' port, 9190, where there is none.

    Raises:
        ValueError: that is no address.
    """
    return address_url(address, TRACKER_PORT)


def _unix_path(url: str) -> str:
    path = url.removeprefix("unix:")
    if path.startswith("//"):
        path = path.removeprefix("//")
        if not path.startswith("/"):
            raise ValueError(f"{url!r}: what follows unix:// is an absolute path, as in unix:///path")
    if not path:
        raise ValueError(f"{url!r} has no path")
    return path


def _port(url: str, port: int | None, default: int) -> int:
    if port is None:
        return default
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"a port is an int, not {port!r}")
    if not 0 < port < 65536:
        raise ValueError(f"{url!r}: {port} is not a port")
    return port


def file_path(url: Url) -> str:
    """The path of an address as the system's files are called: what stands there as ``%20``, say, made plain."""
    return os.fsdecode(unquote_to_bytes(os.fsencode(url.path)))
