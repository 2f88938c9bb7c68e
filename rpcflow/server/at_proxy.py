# SPDX-License-Identifier: Apache-2.0
"""A server that does not listen: it waits at a proxy, which brings it one client after the other.

The line to the proxy becomes the client's line. For each free turn there is one; but only one waits there at a time,
because a proxy takes a second one under the same key for an impostor.
"""

import logging
import socket
from typing import TYPE_CHECKING, Final

import anyio

from rpcflow.errors import (
    AuthenticationError,
    ConnectionLostError,
    DuplicateKeyError,
    KeyMismatchError,
    PermissionDeniedError,
    ProtocolError,
    RPCError,
)
from rpcflow.protocol.handshake import KeyText, Side
from rpcflow.security.door import Visitor
from rpcflow.session.wire_errors import error_packet
from rpcflow.tracker.retrying import Retrying
from rpcflow.transports import AsyncChannel, Url, find_transport
from rpcflow.transports.accepting import linger, say
from rpcflow.transports.async_sockets import AsyncSocketChannel
from rpcflow.transports.bridge import bridge
from rpcflow.transports.greeting import greet_async
from rpcflow.transports.sockets import tune

from .connection import Connection
from .session import WorkerSession

if TYPE_CHECKING:
    from .queue import Waiter
    from .supervisor import Server

CONNECT_SECONDS: Final = 30.0
_log: Final = logging.getLogger("rpcflow.server")


class ProxyDialer:
    """Waits at a proxy for clients, and serves them. Run :meth:`run` in a task.

    Args:
        server: whose turns they get.
        proxy: where it is.
        key: what clients ask the proxy for.
    """

    def __init__(self, server: "Server", proxy: Url, key: str) -> None:
        self._server = server
        self._proxy = proxy
        self._key = KeyText(Side.SERVER, key, pin=server._protection.pin)
        self._retrying = Retrying(f"not waiting at the proxy {proxy}", _log)
        self.waiting = anyio.Event()

    @property
    def failure(self) -> str:
        """Why the last try failed."""
        return self._retrying.failure

    async def run(self) -> None:
        """Until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                waiter = self._server._queue.join()
                try:
                    await waiter.wait()
                    channel, key = await self._paired()
                except BaseException:
                    waiter.done()
                    raise
                tasks.start_soon(self._serve, channel, key, waiter)

    async def _paired(self) -> tuple[AsyncChannel, KeyText]:
        """A line on which a client has been brought, and what it said."""
        while True:
            self._retrying.begin()
            try:
                return await self._dial()
            except DuplicateKeyError:
                why = f"another server waits there under the key {self._key.key!r}"
            except KeyMismatchError:
                why = "nobody came in the time it allows for that"
            except (RPCError, OSError) as error:
                why = str(error)
            await self._retrying.failed(why)

    async def _dial(self) -> tuple[AsyncChannel, KeyText]:
        channel = await self._connect()
        try:
            if isinstance(channel, AsyncSocketChannel):
                tune(channel.socket, self._server._peer_timeout)
            self.waiting.set()
            text = await greet_async(channel, self._key)
            key = KeyText.parse(text)
            if key.side is not Side.CLIENT:
                raise ProtocolError("the proxy has brought no client")
        except BaseException:
            channel.close()
            raise
        self._retrying.succeeded(steady=True)
        return channel, key

    async def _connect(self) -> AsyncChannel:
        with anyio.move_on_after(CONNECT_SECONDS):
            return await find_transport(self._proxy.scheme).connect(self._proxy, poll=False)
        raise ConnectionLostError(f"{self._proxy} has not answered within {CONNECT_SECONDS:g} s")

    async def _serve(self, channel: AsyncChannel, key: KeyText, waiter: "Waiter") -> None:
        """A whole session; one session's fault must not end the others: the log has it."""
        try:
            if isinstance(channel, AsyncSocketChannel):
                await self._serve_socket(channel.socket, key, waiter)
            else:
                await self._serve_channel(channel, key, waiter)
        except AuthenticationError as error:
            self._server._limited_log.warning("refused", "a client of the proxy is refused: %s", error)
        except Exception:
            self._server._limited_log.exception("failed", "serving a client of the proxy failed")
        finally:
            waiter.done()
            channel.close()

    async def _serve_socket(self, sock: socket.socket, key: KeyText, waiter: "Waiter") -> None:
        if self._server._protection.tls is not None:
            await self._serve_secured(sock, waiter)
            return
        try:
            client = self._server._rights.identify(Visitor(self._proxy.host, self._proxy.port), "")
            right = self._server._rights.allow(client, self._key.key)
        except (AuthenticationError, PermissionDeniedError) as error:
            self._server._limited_log.warning("refused", "a client of the proxy is refused: %s", error)
            say(sock, error_packet(error, structured=False))
            await linger(sock)
            return
        number = self._server._next_number()
        _log.info("session %d: by way of the proxy", number)
        try:
            await WorkerSession(self._server, number, sock, right.budget(key.timeout), right.grant).run()
        finally:
            waiter.done()
            right.leave()
        await linger(sock)

    async def _serve_secured(self, sock: socket.socket, waiter: "Waiter") -> None:
        """TLS from end to end: the proxy has brought us bytes that it cannot read. Key and budget are said again inside
        it, where nobody can change them."""
        plain, visitor = await self._secured(sock)
        try:
            await Connection(self._server, plain, visitor).run(waiter)
        finally:
            plain.close()

    async def _secured(self, sock: socket.socket) -> tuple[socket.socket, Visitor]:
        with anyio.move_on_after(self._server._handshake_timeout):
            return await self._server._door.secure(sock, self._proxy.host, self._proxy.port)
        raise AuthenticationError("a client of the proxy did not finish the TLS handshake in time")

    async def _serve_channel(self, channel: AsyncChannel, key: KeyText, waiter: "Waiter") -> None:
        """A worker's process knows sockets only."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(bridge, channel, theirs)
                await self._serve_socket(ours, key, waiter)
                ours.close()
