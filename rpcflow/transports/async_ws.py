# SPDX-License-Identifier: Apache-2.0
"""Websocket channels of tasks, for the end that connects and the end that accepts."""

import socket
from collections.abc import Sequence

import anyio.lowlevel

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.values import Part

from .base import AsyncChannel
from .websocket import RECEIVE_NBYTES, WebSocketStream
from .ws import send_urgent


class AsyncWebSocketChannel:
    """A websocket for tasks.

    Args:
        line: it is this channel's from now on.
        stream: its handshake is done.
    """

    def __init__(self, line: AsyncChannel, stream: WebSocketStream) -> None:
        self._line = line
        self._stream = stream
        self._whole = True
        self._open = True
        self._buffer = memoryview(bytearray(RECEIVE_NBYTES))

    @property
    def socket(self) -> "socket.socket | None":
        """The line's, if it has one."""
        return getattr(self._line, "socket", None)

    async def send(self, parts: Sequence[Part]) -> None:
        self._check_open()
        for frame in self._stream.frames(parts):
            urgent, self._stream.urgent = self._stream.urgent, bytearray()
            self._whole = False
            await self._line.send([urgent, frame])
            self._whole = True
        self._flush()

    async def receive_into(self, buffer: memoryview) -> int:
        while True:
            self._check_open()
            count = self._stream.take(buffer)
            if count or self._stream.at_end():
                return count
            count = await self._line.receive_into(self._buffer)
            if count:
                self._stream.feed(bytes(self._buffer[:count]))
            else:
                self._stream.feed_end()
            self._flush()
            await anyio.lowlevel.checkpoint()  # a peer that sends nothing but pings is not the only one here

    def end_sending(self) -> None:
        """Say goodbye, and go on receiving. Never blocks."""
        self._stream.end_sending()
        self._flush()

    def close(self) -> None:
        if self._open:
            self.end_sending()
            self._open = False
            self._line.close()

    def _flush(self) -> None:
        if self._stream.urgent and self._whole:
            send_urgent(self._line, self._stream)

    def _check_open(self) -> None:
        if not self._open:
            raise ConnectionLostError("the connection is closed")
