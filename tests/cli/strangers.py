# SPDX-License-Identifier: Apache-2.0
"""Listeners that are no part of rpcflow: each connection is given to a function in a thread of its own."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

HOST = "127.0.0.1"
Behaviour = Callable[[socket.socket], None]


@contextlib.contextmanager
def listening(behaviour: Behaviour) -> Iterator[int]:
    """A port where each connection is treated so, until the block ends."""
    ended = threading.Event()
    threads = []
    open_sockets: list[socket.socket] = []

    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            behaviour(sock)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            if ended.is_set():
                sock.close()
                return
            open_sockets.append(sock)
            thread = threading.Thread(target=serve, args=(sock,))
            threads.append(thread)
            thread.start()

    with socket.create_server((HOST, 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            socket.create_connection(listener.getsockname()).close()
            accepting.join()
            for sock in open_sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def read_all(sock: socket.socket) -> None:
    """Take what comes until the end."""
    while sock.recv(65536):
        pass


def silent(sock: socket.socket) -> None:
    read_all(sock)


def closing(sock: socket.socket) -> None:
    pass


def saying(data: bytes) -> Behaviour:
    """Says this and then nothing."""

    def behave(sock: socket.socket) -> None:
        sock.sendall(data)
        read_all(sock)

    return behave


def flooding(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"garbage!" * 8192)


def dripping(sock: socket.socket) -> None:
    """Half of an answer, and never the rest."""
    sock.sendall(b"\x73\xf2")
    read_all(sock)


def flooding_tracker(sock: socket.socket) -> None:
    """Says the right magic, then garbage without end."""
    if sock.recv(4, socket.MSG_WAITALL) != b"\x71\xf2\x02\x00":
        return
    sock.sendall(b"\x71\xf2\x02\x00")
    flooding(sock)


def silent_tracker(sock: socket.socket) -> None:
    """Says the right magic, then nothing."""
    if sock.recv(4, socket.MSG_WAITALL) == b"\x71\xf2\x02\x00":
        sock.sendall(b"\x71\xf2\x02\x00")
        read_all(sock)


def tracker_saying(data: bytes) -> Behaviour:
    """A tracker that answers every question with this."""

    def behave(sock: socket.socket) -> None:
        if sock.recv(4, socket.MSG_WAITALL) != b"\x71\xf2\x02\x00":
            return
        sock.sendall(b"\x71\xf2\x02\x00")
        while sock.recv(65536):
            sock.sendall(len(data).to_bytes(4, "little") + data)

    return behave


@contextlib.contextmanager
def http_server() -> Iterator[int]:
    """Python's own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((HOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def tls_server(folder: Path) -> Iterator[int]:
    """One with a certificate of its own making."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    make = ["openssl", "req", *kind, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def behave(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as wrapped:
            wrapped.recv(1)

    with listening(behave) as port:
        yield port
