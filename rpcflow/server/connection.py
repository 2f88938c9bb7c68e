# SPDX-License-Identifier: Apache-2.0
"""One connection at the supervisor, until it has its turn: who it is, its key, its wait."""

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import anyio
import attrs

from rpcflow.errors import AuthenticationError, PermissionDeniedError, ProtocolError, RPCError
from rpcflow.protocol.handshake import Answer, KeyText, Side, encode_answer
from rpcflow.security.door import Visitor
from rpcflow.security.rights import Right
from rpcflow.security.server_context import ALPN_PAIR
from rpcflow.session.wire_errors import error_packet
from rpcflow.transports.accepting import Introduction, linger, read_introduction, receiving, say
from rpcflow.transports.logs import printable

from .session import WorkerSession

if TYPE_CHECKING:
    from .queue import Waiter
    from .supervisor import Server

_log: Final = logging.getLogger("rpcflow.server")


@attrs.frozen
class _Admitted:
    """Somebody who may come in. ``leave``: to be called when it goes."""

    key: KeyText
    right: Right
    said: Introduction
    leave: Callable[[], None]


class Connection:
    """A stranger, until its key is known.

    Args:
        server: whose it is.
        sock: not in blocking mode; closed at the end.
        visitor: who it is.
    """

    def __init__(self, server: "Server", sock: socket.socket, visitor: Visitor) -> None:
        self._server = server
        self._sock = sock
        self._visitor = visitor
        self._log = server._limited_log

    async def run(self, waiter: "Waiter | None" = None) -> None:
        """Serve it to its end and close it.

        Args:
            waiter: its turn, where a proxy has brought it; its key has been asked for there then.
        """
        try:
            if self._visitor.alpn == ALPN_PAIR:
                await self._server._pair(self._sock, self._visitor)
                return
            admitted = await self._admitted(brought=waiter is not None)
            if admitted is None:
                return
            if waiter is None:
                waiter = self._server._queue.join(self._far)
            try:
                if not await self._turn(waiter):
                    self._log.info("waiting", "%s went while it waited", self._visitor)
                    return
                try:
                    right = self._renewed(admitted)
                except (AuthenticationError, PermissionDeniedError) as error:
                    await self._refuse(error, admitted.said)
                    return
                number = self._server._next_number()
                who = f" ({printable(right.grant.who)})" if right.grant.who else ""
                _log.info("session %d: %s%s", number, self._visitor, who)
                self._visitor.carry()
                budget = right.budget(admitted.key.timeout)
                await WorkerSession(self._server, number, self._sock, budget, right.grant).run()
            finally:
                waiter.done()
                admitted.leave()
            await linger(self._sock)
        finally:
            self._sock.close()
            self._visitor.leave()

    @property
    def _far(self) -> str:
        """The other machine; empty if it is this one."""
        return "" if self._visitor.loopback else self._visitor.host

    def _renewed(self, admitted: _Admitted) -> Right:
        """What it may do by now: it may have waited for long."""
        server = self._server
        return server._rights.renew(admitted.right, self._visitor, admitted.said.token, server._key)

    async def _turn(self, waiter: "Waiter") -> bool:
        if waiter.served:
            return True
        watcher = self._server._watcher
        watcher.watch(self._sock, waiter.leave)
        try:
            return await waiter.wait()
        finally:
            watcher.unwatch(self._sock)

    async def _admitted(self, brought: bool) -> _Admitted | None:
        """What it said, and what is to be called when it leaves; None if it may not come in."""
        said = await self._introduced()
        if said is None:
            return None
        try:
            client = self._server._rights.identify(self._visitor, said.token)
        except AuthenticationError as error:
            await self._refuse(error, said)
            return None
        key = None
        try:
            key = KeyText.parse(said.hello.text or "")
        except ProtocolError as error:
            self._log.info("key", "%s: %s", self._visitor, error)
        leave = None
        if key is not None and key.side is Side.CLIENT:
            leave = _nothing if brought else self._server._admit(key.key)
            if leave is None:
                self._log.info("key", "%s asked for another key", self._visitor)
        if key is None or leave is None:
            say(self._sock, encode_answer(Answer.MISMATCH))
            await linger(self._sock)
            return None
        try:
            right = self._server._rights.allow(client, self._server._key)
        except PermissionDeniedError as error:
            leave()
            await self._refuse(error, said)
            return None
        self._visitor.known()
        if self._server._queue.full(self._far) and not brought:
            waiting = self._server._queue.waiting
            self._log.warning("turned away", "%s is turned away: %d wait already", self._visitor, waiting)
            leave()
            right.leave()
            return None

        def gone() -> None:
            leave()
            right.leave()

        return _Admitted(key, right, said, gone)

    async def _introduced(self) -> Introduction | None:
        said = None
        try:
            with anyio.move_on_after(self._server._handshake_timeout):
                said = await read_introduction(receiving(self._sock))
            if said is None:
                self._log.info("silent", "%s did not say its key", self._visitor)
        except ProtocolError as error:
            self._log.info("protocol", "%s: %s", self._visitor, error)
        return said

    async def _refuse(self, error: RPCError, said: Introduction) -> None:
        """Tell it why, in answer to its first request. A client that has shown credentials, or speaks TLS, is ours and
        reads more than a message."""
        self._log.warning("refused", "%s is refused: %s: %s", self._visitor, type(error).__name__, error)
        ours = self._visitor.encrypted or bool(said.token)
        say(self._sock, self._server._greeting() + error_packet(error, ours))
        await linger(self._sock)


def _nothing() -> None:
    pass
