# SPDX-License-Identifier: Apache-2.0
"""``ws://host:port/path``: a websocket, for where only HTTP gets through. Without a path it is ``/ws``.

Needs the packages of ``rpcflow[web]``, which are imported when the first connection is made.
"""

import socket
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.values import Part

from .sockets import DONTWAIT, NOSIGNAL, BlockingSocketChannel
from .tcp import TcpTransport
from .url import Url

if TYPE_CHECKING:
    from .async_ws import AsyncWebSocketChannel
    from .websocket import WebSocketStream

_HANDSHAKE_NBYTES: Final = 4096
_tcp: Final = TcpTransport()


class WsTransport:
    """Connects by websocket."""

    def check(self) -> None:
        """Raises ImportError where the packages are missing."""
        import_module("rpcflow.transports.websocket")

    async def connect(self, url: Url, *, poll: bool | None = None) -> "AsyncWebSocketChannel":
        from .async_ws import AsyncWebSocketChannel  # not needed by blocking programs and workers
        from .websocket import WebSocketStream

        stream, first = WebSocketStream.connecting(url)
        line = await _tcp.connect(url, poll=poll)
        try:
            await line.send([first])
            buffer = memoryview(bytearray(_HANDSHAKE_NBYTES))
            while not stream.accepted(bytes(buffer[: await line.receive_into(buffer)]), url):
                pass
        except BaseException:
            line.close()
            raise
        return AsyncWebSocketChannel(line, stream)

    def connect_blocking(
        self, url: Url, *, deadline: float | None = None, poll: bool | None = None
    ) -> "BlockingWebSocketChannel":
        from .websocket import WebSocketStream

        stream, first = WebSocketStream.connecting(url)
        line = _tcp.connect_blocking(url, deadline=deadline, poll=poll)
        try:
            line.send([first], deadline)
            buffer = memoryview(bytearray(_HANDSHAKE_NBYTES))
            while not stream.accepted(bytes(buffer[: line.receive_into(buffer, deadline)]), url):
                pass
        except BaseException:
            line.close()
            raise
        return BlockingWebSocketChannel(line, stream)


transport: Final = WsTransport()


def send_urgent(sock: socket.socket, stream: "WebSocketStream") -> None:
    """Send control frames as far as they can be sent without waiting; only between two messages of ours."""
    try:
        while stream.urgent:
            del stream.urgent[: sock.send(stream.urgent, DONTWAIT | NOSIGNAL)]
    except OSError:
        pass  # full, or gone: whoever reads or writes next finds out


class BlockingWebSocketChannel:
    """A websocket for a thread, or one that sends and one that receives.

    Args:
        line: it is this channel's from now on.
        stream: its handshake is done.
    """

    def __init__(self, line: BlockingSocketChannel, stream: "WebSocketStream") -> None:
        self._line = line
        self._stream = stream
        self._sending = threading.Lock()
        self._whole = True
        self._open = True
        self._buffer = memoryview(bytearray(1 << 16))

    @property
    def socket(self) -> socket.socket:
        """The line's."""
        return self._line.socket

    def send(self, parts: Sequence[Part], deadline: float | None = None) -> None:
        self._check_open()
        with self._sending:
            for frame in self._stream.frames(parts):
                urgent, self._stream.urgent = self._stream.urgent, bytearray()
                self._whole = False
                self._line.send([urgent, frame], deadline)
                self._whole = True

    def receive_into(self, buffer: memoryview, deadline: float | None = None) -> int:
        while True:
            self._check_open()
            count = self._stream.take(buffer)
            if count or self._stream.at_end():
                return count
            count = self._line.receive_into(self._buffer, deadline)
            if count:
                self._stream.feed(bytes(self._buffer[:count]))
            else:
                self._stream.feed_end()
            self._flush()

    def end_sending(self) -> None:
        """Say goodbye, and go on receiving."""
        if self._sending.acquire(blocking=False):
            try:
                self._stream.end_sending()
            finally:
                self._sending.release()
            self._flush()

    def close(self) -> None:
        if self._open:
            self.end_sending()
            self._open = False
            self._line.close()

    def _flush(self) -> None:
        if self._stream.urgent and self._sending.acquire(blocking=False):
            try:
                if self._whole and DONTWAIT:
                    send_urgent(self._line.socket, self._stream)
            finally:
                self._sending.release()

    def _check_open(self) -> None:
        if not self._open:
            raise ConnectionLostError("the connection is closed")
