# SPDX-License-Identifier: Apache-2.0
"""The blocking API's tracker: the same tracker, in a process of its own."""

import logging
from typing import Final, Unpack

from rpcflow.security.protection import SecurityOptions, elsewhere, encrypted
from rpcflow.transports.tcp import is_loopback

from .process import BlockingService, ServiceProcess

_log: Final = logging.getLogger("rpcflow.tracker")


class Tracker(BlockingService):
    """A tracker in a process of its own; ends with :meth:`terminate`, its ``with`` block, or when it is collected.

    The parameters are those of :class:`rpcflow.Tracker`, with stock's default ``host`` of all interfaces: the line is
    not encrypted and whoever reaches it can ask for every device, so keep it to networks you trust,
    or encrypt it (``tls=True``); ``url`` then says where it is found.
    """

    def __init__(
        self,
        host: str = "0.0.0.0",
        port: int = 9190,
        port_end: int = 9199,
        silent: bool = False,
        reuse_addr: bool = True,
        timeout: float | None = None,
        *,
        peer_timeout: float = 30.0,
        **security: Unpack[SecurityOptions],
    ) -> None:
        if not is_loopback(host) and not encrypted(security):
            _log.warning(
                "the tracker on %s can be reached from other machines, unencrypted: whoever reaches it can ask for "
                "every device",
                host,
            )
        options = {
            "host": host,
            "port": port,
            "port_end": port_end,
            "silent": silent,
            "reuse_addr": reuse_addr,
            "timeout": timeout,
            "insecure": True,
            "peer_timeout": peer_timeout,
            **elsewhere(security),
        }
        self._service = ServiceProcess("tracker", options, silent)
        self.host = host
        self.port: int = self._service.answer["port"]
