# SPDX-License-Identifier: Apache-2.0
"""The listening side of a line whose other end may be anyone: its key, and the last words to it."""

import socket
from typing import Final

import anyio

from rpcflow.protocol.handshake import Hello, HelloReader

HANDSHAKE_SECONDS: Final = 5.0
"""How long a stranger may take to say its key."""
LINGER_SECONDS: Final = 1.0
"""How long we wait, with all said, for the other end to have read it and gone."""


async def read_hello(sock: socket.socket) -> Hello | None:
    """Take the key off the line and not a byte more; None if it ends before.

    Raises:
        ProtocolError: it is not a key.
    """
    reader = HelloReader.for_server()
    while reader.hello is None:
        try:
            data = sock.recv(reader.wanted)
        except BlockingIOError:
            await anyio.wait_readable(sock)
            continue
        except OSError:
            return None
        if not data:
            return None
        reader.feed(data)
    return reader.hello


def say(sock: socket.socket, data: bytes) -> bool:
    """Send a few bytes to a peer that may be anyone; whether they were all taken."""
    try:
        return sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)
    except OSError:
        return False


async def linger(sock: socket.socket) -> None:
    """Let our last words arrive: closing with unread bytes would reset the line, and the words with it."""
    try:
        sock.shutdown(socket.SHUT_WR)
        with anyio.move_on_after(LINGER_SECONDS):
            while True:
                try:
                    if not sock.recv(65536, socket.MSG_DONTWAIT):
                        return
                except BlockingIOError:
                    await anyio.wait_readable(sock)
    except OSError:
        pass  # gone already
