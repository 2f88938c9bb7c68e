# SPDX-License-Identifier: Apache-2.0
"""The proxy as its program sees it: listens, brings clients and servers together, carries what they say."""

import logging
import os
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel

from rpcflow.errors import AuthenticationError, PermissionDeniedError, ProtocolError
from rpcflow.protocol.handshake import Answer, KeyText, Side, encode_answer
from rpcflow.security.door import Door, DoorLimits, Visitor
from rpcflow.security.protection import check_reach, protect
from rpcflow.security.rights import Rights
from rpcflow.security.server_context import ALPN, ALPN_WEB
from rpcflow.session.wire_errors import error_packet
from rpcflow.transports import Url, check_transport, check_url, tcp
from rpcflow.transports.accepting import HANDSHAKE_SECONDS, end_tasks
from rpcflow.transports.bridge import carry
from rpcflow.transports.descriptors import connection_limit
from rpcflow.transports.logs import LimitedLog, printable
from rpcflow.transports.url import tracker_url

from .pairing import Matched, Pairing, PlainPairing, Refused, TrackedPairing
from .peers import Peer, SocketPeer
from .registration import ProxyRegistration
from .relay import AVAILABLE, SpliceRelay

if TYPE_CHECKING:
    from rpcflow.security.policy import Client

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
        tls: encrypt the lines to us: clients and servers come by ``tls://``, at the web port by ``wss://``. What a
            server that ends TLS itself and its clients say to each other we cannot read either way. Needs the packages
            of ``rpcflow[security]``, as the next ones do.
        identity: name of our identity, or the file with our key and certificate; ``default`` is made if need be.
        client_ca: file with the certificates of authorities that issue certificates to clients and servers.
        require_client: serve only peers that show a certificate, of ``client_ca`` or from pairing.
        policy: TOML file that says who may use which keys.
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
        tls: bool = False,
        identity: str | os.PathLike[str] | None = None,
        client_ca: str | os.PathLike[str] | None = None,
        require_client: bool = False,
        policy: str | os.PathLike[str] | None = None,
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
        self._protection = protect(
            tls=tls, identity=identity, client_ca=client_ca, require_client=require_client, policy=policy
        )
        check_reach(host, self._protection, insecure, "listen on 127.0.0.1")
        if web_port and require_client:
            raise ValueError("web_port is for those who come by HTTP and show no certificate: not with require_client")
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
            check_url(self._tracker)
        self._pairing: Pairing[Peer] = (
            PlainPairing(timeout_client, timeout_server) if self._tracker is None else TrackedPairing()
        )
        self._log = LimitedLog(_log)
        self._site = _site(self.host, web_port, index_page, resource_files, self._log) if web_port else None
        self._relay: SpliceRelay | None = None
        self._registration: ProxyRegistration | None = None
        self._rights = Rights(self._protection.policy)
        self._connections = 0
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
        if self._protection.tls is not None:
            return Url("tls", self.host, self.port, query=(("pin", self._protection.pin),))
        return Url("tcp", self.host, self.port)

    async def __aenter__(self) -> "Proxy":
        if self._stack is not None:
            raise RuntimeError("a proxy runs once: make a new one")
        async with AsyncExitStack() as stack:
            stack.callback(self._log.flush)
            listeners = tcp.listen(self.host, self.port, self._port_end)
            for listener in listeners:
                stack.callback(listener.close)
            self.port = listeners[0].getsockname()[1]
            web_listeners = tcp.listen(self.host, self.web_port, self.web_port + 1) if self._site is not None else []
            for listener in web_listeners:
                stack.callback(listener.close)
            self._rpc_listeners = len(listeners)
            door = Door(
                [*listeners, *web_listeners],
                self._welcome,
                DoorLimits.of(connection_limit(_MAX_CONNECTIONS, each=3)),
                _log,
                tls=self._protection.tls,
                alpns=[ALPN] * len(listeners) + [ALPN_WEB] * len(web_listeners),
                handshake_timeout=HANDSHAKE_SECONDS,
                peer_timeout=self._peer_timeout,
                user_timeout=False,  # behind a long call, a client that lives reads nothing and others wait
            )
            await door.start()
            stack.push_async_callback(door.aclose)
            if AVAILABLE:
                self._relay = SpliceRelay(self._peer_timeout)
                stack.callback(self._relay.stop)
                self._relay.start()
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
            stack.push_async_callback(end_tasks, self._tasks)
            if self._relay is not None:
                self._tasks.start_soon(self._relay.run)
            self._tasks.start_soon(door.run)
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
        self._registration = ProxyRegistration(tracker, self.port, self._pairing, self._protection.pin)
        self._tasks.start_soon(self._registration.run)
        await self._registration.wait_registered(_START_SECONDS)

    # ---- connections

    def _welcome(self, sock: socket.socket, visitor: Visitor) -> None:
        self._connections += 1
        self._tasks.start_soon(self._serve, sock, visitor)

    async def _serve(self, sock: socket.socket, visitor: Visitor) -> None:
        name = str(visitor)
        peer: Peer | None = None
        try:
            if visitor.listener >= self._rpc_listeners:
                assert self._site is not None
                peer = await self._site.serve(sock, name)
            else:
                peer = await self._greet(sock, name)
            if peer is not None and await self._allowed(peer, visitor):
                visitor.known()
                peer.carry = visitor.carry
                await self._meet(peer)
        except Exception:  # one connection's fault must not end the others: the log has it
            self._log.exception("failed", "serving %s failed", name)
        finally:
            self._connections -= 1
            if peer is not None:
                peer.close()
            sock.close()
            visitor.leave()

    async def _allowed(self, peer: Peer, visitor: Visitor) -> bool:
        """Whether a peer may use its key here; if not, it has been told. A client is told in words, as by a server."""
        try:
            client = self._rights.identify(visitor, peer.token)
            if client is not None:
                _check_key(client, peer, tracked=self._tracker is not None)
        except (AuthenticationError, PermissionDeniedError) as error:
            self._log.warning("refused", "%s is refused: %s: %s", peer.name, type(error).__name__, error)
            words = encode_answer(Answer.MISMATCH)
            if peer.side is Side.CLIENT:
                ours = visitor.encrypted or bool(peer.token)
                words = encode_answer(Answer.OK, str(KeyText(Side.SERVER, peer.key))) + error_packet(error, ours)
            await peer.refuse(words)
            return False
        return True

    async def _greet(self, sock: socket.socket, name: str) -> Peer | None:
        try:
            with anyio.move_on_after(HANDSHAKE_SECONDS):
                peer = await SocketPeer.greet(sock, name)
                if peer is None:
                    self._log.info("silent", "%s went before it said its key", name)
                return peer
            self._log.info("silent", "%s did not say its key", name)
        except ProtocolError as error:
            self._log.info("protocol", "%s: %s", name, error)
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
            self._log.info("answers", "%s, a %s, is refused: %s", peer.name, peer.side, arrival.code.name.lower())
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
            self._log.info("waiting", "%s, a %s, has waited in vain", peer.name, peer.side)
            await peer.refuse(encode_answer(Answer.MISMATCH))
        else:
            self._log.info("waiting", "%s, a %s, went while it waited", peer.name, peer.side)

    async def _carry(self, first: Peer, second: Peer) -> None:
        first.meet()
        first.carry()
        second.carry()
        self._carried += 1
        _log.info("%s and %s meet under %s", first.name, second.name, printable(first.key))
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


def _check_key(client: "Client", peer: Peer, tracked: bool) -> None:
    """Whether a peer may use its key, as a client's or as a server's. With a tracker clients come with match keys,
    which it has given to those who may.

    Raises:
        PermissionDeniedError: it may not.
    """
    if peer.side is Side.SERVER:
        denied = "" if client.policy.allows_offer(peer.key) else "offer a server under"
    else:
        denied = "" if tracked or client.policy.allows_key(peer.key) else "use"
    if denied:
        raise PermissionDeniedError(f"the proxy's policy does not let {client.name!r} {denied} the key {peer.key!r}")


def _site(
    host: str, port: int, index_page: str | None, resource_files: Sequence[tuple[str, str]] | None, log: LimitedLog
) -> "WebSite":
    from .web import WebSite  # an extra

    return WebSite(host, port, index_page, resource_files or (), log)
