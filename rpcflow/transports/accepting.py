# SPDX-License-Identifier: Apache-2.0
"""The listening side of lines whose other end may be anyone: coming in, the key, and the last words."""

import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

import anyio
import anyio.lowlevel
import attrs
from anyio.abc import TaskGroup

from rpcflow.protocol.credentials import CredentialsReader
from rpcflow.protocol.handshake import Hello, HelloReader

HANDSHAKE_SECONDS: Final = 5.0
"""How long a stranger may take to say its key."""
LINGER_SECONDS: Final = 1.0
"""How long we wait, with all said, for the other end to have read it and gone."""


async def accept(
    listener: socket.socket, welcome: Callable[[socket.socket, Any], None], log: logging.Logger
) -> NoReturn:
    """Let in whoever knocks, until cancelled.

    Args:
        welcome: takes the socket, which is its own from then on, and the peer's address; it must not raise.
    """
    while True:
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            await anyio.wait_readable(listener)
            continue
        except ConnectionError:
            continue  # gone before it was accepted
        except OSError as error:
            log.error("cannot accept: %s", error)  # out of descriptors: wait for some to be given back
            await anyio.sleep(0.1)
            continue
        welcome(sock, address)
        await anyio.lowlevel.checkpoint()  # however many knock at once, those who are in have their turns


async def end_tasks(tasks: TaskGroup) -> None:
    """End what runs in a service's task group, from the task that entered it. Its tasks handle their own errors; what
    leaves the service's block is its body's, as it came, also when cancelled from outside meanwhile."""
    tasks.cancel_scope.shield = True
    tasks.cancel_scope.cancel()
    await tasks.__aexit__(None, None, None)


@attrs.frozen
class Introduction:
    """What a stranger says before anything else.

    Args:
        hello: its key.
        token: of its credentials; empty where it has shown none.
    """

    hello: Hello
    token: str = attrs.field(default="", repr=False)


async def read_introduction(receive: Callable[[int], Awaitable[bytes | None]]) -> Introduction | None:
    """Take credentials, if there are any, and the key off a line and not a byte more; None if it ends before.

    Args:
        receive: gives so many bytes, or None if the line ends before; :func:`receiving` makes it of a socket.

    Raises:
        ProtocolError: it says something else.
    """
    reader = HelloReader.for_server()
    data = await receive(reader.wanted)
    if data is None:
        return None
    credentials = CredentialsReader()
    if not credentials.begins(data):
        reader.feed(data)
    else:
        credentials.feed(data)
        while not credentials.done:
            if (data := await receive(credentials.wanted)) is None:
                return None
            credentials.feed(data)
    while reader.hello is None:
        if (data := await receive(reader.wanted)) is None:
            return None
        reader.feed(data)
    return Introduction(reader.hello, credentials.token)


def receiving(sock: socket.socket) -> Callable[[int], Awaitable[bytes | None]]:
    """For :func:`read_introduction`. For a few bytes of a stranger's."""

    async def receive(nbytes: int) -> bytes | None:
        received = bytearray()
        while len(received) < nbytes:
            try:
                data = sock.recv(nbytes - len(received))
            except BlockingIOError:
                await anyio.wait_readable(sock)
                continue
            except OSError:
                return None
            if not data:
                return None
            received += data
        return bytes(received)

    return receive


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
