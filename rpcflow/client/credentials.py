# SPDX-License-Identifier: Apache-2.0
"""What a program gives beside an address to say who it is, and whom it trusts."""

import os
from typing import Final

import attrs

from rpcflow.protocol.credentials import check_token
from rpcflow.tracker.questions import Grant
from rpcflow.transports import Url
from rpcflow.transports.tcp import is_loopback

_WITH_TLS: Final = frozenset({"tls", "wss"})
_WITH_TOKEN: Final = frozenset({"tcp", "tls", "unix", "ws", "wss"})
_OPEN: Final = frozenset({"tcp", "ws"})


@attrs.frozen
class Credentials:
    """The options of the same names of ``connect`` and ``connect_tracker``.

    Args:
        token: bearer token.
        pin: of the other end's key.
        ca: file with authorities that may vouch for the other end, or the name of one of ours.
        identity: name or file of our key and certificate; "" for none.
    """

    token: str | None = attrs.field(default=None, repr=False)
    pin: str | None = None
    ca: str | os.PathLike[str] | None = None
    identity: str | os.PathLike[str] | None = None

    def on(self, url: Url, key: str | None = None) -> Url:
        """An address with them.

        Args:
            key: what a proxy is asked for, if it is one that stands there.

        Raises:
            ValueError: they do not go with it, or are said twice.
        """
        given = dict(url.query)
        query = list(url.query)
        for name, value in (("pin", self.pin), ("ca", self.ca), ("identity", self.identity)):
            if value is None:
                continue
            if url.scheme not in _WITH_TLS:
                raise ValueError(f"{name}= is for lines with TLS (tls://, wss://), which {url} is not")
            if name in given:
                raise ValueError(f"{name}= is in the address already: {url}")
            query.append((name, os.fspath(value)))
        if self.token is not None:
            check_token(self.token)
            if url.scheme not in _WITH_TOKEN:
                raise ValueError(f"{url.scheme}: lines take no token")
        proxy_key = key if "proxy" in given else None
        return attrs.evolve(url, query=tuple(query), token=self.token, proxy_key=proxy_key)

    def granted(self, grant: Grant | None) -> Grant | None:
        """A server that a tracker has given us. Whom to trust there is what the tracker says; who we are, we say where
        nobody can listen."""
        if grant is None or (grant.url.scheme in _OPEN and not is_loopback(grant.url.host)):
            return grant
        identity = self.identity if grant.url.scheme in _WITH_TLS else None
        own = attrs.evolve(self, pin=None, ca=None, identity=identity)
        return attrs.evolve(grant, url=own.on(grant.url, grant.key))
