# SPDX-License-Identifier: Apache-2.0
"""rpcflow's server behind TLS, and plain sockets behind Python's ssl: both with a key made for the occasion."""

import os
import socket
import ssl
import tempfile
from typing import Any, Self

from benchmarks.servers.raw import RawServer
from benchmarks.servers.rpcflow import RpcflowServer


class TlsServer(RpcflowServer):
    def __init__(self, poll: bool = True) -> None:
        super().__init__(poll)
        self._home = tempfile.TemporaryDirectory()
        os.environ["RPCFLOW_HOME"] = self._home.name
        self._options["tls"] = True

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._home.cleanup()

    def port(self) -> Any:
        """The whole address, the pin in it."""
        return self._server.url


class RawTlsServer(RawServer):
    def __enter__(self) -> Self:
        from rpcflow.security.identity import ensure_identity

        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        with tempfile.TemporaryDirectory() as home:
            os.environ["RPCFLOW_HOME"] = home
            self._context.load_cert_chain(ensure_identity().path)
        return super().__enter__()

    def _answer(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock:
            super()._answer(self._context.wrap_socket(sock, server_side=True))
