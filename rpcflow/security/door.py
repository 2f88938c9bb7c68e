# SPDX-License-Identifier: Apache-2.0
"""How a service lets strangers in: by plain sockets, or through a gate that ends TLS; as many as it can bear."""

import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio
import attrs

from rpcflow.errors import AuthenticationError, RPCError
from rpcflow.transports.accepting import HANDSHAKE_SECONDS, accept
from rpcflow.transports.admission import Admission, Ticket
from rpcflow.transports.sockets import tune

from .gate_config import GateConfig
from .gatekeeping import GateProcess
from .server_context import ALPN, TlsSettings

_REPORT_SECONDS: Final = 5.0
_RESTARTS: Final = 3


@attrs.define(eq=False)
class Visitor:
    """Who is at the other end of a line.

    Args:
        host, port: its address; an empty host for a Unix socket.
        listener: number of the listening socket it came by; -1 if it came another way.
        encrypted: whether nobody between us can read or change what is said.
        certificate, subject: pin and common name of the certificate it has shown, if it has.
        refused: why it is not to be served, if that is known already.
        alpn: what it wants to speak, where it came by TLS.
    """

    host: str
    port: int
    listener: int = -1
    encrypted: bool = False
    certificate: str | None = None
    subject: str | None = None
    refused: str | None = None
    alpn: str | None = None
    _number: int | None = None
    _gate: GateProcess | None = None
    _ticket: Ticket | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.host else "a local client"

    @property
    def private(self) -> bool:
        """Whether nobody can listen in: TLS, or a line that does not leave this machine."""
        return self.encrypted or self.loopback

    @property
    def loopback(self) -> bool:
        """Whether its line does not leave this machine."""
        if not self.host:
            return True
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False

    def known(self) -> None:
        """It is a stranger no more."""
        if self._ticket is not None:
            self._ticket.known()
        if self._gate is not None and self._number is not None:
            self._gate.tell("known", self._number)

    def carry(self) -> None:
        """A session begins on this line."""
        if self._gate is not None and self._number is not None:
            self._gate.tell("carry", self._number)

    def leave(self) -> None:
        """Its line is closed."""
        if self._ticket is not None:
            self._ticket.leave()


Welcome = Callable[[socket.socket, Visitor], None]


@attrs.frozen
class DoorLimits:
    """How many connections a service bears: in all, of strangers, and of one address."""

    most: int
    strangers: int
    per_address: int
    strangers_per_address: int

    @classmethod
    def of(cls, most: int) -> "DoorLimits":
        """The usual shares: strangers get half of all places, one address half of those, and three in four in all: all
        clients of a lab may come by one address."""
        half = max(8, most // 2)
        return cls(most, half, max(8, most * 3 // 4), max(4, half // 2))


class Door:
    """The listening side of a service. Enter it with :meth:`start`, run :meth:`run` in a task, :meth:`aclose` it.

    Args:
        listeners: listening sockets, not in blocking mode.
        welcome: takes each line; it must not raise.
        limits: how many there may be.
        log: the service's.
        tls: for TLS; None for plain lines.
        alpns: what is spoken at each listener, where that is not rpcflow's own.
        handshake_timeout: seconds until TLS must stand.
        peer_timeout: seconds after which a peer that has vanished without a word is given up.
        user_timeout: whether a peer that reads nothing for so long is given up too.
        poll: None has sessions' carriers poll adaptively before they sleep; False never.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        welcome: Welcome,
        limits: DoorLimits,
        log: logging.Logger,
        *,
        tls: TlsSettings | None = None,
        alpns: Sequence[str] | None = None,
        handshake_timeout: float = HANDSHAKE_SECONDS,
        peer_timeout: float = 30.0,
        user_timeout: bool = True,
        poll: bool | None = False,
    ) -> None:
        self._listeners = listeners
        self._welcome = welcome
        self._log = log
        self._peer_timeout = peer_timeout
        self._user_timeout = user_timeout
        self._admission = Admission(**attrs.asdict(limits))
        self._shed = anyio.Event()
        self._gate: GateProcess | None = None
        self._config: GateConfig | None = None
        if tls is not None:
            spoken = alpns or [ALPN] * len(listeners)
            self._config = GateConfig(
                tls,
                tuple((sock.fileno(), alpn) for sock, alpn in zip(listeners, spoken, strict=True)),
                handshake_timeout,
                peer_timeout,
                user_timeout,
                poll,
                **attrs.asdict(limits),
            )

    async def start(self) -> None:
        """Be ready to let in.

        Raises:
            GateError: TLS cannot be served.
        """
        if self._config is not None:
            self._gate = await GateProcess.start(self._config, self._taken, self._log)

    async def run(self) -> None:
        """Let in until cancelled."""
        if self._gate is None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._report)
                for i, listener in enumerate(self._listeners):

                    def knock(sock: socket.socket, address: Any, i: int = i) -> None:
                        self._knock(sock, address, i)

                    tasks.start_soon(accept, listener, knock, self._log)
        while (gate := self._gate) is not None:
            await gate.run()
            self._log.error("the gate has died and is started again")
            await gate.aclose()
            await self._restart()

    async def aclose(self) -> None:
        """Close what it has started; the listening sockets are their owner's."""
        if self._gate is not None:
            await self._gate.aclose()

    async def secure(self, sock: socket.socket, host: str, port: int) -> tuple[socket.socket, Visitor]:
        """TLS on a line that came another way, by way of a proxy, say: the plain line, and who is there.

        Raises:
            AuthenticationError: the other end cannot or will not.
        """
        if self._gate is None:
            raise AuthenticationError("TLS is not served here")
        message, plain = await self._gate.secure(sock, host, port)
        return plain, self._visitor(message)

    async def _restart(self) -> None:
        assert self._config is not None
        for left in reversed(range(_RESTARTS)):
            try:
                self._gate = await GateProcess.start(self._config, self._taken, self._log)
            except (RPCError, OSError):
                if not left:
                    raise
            else:
                return

    # ---- lines

    def _taken(self, message: dict[str, Any], sock: socket.socket) -> None:
        self._welcome(sock, self._visitor(message))

    def _visitor(self, message: dict[str, Any]) -> Visitor:
        host, port = message["address"]
        return Visitor(
            host,
            port,
            message["listener"],
            True,
            message["certificate"],
            message["subject"],
            message["refused"],
            message["alpn"],
            message["line"],
            self._gate,
        )

    def _knock(self, sock: socket.socket, address: Any, listener: int) -> None:
        host, port = (address[0], address[1]) if isinstance(address, tuple) else ("", 0)

        def drop() -> None:
            self._shed.set()
            # The line ends for whoever reads from it, and is closed there.
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has gone by itself

        ticket = self._admission.enter(host, drop)
        if ticket is None:
            sock.close()
            self._shed.set()
            return
        try:
            sock.setblocking(False)
            tune(sock, self._peer_timeout, self._user_timeout)
        except OSError:
            sock.close()
            ticket.leave()
            return
        self._welcome(sock, Visitor(host, port, listener, ticket=ticket))

    async def _report(self) -> None:
        """Say who has been turned away, a line each few seconds at the most."""
        while True:
            await self._shed.wait()
            await anyio.sleep(_REPORT_SECONDS)
            self._shed = anyio.Event()
            report = self._admission.report()
            if report:
                self._log.warning("%s", report)
