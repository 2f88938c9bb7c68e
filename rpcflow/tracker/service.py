# SPDX-License-Identifier: Apache-2.0
"""The tracker as its program sees it."""

import logging
import os
import secrets
import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final

import anyio

from rpcflow.security.door import Door, DoorLimits
from rpcflow.security.protection import check_reach, protect
from rpcflow.security.rights import Rights
from rpcflow.transports import Url, tcp
from rpcflow.transports.accepting import HANDSHAKE_SECONDS, end_tasks
from rpcflow.transports.descriptors import connection_limit

from .desk import Desk
from .hub import Hub

_MAX_CONNECTIONS: Final = 65_536
_BACKLOG: Final = 1024
_FRAME_SECONDS: Final = 60.0
_MAX_PEER_SECONDS: Final = 86400
_log: Final = logging.getLogger("rpcflow.tracker")


class Tracker:
    """A tracker that lives as long as its ``async with`` block: servers offer devices to it, clients ask it for them.

    Whoever waits is served by priority, first come first served within one; each ten minutes of waiting count as one
    step of priority. What a server offers is gone as soon as its connection is.

    A summary is stock's, and has ``devices`` besides: a list of ``{"key", "addr": [host, port], "state": "free", "busy"
    or "offline", "since": seconds of the Unix epoch, "for": whom}``. A device is busy from when it was handed out until
    its server offers it again, and ``for`` then names the address that asked, after the user if one was given. The
    last 1,000 that went offline are listed.

    Args:
        host: address or name to listen on.
        port, port_end: the first free port of ``[port, port_end)`` is taken; port 0 lets the system choose.
        silent: log only what goes wrong.
        reuse_addr: listen on a port that a tracker has just left.
        timeout: seconds a peer may stop in the middle of the handshake (default 5) or of a message, or leave its
            answers unread (default 60).
        insecure: listen where others than this machine can reach it, unencrypted.
        tls: encrypt: peers come by ``tls://``. Needs the packages of ``rpcflow[security]``, as the next ones do.
        identity: name of our identity, or the file with our key and certificate; ``default`` is made if need be.
        client_ca: file with the certificates of authorities that issue certificates to clients and servers.
        require_client: serve only peers that show a certificate, of ``client_ca`` or from pairing.
        policy: TOML file that says who may offer and ask for which keys.
        peer_timeout: seconds after which a peer that has vanished without a word is given up.

    Raises:
        ValueError: an option that cannot be.
        OSError: no port is free, or the address is not ours (on entering the block).
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 9190,
        port_end: int = 9199,
        silent: bool = False,
        reuse_addr: bool = True,
        timeout: float | None = None,
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
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout={timeout} must be more than 0 seconds")
        if not 0 < peer_timeout <= _MAX_PEER_SECONDS:
            raise ValueError(f"peer_timeout={peer_timeout} must be more than 0 and at most {_MAX_PEER_SECONDS} seconds")
        if host.startswith("unix:"):
            raise ValueError("a tracker tells clients the addresses that servers have for it: it listens on TCP only")
        self._protection = protect(
            tls=tls, identity=identity, client_ca=client_ca, require_client=require_client, policy=policy
        )
        check_reach(host, self._protection, insecure, "listen on 127.0.0.1")
        self.host = host.removeprefix("[").removesuffix("]")
        self.port = port
        self._port_end = port_end
        self._silent = silent
        self._reuse_addr = reuse_addr
        self._handshake_timeout = HANDSHAKE_SECONDS if timeout is None else timeout
        self._timeout = _FRAME_SECONDS if timeout is None else timeout
        self._peer_timeout = peer_timeout
        # Its holder could stop us over the wire. Whoever made us can leave our block instead, so it is told to nobody.
        self._stop_key = f"tracker:{secrets.token_urlsafe(24)}"
        self._stopped = anyio.Event()
        self._hub: Hub | None = None
        self._stack: AsyncExitStack | None = None

    def __repr__(self) -> str:
        doing = "not started"
        if self._hub is not None:
            doing = f"{len(self._hub)} connections, {self._hub.desk.devices} devices"
        return f"<rpcflow.Tracker {self.url}: {doing}>"

    @property
    def url(self) -> Url:
        """Where servers and clients find it."""
        if self._protection.tls is not None:
            return Url("tls", self.host, self.port, query=(("pin", self._protection.pin),))
        return Url("tcp", self.host, self.port)

    async def __aenter__(self) -> "Tracker":
        if self._stack is not None:
            raise RuntimeError("a tracker runs once: make a new one")
        async with AsyncExitStack() as stack:
            listeners = tcp.listen(self.host, self.port, self._port_end, reuse_addr=self._reuse_addr, backlog=_BACKLOG)
            for listener in listeners:
                stack.callback(listener.close)
            self.port = listeners[0].getsockname()[1]
            desk = Desk(self._stop_key, time.monotonic, time.time)
            self._hub = Hub(desk, self._handshake_timeout, self._timeout, Rights(self._protection.policy))
            stack.callback(self._hub.close)
            door = Door(
                listeners,
                self._hub.welcome,
                # The gate, if there is one, has two for each: the line, and its plain end.
                DoorLimits.of(connection_limit(_MAX_CONNECTIONS, each=1 if self._protection.tls is None else 2)),
                _log,
                tls=self._protection.tls,
                handshake_timeout=self._handshake_timeout,
                peer_timeout=self._peer_timeout,
            )
            await door.start()
            stack.push_async_callback(door.aclose)
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
            self._tasks.start_soon(self._run, self._hub, door)
            self._stack = stack.pop_all()
        _log.log(logging.DEBUG if self._silent else logging.INFO, "tracking at %s", self.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        try:
            await end_tasks(self._tasks)
        finally:
            await self._stack.aclose()

    async def _run(self, hub: Hub, door: Door) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub.watch_clock)
            tasks.start_soon(door.run)
            await hub.run()
            tasks.cancel_scope.cancel()
        # Somebody who knows the stop key has stopped us: from now on nobody finds anything here.
        assert self._stack is not None
        _log.info("stopped by a client")
        await self._stack.aclose()
        self._stopped.set()

    async def _wait_stopped(self) -> None:
        """Until a client has stopped it."""
        await self._stopped.wait()
