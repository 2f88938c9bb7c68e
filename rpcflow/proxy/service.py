# SPDX-License-Identifier: Apache-2.0
"""The proxy as its program sees it: listens, brings clients and servers together, carries what they say."""

import logging
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel

from rpcflow.errors import ProtocolError
from rpcflow.protocol.handshake import Answer, encode_answer
from rpcflow.transports import Url, check_transport, tcp
from rpcflow.transports.accepting import HANDSHAKE_SECONDS, accept, end_tasks
from rpcflow.transports.bridge import carry
from rpcflow.transports.descriptors import connection_limit
from rpcflow.transports.sockets import tune
from rpcflow.transports.url import tracker_url

from .pairing import Matched, Pairing, PlainPairing, Refused, TrackedPairing
from .peers import Peer, SocketPeer
from .registration import ProxyRegistration
from .relay import AVAILABLE, SpliceRelay

if TYPE_CHECKING:
    from .web import WebSite

_MAX_CONNECTIONS: Final = 16_384
_MAX_PEER_SECONDS: Final = 86400
_START_SECONDS: Final = 60.0
_log: Final = logging.getLogger("rpcflow.proxy")


class Proxy:
    """A proxy that lives as long as its ``async with`` block: clients and servers both come to it, and it carries
    between those of one key.

    Whoever comes first waits. Neither may send anything behind its key before it is answered: the line of one that
    does while it waits is closed. With a tracker, servers wait for ever, offered there under match keys, and clients
    come with one.

    Args:
        host: address or name to listen on.
        port, port_end: the first free port of ``[port, port_end)`` is taken; port 0 lets the system choose.
        web_port: port for HTTP, with a websocket at ``/ws`` that is as good as a TCP connection; 0 for none. A page
            in a browser is let in only from the proxy's own address. Needs the packages of ``rpcflow[web]``.
        timeout_client, timeout_server: seconds either may wait for the other.
        tracker_addr: ``(host, port)`` or URL of a tracker. Entering the block waits, up to a minute, until the proxy
            is registered there; when the tracker is lost later, the proxy registers again as soon as it is back.
        index_page: file to serve at ``/`` of the web port.
        resource_files: pairs of a folder's name in URLs and a file to serve in it.
        insecure: listen where others than this machine can reach it, unencrypted.
        peer_timeout: seconds after which a peer that has vanished without a word is given up.

    Raises:
        ValueError: an option that cannot be.
        ImportError: ``web_port`` is given and its packages are missing.
        OSError: no port is free, or the address is not ours (on entering the block).
        ConnectionLostError: there is no tracker there (on entering the block).
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 9091,
        port_end: int = 9199,
        web_port: int = 0,
        timeout_client: float = 600,
        timeout_server: float = 600,
        tracker_addr: Any = None,
        index_page: str | None = None,
        resource_files: Sequence[tuple[str, str]] | None = None,
        *,
        insecure: bool = False,
        peer_timeout: float = 30.0,
    ) -> None:
        tcp.check_ports(port, port_end)
        if not isinstance(web_port, int) or not 0 <= web_port <= 65535:
            raise ValueError(f"web_port={web_port!r} must be a whole number from 0 to 65535")
        for name, value in (("timeout_client", timeout_client), ("timeout_server", timeout_server)):
            if not value > 0:
                raise ValueError(f"{name}={value} must be more than 0 seconds")
        if not 0 < peer_timeout <= _MAX_PEER_SECONDS:
            raise ValueError(f"peer_timeout={peer_timeout} must be more than 0 and at most {_MAX_PEER_SECONDS} seconds")
        if host.startswith("unix:"):
            raise ValueError("a proxy is for those who cannot reach each other: it listens on TCP only")
        if not insecure and not tcp.is_loopback(host):
            raise ValueError(
                f"{host!r} can be reached from other machines and the line is not encrypted: "
                "listen on 127.0.0.1, or say insecure=True (--insecure)"
            )
        if (index_page or resource_files) and not web_port:
            raise ValueError("index_page and resource_files are served at web_port, which is not given")
        self.host = host.removeprefix("[").removesuffix("]")
        self.port = port
        self.web_port = web_port
        self._port_end = port_end
        self._peer_timeout = peer_timeout
        self._tracker = None if tracker_addr is None else tracker_url(tracker_addr)
        if self._tracker is not None:
            check_transport(self._tracker.scheme)
        self._pairing: Pairing[Peer] = (
            PlainPairing(timeout_client, timeout_server) if self._tracker is None else TrackedPairing()
        )
        self._site = _site(self.host, web_port, index_page, resource_files) if web_port else None
        self._relay: SpliceRelay | None = None
        self._registration: ProxyRegistration | None = None
        self._connections = 0
        self._strangers = 0
        self._carried = 0
        self._stack: AsyncExitStack | None = None

    def __repr__(self) -> str:
        doing = "not started"
        if self._stack is not None:
            doing = f"{self._connections} connections, {len(self._pairing)} waiting, {self._carried} sessions"
        return f"<rpcflow.Proxy {self.url}: {doing}>"

    @property
    def url(self) -> Url:
        """Where clients and servers find it."""
        return Url("tcp", self.host, self.port)

    async def __aenter__(self) -> "Proxy":
        if self._stack is not None:
            raise RuntimeError("a proxy runs once: make a new one")
        async with AsyncExitStack() as stack:
            listeners = tcp.listen(self.host, self.port, self._port_end)
            for listener in listeners:
                stack.callback(listener.close)
            self.port = listeners[0].getsockname()[1]
            web_listeners = tcp.listen(self.host, self.web_port, self.web_port + 1) if self._site is not None else []
            for listener in web_listeners:
                stack.callback(listener.close)
            self._max_connections = connection_limit(_MAX_CONNECTIONS, each=3)
            if AVAILABLE:
                self._relay = SpliceRelay(self._peer_timeout)
                stack.callback(self._relay.stop)
                self._relay.start()
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
            stack.push_async_callback(end_tasks, self._tasks)
            if self._relay is not None:
                self._tasks.start_soon(self._relay.run)
            for listener in listeners:
                self._tasks.start_soon(accept, listener, partial(self._welcome, web=False), _log)
            for listener in web_listeners:
                self._tasks.start_soon(accept, listener, partial(self._welcome, web=True), _log)
            if self._tracker is not None:
                await self._register(self._tracker)
            self._stack = stack.pop_all()
        _log.info("bringing clients and servers together at %s", self.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        await self._stack.aclose()

    async def _register(self, tracker: Url) -> None:
        assert isinstance(self._pairing, TrackedPairing)
        self._registration = ProxyRegistration(tracker, self.port, self._pairing)
        self._tasks.start_soon(self._registration.run)
        await self._registration.wait_registered(_START_SECONDS)

    # ---- connections

    def _welcome(self, sock: socket.socket, address: Any, web: bool) -> None:
        name = f"{address[0]}:{address[1]}"
        # Strangers get a part of all there is, so that they cannot take the place of those who have said their key.
        if self._connections >= self._max_connections or self._strangers * 4 >= self._max_connections:
            sock.close()
            return
        try:
            sock.setblocking(False)
            tune(sock, self._peer_timeout)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                # It ends lines whose other end lives but reads nothing for so long: behind a long call, others wait.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
        except OSError:
            sock.close()
            return
        self._connections += 1
        self._strangers += 1
        self._tasks.start_soon(self._serve, sock, name, web)

    async def _serve(self, sock: socket.socket, name: str, web: bool) -> None:
        peer: Peer | None = None
        try:
            try:
                if web:
                    assert self._site is not None
                    peer = await self._site.serve(sock, name)
                else:
                    peer = await self._greet(sock, name)
            finally:
                self._strangers -= 1
            if peer is not None:
                await self._meet(peer)
        except Exception:  # one connection's fault must not end the others: the log has it
            _log.exception("serving %s failed", name)
        finally:
            self._connections -= 1
            if peer is not None:
                peer.close()
            sock.close()

    async def _greet(self, sock: socket.socket, name: str) -> Peer | None:
        try:
            with anyio.move_on_after(HANDSHAKE_SECONDS):
                peer = await SocketPeer.greet(sock, name)
                if peer is None:
                    _log.info("%s went before it said its key", name)
                return peer
            _log.info("%s did not say its key", name)
        except ProtocolError as error:
            _log.info("%s: %s", name, error)
        return None

    # ---- meeting

    async def _meet(self, peer: Peer) -> None:
        """See a peer through, to the end of its session if it gets one."""
        partner = self._pairing.partner(peer.side, peer.key)
        if partner is not None and not partner.present():
            self._pairing.leave(partner)  # its own task is about to find out
        arrival = self._pairing.arrive(peer, peer.side, peer.key, anyio.current_time())
        if isinstance(arrival, Matched):
            await self._carry(arrival.peer, peer)
        elif isinstance(arrival, Refused):
            _log.info("%s, a %s, is refused: %s", peer.name, peer.side, arrival.code.name.lower())
            await peer.refuse(encode_answer(arrival.code))
        else:
            if self._registration is not None:
                self._registration.changed()
            await self._wait(peer, arrival.deadline)

    async def _wait(self, peer: Peer, deadline: float | None) -> None:
        try:
            with peer.waiting as scope:
                if deadline is not None:
                    scope.deadline = deadline
                await peer.watch()
        finally:
            self._pairing.leave(peer)
        if peer.matched:
            await peer.done.wait()
        elif scope.cancelled_caught:
            _log.info("%s, a %s, has waited in vain", peer.name, peer.side)
            await peer.refuse(encode_answer(Answer.MISMATCH))
        else:
            _log.info("%s, a %s, went while it waited", peer.name, peer.side)

    async def _carry(self, first: Peer, second: Peer) -> None:
        first.meet()
        self._carried += 1
        _log.info("%s and %s meet under %r", first.name, second.name, first.key)
        try:
            await first.answer(encode_answer(Answer.OK, second.text))
            await second.answer(encode_answer(Answer.OK, first.text))
            near, far = first.plain(), second.plain()
            if self._relay is not None and near is not None and far is not None:
                await self._relay.carry(near, far)
            else:
                await carry(first.channel(), second.channel())
        finally:
            self._carried -= 1
            first.done.set()


def _site(host: str, port: int, index_page: str | None, resource_files: Sequence[tuple[str, str]] | None) -> "WebSite":
    from .web import WebSite  # an extra

    return WebSite(host, port, index_page, resource_files or ())
