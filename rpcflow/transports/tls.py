# SPDX-License-Identifier: Apache-2.0
"""``tls://host:port``: TLS 1.3 over TCP, or from end to end through a proxy.

Needs the packages of ``rpcflow[security]``, which are imported when the first connection is made.
"""

import socket
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

import attrs

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.handshake import KeyText, Side
from rpcflow.protocol.values import Part

from .base import BlockingChannel
from .credentials import credentials
from .greeting import greet, greet_async
from .sockets import DONTWAIT, NOSIGNAL
from .tcp import TcpTransport
from .url import Url

if TYPE_CHECKING:
    from rpcflow.security.client_context import ClientTls

    from .async_tls import AsyncTlsChannel
    from .base import AsyncChannel
    from .tls_stream import TlsStream

_tcp: Final = TcpTransport()


class TlsTransport:
    """Connects by TLS."""

    secure = True

    def check(self) -> None:
        """Raises ImportError where the packages are missing."""
        from rpcflow.security import need

        need("cryptography")

    def check_url(self, url: Url) -> None:
        """Raises ValueError where an address has parameters that are not known."""
        import_module("rpcflow.security.client_context").check_parameters(url)

    async def connect(self, url: Url, *, poll: bool | None = None) -> "AsyncTlsChannel":
        from .async_tls import secure

        tls, token = _tls(url), credentials(url)
        line: AsyncChannel = await _tcp.connect(_plain(url), poll=poll)
        try:
            if outer := _outer(url):
                line = await secure(line, outer)
            if url.proxy_key is not None:
                await greet_async(line, KeyText(Side.CLIENT, url.proxy_key))
            channel = await secure(line, tls)
            if token:
                await channel.send([token])
        except BaseException:
            line.close()
            raise
        return channel

    def connect_blocking(
        self, url: Url, *, deadline: float | None = None, poll: bool | None = None
    ) -> "BlockingTlsChannel":
        tls, token = _tls(url), credentials(url)
        line: BlockingChannel = _tcp.connect_blocking(_plain(url), deadline=deadline, poll=poll)
        try:
            if outer := _outer(url):
                line = secure_blocking(line, outer, deadline)
            if url.proxy_key is not None:
                greet(line, KeyText(Side.CLIENT, url.proxy_key), deadline)
            channel = secure_blocking(line, tls, deadline)
            if token:
                channel.send([token], deadline)
        except BaseException:
            line.close()
            raise
        return channel


transport: Final = TlsTransport()


def _tls(url: Url) -> "ClientTls":
    from rpcflow.security.client_context import ClientTls

    if "proxy" in dict(url.query) and url.proxy_key is None:
        raise ValueError(f"{url}: with proxy= it leads to a server behind a proxy, and only sessions go there")
    return ClientTls.of(url)


def _plain(url: Url) -> Url:
    return Url("tcp", url.host, url.port)


def _outer(url: Url) -> "ClientTls | None":
    """TLS to the proxy itself, where it is spoken to by that."""
    from rpcflow.security.client_context import ClientTls

    given = dict(url.query)
    how = given.pop("proxy", "plain")
    if how == "plain":
        return None
    if how != "ca":
        given.pop("ca", None)
        given["pin"] = how
    else:
        given.pop("pin", None)
    given.pop("name", None)
    return ClientTls.of(attrs.evolve(url, query=tuple(given.items())))


def secure_blocking(line: BlockingChannel, tls: "ClientTls", deadline: float | None) -> "BlockingTlsChannel":
    """TLS on a line that is there; it belongs to what is returned then, and stays the caller's if this raises.

    Raises:
        TimeoutError: the deadline passed.
        AuthenticationError, ConnectionLostError, ProtocolError: as of :meth:`TlsStream.handshake`.
    """
    stream = tls.stream()
    buffer = memoryview(bytearray(1 << 14))
    done = False
    while not done:
        try:
            done = stream.handshake()
        finally:
            if outgoing := stream.outgoing():
                line.send([outgoing], deadline)
        if not done:
            stream.feed(buffer[: line.receive_into(buffer, deadline)])
    tls.check(stream)
    return BlockingTlsChannel(line, stream)


class BlockingTlsChannel:
    """A TLS line for a thread, or one that sends and one that receives.

    Args:
        line: it is this channel's from now on.
        stream: its handshake is done.
    """

    def __init__(self, line: BlockingChannel, stream: "TlsStream") -> None:
        from .tls_stream import BATCH_NBYTES

        self._line = line
        self._stream = stream
        self._lock = threading.Lock()  # of the stream; never held while the line is waited for
        self._whole = True
        self._open = True
        self._left = bytearray()
        self._buffer = memoryview(bytearray(BATCH_NBYTES))

    @property
    def socket(self) -> "socket.socket | None":
        """The line's, if it has one."""
        return getattr(self._line, "socket", None)

    def send(self, parts: Sequence[Part], deadline: float | None = None) -> None:
        self._check_open()
        self._whole = False
        encrypted = self._stream.encrypt(parts)
        while True:
            with self._lock:
                batch = next(encrypted, None)
            if batch is None:
                break
            data, last = batch
            if self._left:
                data, self._left = bytes(self._left) + data, bytearray()
            self._whole = last
            self._line.send([data], deadline)
        self._whole = True

    @property
    def sent_whole(self) -> bool:
        """Whether a send that was interrupted had sent all it was given."""
        return self._whole and bool(getattr(self._line, "sent_whole", False))

    def receive_into(self, buffer: memoryview, deadline: float | None = None) -> int:
        while True:
            self._check_open()
            with self._lock:
                count = self._stream.read_into(buffer)
            if count is not None:
                return count
            count = self._line.receive_into(self._buffer, deadline)
            with self._lock:
                self._stream.feed(self._buffer[:count])

    def end_sending(self) -> None:
        """Say goodbye, and go on receiving."""
        if self._open and self._whole and self._lock.acquire(blocking=False):
            try:
                self._stream.end()
                self._left += self._stream.outgoing()
                say_at_once(self.socket, self._left)
            finally:
                self._lock.release()

    def say(self, data: bytes) -> None:
        """Send a few bytes without waiting, between two sends; what the line does not take goes before the next one."""
        if self._open and self._whole and data and self._lock.acquire(blocking=False):
            try:
                for encrypted, _ in self._stream.encrypt([data]):
                    self._left += encrypted
                say_at_once(self.socket, self._left)
            finally:
                self._lock.release()

    def close(self) -> None:
        if self._open:
            self.end_sending()
            self._open = False
            self._line.close()

    def _check_open(self) -> None:
        if not self._open:
            raise ConnectionLostError("the connection is closed")


def say_at_once(sock: "socket.socket | None", data: bytearray) -> None:
    """Put on the line what it takes without waiting, and take it off ``data``."""
    if sock is not None and data and DONTWAIT:
        try:
            del data[: sock.send(data, DONTWAIT | NOSIGNAL)]
        except (OSError, ValueError):
            pass  # gone, or full
