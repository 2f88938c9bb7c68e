# SPDX-License-Identifier: Apache-2.0
"""A plain socket behind Python's ssl."""

import socket
import ssl

from benchmarks.clients.raw import RawClient


class RawTlsClient(RawClient):
    def _line(self, purpose: str, size: int) -> socket.socket:
        if purpose not in self._lines:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            sock = socket.create_connection(("127.0.0.1", self._port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line = self._stack.enter_context(context.wrap_socket(sock))
            line.sendall(purpose.encode() + size.to_bytes(8, "little"))
            self._lines[purpose] = line
        return self._lines[purpose]
