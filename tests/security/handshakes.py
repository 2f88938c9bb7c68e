# SPDX-License-Identifier: Apache-2.0
"""Handshakes by the ssl module over loopback: what OpenSSL makes of what we have written."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import attrs


@attrs.frozen
class Outcome:
    """What each end made of it; ``client_certificate``: what the server has seen, DER."""

    server_error: OSError | None
    client_error: OSError | None
    version: str | None = None
    client_certificate: bytes | None = None

    @property
    def good(self) -> bool:
        return self.server_error is None and self.client_error is None


def server_context(identity: Path, trusted: Path | None = None, crl: Path | None = None) -> ssl.SSLContext:
    """TLS 1.3; with ``trusted``, clients need a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity)
    if trusted is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(trusted)
    if crl is not None:
        context.load_verify_locations(crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def client_context(trusted: bytes | Path, identity: Path | None = None) -> ssl.SSLContext:
    """Checks the server by name. ``trusted``: DER, or a file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if isinstance(trusted, bytes):
        context.load_verify_locations(cadata=trusted)
    else:
        context.load_verify_locations(trusted)
    if identity is not None:
        context.load_cert_chain(identity)
    return context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost") -> Outcome:
    """One line, a handshake and a byte over it."""
    seen: list[bytes | None] = [None]
    failed: list[OSError] = []

    def serve() -> None:
        line, _ = listener.accept()
        line.settimeout(20)
        try:
            with server.wrap_socket(line, server_side=True) as tls:
                seen[0] = tls.getpeercert(True)
                tls.sendall(b"!")
        except OSError as error:
            failed.append(error)
            line.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        error = version = None
        try:
            with socket.create_connection(listener.getsockname(), 20) as line:
                with client.wrap_socket(line, server_hostname=name) as tls:
                    version = tls.version()
                    if tls.recv(1) != b"!":
                        raise ConnectionError("the server has gone")
        except OSError as caught:
            error = caught
        thread.join(30)
        assert not thread.is_alive()
    return Outcome(failed[0] if failed else None, error, version, seen[0])
