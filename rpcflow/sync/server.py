# SPDX-License-Identifier: Apache-2.0
"""The blocking API's server: the same server, in a process of its own."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Unpack

from rpcflow.protocol.handshake import check_key
from rpcflow.security.protection import SecurityOptions, elsewhere, encrypted
from rpcflow.transports.tcp import is_loopback

from .process import BlockingService, ServiceProcess

_log: Final = logging.getLogger("rpcflow.server")


class Server(BlockingService):
    """An RPC server in a process of its own; ends with :meth:`terminate`, its ``with`` block, or when it is collected.

    The parameters are those of :class:`rpcflow.Server`, with stock's default ``host`` of all interfaces: the line is
    not encrypted and whoever reaches it can run code, so keep it to networks you trust, or encrypt it
    (``tls=True``); ``url`` then says where it is found. With ``is_proxy``, ``host`` and
    ``port`` name the proxy.
    """

    def __init__(
        self,
        host: str = "0.0.0.0",
        port: int = 9091,
        port_end: int = 9199,
        is_proxy: bool = False,
        tracker_addr: Any = None,
        key: str = "",
        load_library: str | None = None,
        custom_addr: str | None = None,
        silent: bool = False,
        no_fork: bool = False,
        server_init_callback: Callable[[], Any] | None = None,
        reuse_addr: bool = True,
        timeout: float | None = None,
        *,
        max_sessions: int = 1,
        imports: Sequence[str] = (),
        allow_path: Sequence[str] = (),
        peer_timeout: float = 30.0,
        poll: bool | None = None,
        sandbox: bool = False,
        sandbox_grant: Sequence[str] = (),
        **security: Unpack[SecurityOptions],
    ) -> None:
        check_key(key)
        for name, value in (("imports", imports), ("allow_path", allow_path)):
            if isinstance(value, str):
                raise TypeError(f"{name} is a list of texts, not one text")
        reachable = not is_proxy and not host.startswith("unix:") and not is_loopback(host)
        if reachable and not encrypted(security):
            _log.warning(
                "the server on %s can be reached from other machines, unencrypted: whoever reaches it can run code",
                host,
            )
        callback = None
        if server_init_callback is not None:
            import cloudpickle

            callback = cloudpickle.dumps(server_init_callback)
        options = {
            "host": host,
            "port": port,
            "port_end": port_end,
            "is_proxy": is_proxy,
            "tracker_addr": tracker_addr,
            "key": key,
            "load_library": load_library,
            "custom_addr": custom_addr,
            "silent": silent,
            "no_fork": no_fork,
            "callback": callback,
            "reuse_addr": reuse_addr,
            "timeout": timeout,
            "max_sessions": max_sessions,
            "imports": tuple(imports),
            "allow_path": tuple(allow_path),
            "insecure": True,
            "peer_timeout": peer_timeout,
            "poll": poll,
            "sandbox": sandbox,
            "sandbox_grant": tuple(sandbox_grant),
            **elsewhere(security),
        }
        self._service = ServiceProcess("server", options, silent)
        self.host: str = self._service.answer["host"] if is_proxy else host
        self.port: int = self._service.answer["port"]
