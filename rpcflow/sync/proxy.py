# SPDX-License-Identifier: Apache-2.0
"""The blocking API's proxy: the same proxy, in a process of its own."""

import logging
import os
from collections.abc import Sequence
from typing import Any, Final, Unpack

from rpcflow.security.protection import SecurityOptions, elsewhere, encrypted
from rpcflow.transports.tcp import is_loopback

from .process import BlockingService, ServiceProcess

_log: Final = logging.getLogger("rpcflow.proxy")


class Proxy(BlockingService):
    """A proxy in a process of its own; ends with :meth:`terminate`, its ``with`` block, or when it is collected.

    The parameters are those of :class:`rpcflow.Proxy`. The line is not encrypted, and whoever reaches the proxy can use
    the servers behind it, so keep it to networks you trust,
    or encrypt it (``tls=True``); ``url`` then says where it is found.
    """

    def __init__(
        self,
        host: str,
        port: int = 9091,
        port_end: int = 9199,
        web_port: int = 0,
        timeout_client: float = 600,
        timeout_server: float = 600,
        tracker_addr: Any = None,
        index_page: str | None = None,
        resource_files: Sequence[tuple[str, str]] | None = None,
        *,
        peer_timeout: float = 30.0,
        **security: Unpack[SecurityOptions],
    ) -> None:
        if not is_loopback(host) and not encrypted(security):
            _log.warning(
                "the proxy on %s can be reached from other machines, unencrypted: whoever reaches it can use the "
                "servers behind it",
                host,
            )
        options = {
            "host": host,
            "port": port,
            "port_end": port_end,
            "web_port": web_port,
            "timeout_client": timeout_client,
            "timeout_server": timeout_server,
            "tracker_addr": tracker_addr,
            "index_page": os.path.abspath(index_page) if index_page else None,
            "resource_files": [(folder, os.path.abspath(file)) for folder, file in resource_files or ()],
            "insecure": True,
            "peer_timeout": peer_timeout,
            **elsewhere(security),
        }
        self._service = ServiceProcess("proxy", options)
        self.host = host
        self.port: int = self._service.answer["port"]
        self.web_port = web_port
