# SPDX-License-Identifier: Apache-2.0
"""TLS channels of tasks."""

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.values import Part

from .base import AsyncChannel
from .tls import say_at_once
from .tls_stream import BATCH_NBYTES, TlsStream

if TYPE_CHECKING:
    from rpcflow.security.client_context import ClientTls


async def secure(line: AsyncChannel, tls: "ClientTls") -> "AsyncTlsChannel":
    """As :func:`rpcflow.transports.tls.secure_blocking`, in a task. Cancelled, the line is of no more use."""
    stream = tls.stream()
    buffer = memoryview(bytearray(1 << 14))
    done = False
    while not done:
        try:
            done = stream.handshake()
        finally:
            if outgoing := stream.outgoing():
                await line.send([outgoing])
        if not done:
            stream.feed(buffer[: await line.receive_into(buffer)])
    tls.check(stream)
    return AsyncTlsChannel(line, stream)


class AsyncTlsChannel:
    """A TLS line for tasks.

    Args:
        line: it is this channel's from now on.
        stream: its handshake is done.
    """

    def __init__(self, line: AsyncChannel, stream: TlsStream) -> None:
        self._line = line
        self._stream = stream
        self._whole = True
        self._open = True
        self._left = bytearray()
        self._buffer = memoryview(bytearray(BATCH_NBYTES))

    @property
    def socket(self) -> "socket.socket | None":
        """The line's, if it has one."""
        return getattr(self._line, "socket", None)

    async def send(self, parts: Sequence[Part]) -> None:
        self._check_open()
        self._whole = False
        for data, _ in self._stream.encrypt(parts):
            if self._left:
                data, self._left = bytes(self._left) + data, bytearray()
            await self._line.send([data])
        self._whole = True

    async def receive_into(self, buffer: memoryview) -> int:
        while True:
            self._check_open()
            count = self._stream.read_into(buffer)
            if count is not None:
                return count
            count = await self._line.receive_into(self._buffer)
            self._stream.feed(self._buffer[:count])

    def end_sending(self) -> None:
        """Say goodbye, and go on receiving. Never blocks."""
        if self._open and self._whole:
            self._stream.end()
            self._left += self._stream.outgoing()
            say_at_once(self.socket, self._left)

    def say(self, data: bytes) -> None:
        """Send a few bytes without waiting, between two sends; what the line does not take goes before the next one."""
        if self._open and self._whole and data:
            for encrypted, _ in self._stream.encrypt([data]):
                self._left += encrypted
            say_at_once(self.socket, self._left)

    def close(self) -> None:
        if self._open:
            self.end_sending()
            self._open = False
            self._line.close()

    def _check_open(self) -> None:
        if not self._open:
            raise ConnectionLostError("the connection is closed")
