# SPDX-License-Identifier: Apache-2.0
"""``tls://host:port``: TLS 1.3 over TCP, or from end to end through a proxy.

Needs the packages of ``rpcflow[security]``, which are imported when the first connection is made.
"""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from rpcflow.errors import ConnectionLostError, RPCError
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

HANDSHAKE_SECONDS: Final = 30.0
"""TLS is done with by then, however busy the other end is with sessions."""
WHY_SECONDS: Final = 1.0
_LOCK_SECONDS: Final = 0.1
"""For a lock that is never held while a line is waited for; but whoever was interrupted may hold it himself."""
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

        tls, outer, token = _tls(url), _outer(url), credentials(url)
        line: AsyncChannel = await _tcp.connect(_plain(url), poll=poll)
        try:
            if outer is not None:
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
        tls, outer, token = _tls(url), _outer(url), credentials(url)
        line: BlockingChannel = _tcp.connect_blocking(_plain(url), deadline=deadline, poll=poll)
        try:
            if outer is not None:
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

    outer = proxy_url(url) if "proxy" in dict(url.query) else None
    return ClientTls.of(outer) if outer is not None and outer.scheme == "tls" else None


def proxy_url(url: Url) -> Url:
    """The proxy itself, where an address is that of a server behind one."""
    given = dict(url.query)
    how = given.pop("proxy")
    if how == "plain":
        return _plain(url)
    given.pop("name", None)
    given.pop("pin", None)
    if how != "ca":
        given.pop("ca", None)
        given["pin"] = how
    return Url("tls", url.host, url.port, query=tuple(given.items()))


def secure_blocking(line: BlockingChannel, tls: "ClientTls", deadline: float | None) -> "BlockingTlsChannel":
    """TLS on a line that is there; it belongs to what is returned then, and stays the caller's if this raises.

    Raises:
        TimeoutError: the deadline passed.
        AuthenticationError, ConnectionLostError, ProtocolError: as of :meth:`TlsStream.handshake`.
    """
    stream = tls.stream()
    buffer = memoryview(bytearray(1 << 14))
    bound = time.monotonic() + HANDSHAKE_SECONDS
    until = bound if deadline is None else min(bound, deadline)
    try:
        while not said_on(line, stream, stream.handshake):
            if outgoing := stream.outgoing():
                line.send([outgoing], until)
            try:
                stream.feed(buffer[: line.receive_into(buffer, until)])
            except ConnectionLostError as error:
                raise broke_off(tls.where, error) from error
        tls.check(stream)  # before it is shown who we are
        line.send([stream.outgoing()], until)
    except TimeoutError as error:
        if isinstance(error, RPCError) or until != bound:
            raise
        raise silent(tls.where) from None
    return BlockingTlsChannel(line, stream)


def said_on(line: Any, stream: "TlsStream", step: Callable[[], bool]) -> bool:
    """A step of the handshake; where it goes wrong, the other end is told why if the line takes that at once."""
    try:
        return step()
    except RPCError:
        say_at_once(line, bytearray(stream.outgoing()))
        raise


def broke_off(where: str, error: ConnectionLostError) -> ConnectionLostError:
    """The line went during the handshake."""
    return ConnectionLostError(
        f"{where} broke the TLS handshake off ({error}): if it does not speak TLS, its scheme is tcp:// or ws://"
    )


def silent(where: str) -> ConnectionLostError:
    """Nothing has come of the handshake."""
    return ConnectionLostError(f"{where} has not answered the TLS handshake within {HANDSHAKE_SECONDS:g} s")


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
        self._receiving = threading.Lock()  # what comes off the line must get into the stream in order
        self._whole = True
        self._last = True
        self._open = True
        self._left = bytearray()
        self._buffer = memoryview(bytearray(BATCH_NBYTES))

    @property
    def socket(self) -> "socket.socket | None":
        """The line's, if it has one."""
        return getattr(self._line, "socket", None)

    def send(self, parts: Sequence[Part], deadline: float | None = None) -> None:
        self._check_open()
        if not self._whole:
            raise ConnectionLostError("the connection was lost: something was sent in part only")
        self._whole = self._last = False
        encrypted = self._stream.encrypt(parts)
        try:
            while not self._last:
                with self._lock:
                    batch = next(encrypted, None)
                    if batch is None:
                        break  # nothing was to be sent
                    data, last = batch
                    if self._left:
                        data, self._left = bytes(self._left) + data, bytearray()
                self._last = last
                try:
                    self._line.send([data], deadline)
                except ConnectionLostError as error:
                    raise self._why(error) from error.__cause__
        except RPCError:
            raise
        except BaseException:  # KeyboardInterrupt, say, when all was said
            self._whole = self.sent_whole
            raise
        self._last = self._whole = True

    @property
    def sent_whole(self) -> bool:
        """Whether a send that was interrupted had sent all it was given."""
        return self._last and bool(getattr(self._line, "sent_whole", False))

    def receive_into(self, buffer: memoryview, deadline: float | None = None) -> int:
        self._last = False  # it is not to be taken for that of a later send which is interrupted before it begins
        while True:
            self._check_open()
            with self._lock:
                count = self._stream.read_into(buffer)
            if count is not None:
                return count
            with self._receiving:
                count = self._line.receive_into(self._buffer, deadline)
                with self._lock:
                    self._stream.feed(self._buffer[:count])

    def end_sending(self) -> None:
        """Say goodbye, and go on receiving."""
        if self._open and self._whole and self._lock.acquire(timeout=_LOCK_SECONDS):
            try:
                if self._whole:
                    self._stream.end()
                    self._left += self._stream.outgoing()
                    say_at_once(self._line, self._left)
            finally:
                self._lock.release()

    def say(self, data: bytes) -> None:
        """Send a few bytes without waiting, between two sends; what the line does not take goes before the next one."""
        if self._open and data and self._lock.acquire(timeout=_LOCK_SECONDS):
            try:
                for encrypted, _ in self._stream.encrypt([data]):
                    self._left += encrypted
                if self._whole:
                    say_at_once(self._line, self._left)
            except ConnectionLostError:
                pass  # whoever reads or writes next finds out
            finally:
                self._lock.release()

    def close(self) -> None:
        if self._open:
            self.end_sending()
            self._open = False
            self._line.close()

    def _why(self, error: ConnectionLostError) -> Exception:
        """In TLS 1.3 a refusal of our certificate may come when we are at sending already, and the line goes then."""
        if not self._open or not self._receiving.acquire(blocking=False):
            return error  # or who receives is told
        try:
            deadline = time.monotonic() + WHY_SECONDS
            count = 1
            while count:
                count = self._line.receive_into(self._buffer, deadline)
                with self._lock:
                    self._stream.feed(self._buffer[:count])
        except (RPCError, TimeoutError):
            pass  # that was all
        finally:
            self._receiving.release()
        with self._lock:
            return self._stream.refusal() or error

    def _check_open(self) -> None:
        if not self._open:
            raise ConnectionLostError("the connection is closed")


def say_at_once(line: Any, data: bytearray) -> None:
    """Put on the line what it takes without waiting, and take it off ``data``."""
    say = getattr(line, "say", None)
    if say is not None:  # there is more below than a socket, TLS to a proxy, say
        say(bytes(data))
        data.clear()
        return
    sock = getattr(line, "socket", None)
    if sock is not None and data and DONTWAIT:
        try:
            del data[: sock.send(data, DONTWAIT | NOSIGNAL)]
        except (OSError, ValueError):
            pass  # gone, or full
