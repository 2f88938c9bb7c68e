# SPDX-License-Identifier: Apache-2.0
"""``ws://host:port/path``: a websocket, for where only HTTP gets through. Without a path it is ``/ws``.

Needs the packages of ``rpcflow[web]``, which are imported when the first connection is made.
"""

import socket
import threading
from collections.abc import Awaitable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.values import Part

from .base import BlockingChannel
from .credentials import credentials
from .sockets import DONTWAIT, NOSIGNAL
from .tcp import TcpTransport
from .url import Url

if TYPE_CHECKING:
    from .async_ws import AsyncWebSocketChannel
    from .base import AsyncChannel
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
        token = credentials(url)
        line = await self._connect(url, poll)
        try:
            await line.send([first])
            buffer = memoryview(bytearray(_HANDSHAKE_NBYTES))
            while not stream.accepted(bytes(buffer[: await line.receive_into(buffer)]), url):
                pass
        except BaseException:
            line.close()
            raise
        channel = AsyncWebSocketChannel(line, stream)
        if token:
            await _or_close(channel, channel.send([token]))
        return channel

    def connect_blocking(
        self, url: Url, *, deadline: float | None = None, poll: bool | None = None
    ) -> "BlockingWebSocketChannel":
        from .websocket import WebSocketStream

        stream, first = WebSocketStream.connecting(url)
        token = credentials(url)
        line = self._connect_blocking(url, deadline, poll)
        try:
            line.send([first], deadline)
            buffer = memoryview(bytearray(_HANDSHAKE_NBYTES))
            while not stream.accepted(bytes(buffer[: line.receive_into(buffer, deadline)]), url):
                pass
        except BaseException:
            line.close()
            raise
        channel = BlockingWebSocketChannel(line, stream)
        if token:
            try:
                channel.send([token], deadline)
            except BaseException:
                channel.close()
                raise
        return channel

    async def _connect(self, url: Url, poll: bool | None) -> "AsyncChannel":
        return await _tcp.connect(_line_url(url), poll=poll)

    def _connect_blocking(self, url: Url, deadline: float | None, poll: bool | None) -> BlockingChannel:
        return _tcp.connect_blocking(_line_url(url), deadline=deadline, poll=poll)


transport: Final = WsTransport()


def _line_url(url: Url) -> Url:
    """The line below: what the address says beyond that is not for it."""
    return Url("tcp", url.host, url.port)


async def _or_close(channel: "AsyncWebSocketChannel", sending: Awaitable[None]) -> None:
    try:
        await sending
    except BaseException:
        channel.close()
        raise


def send_urgent(line: Any, stream: "WebSocketStream") -> None:
    """Send control frames as far as they can be sent without waiting; only between two messages of ours."""
    say = getattr(line, "say", None)
    if say is not None:  # what is below is no bare socket
        say(bytes(stream.urgent))
        stream.urgent.clear()
        return
    try:
        while stream.urgent:
            del stream.urgent[: line.socket.send(stream.urgent, DONTWAIT | NOSIGNAL)]
    except OSError:
        pass  # full, or gone: whoever reads or writes next finds out


class BlockingWebSocketChannel:
    """A websocket for a thread, or one that sends and one that receives.

    Args:
        line: it is this channel's from now on.
        stream: its handshake is done.
    """

    def __init__(self, line: BlockingChannel, stream: "WebSocketStream") -> None:
        self._line = line
        self._stream = stream
        self._sending = threading.Lock()
        self._whole = True
        self._open = True
        self._buffer = memoryview(bytearray(1 << 16))

    @property
    def socket(self) -> "socket.socket | None":
        """The line's, if it has one."""
        return getattr(self._line, "socket", None)

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
                    send_urgent(self._line, self._stream)
            finally:
                self._sending.release()

    def _check_open(self) -> None:
        if not self._open:
            raise ConnectionLostError("the connection is closed")
