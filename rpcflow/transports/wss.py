# SPDX-License-Identifier: Apache-2.0
"""``wss://host:port/path``: a websocket inside TLS 1.3. Without a path it is ``/ws``.

Needs the packages of ``rpcflow[web,security]``, which are imported when the first connection is made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from .base import BlockingChannel
from .tls import secure_blocking
from .url import Url
from .ws import WsTransport

if TYPE_CHECKING:
    from rpcflow.security.client_context import ClientTls

    from .base import AsyncChannel


class WssTransport(WsTransport):
    """Connects by websocket inside TLS."""

    secure = True

    def check(self) -> None:
        from rpcflow.security import need

        super().check()
        need("cryptography")

    def check_url(self, url: Url) -> None:
        """Raises ValueError where an address has parameters that are not known."""
        import_module("rpcflow.security.client_context").check_parameters(url)

    async def _connect(self, url: Url, poll: bool | None) -> "AsyncChannel":
        from .async_tls import secure

        tls = _tls(url)
        line = await super()._connect(url, poll)
        try:
            return await secure(line, tls)
        except BaseException:
            line.close()
            raise

    def _connect_blocking(self, url: Url, deadline: float | None, poll: bool | None) -> BlockingChannel:
        tls = _tls(url)
        line = super()._connect_blocking(url, deadline, poll)
        try:
            return secure_blocking(line, tls, deadline)
        except BaseException:
            line.close()
            raise


transport: Final = WssTransport()


def _tls(url: Url) -> "ClientTls":
    from rpcflow.security.client_context import ClientTls

    if "proxy" in dict(url.query):
        raise ValueError(f"{url}: TLS from end to end goes through a proxy's own port, by tls://")
    return ClientTls.of(url, "http/1.1", insist=False)
