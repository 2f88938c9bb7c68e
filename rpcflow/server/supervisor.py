# SPDX-License-Identifier: Apache-2.0
"""The server as its program sees it: listens, hands out turns, and takes everything with it when it ends."""

import logging
import os
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import anyio

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.handshake import Answer, KeyText, Side, check_key, encode_answer
from rpcflow.security.door import Door, DoorLimits, Visitor
from rpcflow.security.protection import protect
from rpcflow.security.rights import Rights
from rpcflow.transports import Url
from rpcflow.transports import tcp as tcp_transport
from rpcflow.transports import unix as unix_transport
from rpcflow.transports.accepting import HANDSHAKE_SECONDS, end_tasks
from rpcflow.transports.async_sockets import AsyncSocketChannel
from rpcflow.transports.logs import LimitedLog

from .at_proxy import ProxyDialer
from .config import WorkerConfig
from .connection import Connection
from .launching import LauncherProcess
from .places import listening_path, proxy_url, registering_url
from .queue import TurnQueue
from .registration import Registration
from .sandbox import check_grants
from .watch import GoneWatcher

if TYPE_CHECKING:
    from rpcflow.security.pairing_desk import PairingDesk

_MAX_CONNECTIONS: Final = 1024
_PACKET_SECONDS: Final = 60.0
_MAX_PEER_SECONDS: Final = 86400
_FOUND_SECONDS: Final = 60.0
"""How long a server that starts waits for its tracker or proxy; stock's time."""
_log: Final = logging.getLogger("rpcflow.server")


class Server:
    """An RPC server that lives as long as its ``async with`` block.

    Each session has a process of its own, forked from a warm template (spawned with ``no_fork``), with its own folder.
    Whatever a session started is gone when it ends; whatever the server started is gone when the block does, within
    two seconds, also when cancelled.

    Args:
        host: address or name to listen on; ``unix:/path`` for a Unix socket.
        port, port_end: the first free port of ``[port, port_end)`` is taken; port 0 lets the system choose.
        is_proxy: do not listen, but wait for clients at the proxy that ``host`` and ``port`` name (``host`` may be a
            URL, such as ``ws://host:port/ws``). The proxy does the registering where it has a tracker.
        tracker_addr: ``(host, port)`` or URL of a tracker to register with. Entering the block waits until that is
            done, for a minute; a tracker that goes later is waited for, and its coming back noticed within 5 s.
        key: what clients must ask for, of the tracker if there is one; no white space.
        custom_addr: the host that the tracker tells clients; None for the address it sees us come from.
        load_library: shared libraries to load before modules, separated by colons, found from the current folder.
        silent: log only what goes wrong.
        no_fork: spawn a fresh interpreter for each session.
        server_init_callback: called once before sessions are forked (closures may be given); in each session's
            process if it leaves threads or a device context behind.
        reuse_addr: listen on a port that a server has just left.
        timeout: seconds a client may stop in the middle of the handshake (default 5) or of a packet (default 60).
        max_sessions: how many sessions may run at a time; up to 128 more clients wait.
        imports: modules to import, which register functions.
        allow_path: folders that the sessions' paths may lie in besides their own.
        insecure: listen where others than this machine can reach it, unencrypted.
        tls: encrypt: clients come by ``tls://``. Needs the packages of ``rpcflow[security]``, as the next ones do.
        identity: name of our identity, or the file with our key and certificate; ``default`` is made if need be.
        client_ca: file with the certificates of authorities that issue certificates to clients, or the name of one of
            ours.
        require_client: serve only clients that show a certificate, of ``client_ca`` or from pairing.
        policy: TOML file that says who may do what.
        pair: let a new client pair by a one-time code, which is printed to standard error; serve only paired ones.
        peer_timeout: seconds after which a client that has vanished without a word is given up.
        poll: None polls adaptively before a worker sleeps; False never does.
        sandbox: run sessions in a sandbox of bubblewrap: no network, no other processes, the system read-only.
        sandbox_grant: what it lets through: ``net``, or absolute paths, devices among them.

    Raises:
        ValueError: an option that cannot be.
        OSError: no port is free, or the address is not ours (on entering the block).
        ConnectionLostError: no tracker or proxy answers within a minute (on entering the block).
        LaunchError: an import or the callback failed (on entering the block).
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 9091,
        port_end: int = 9199,
        is_proxy: bool = False,
        tracker_addr: Any = None,
        key: str = "",
        load_library: str | None = None,
        custom_addr: str | None = None,
        silent: bool = False,
        no_fork: bool = False,
        server_init_callback: Callable[[], Any] | None = None,
        reuse_addr: bool = True,
        timeout: float | None = None,
        *,
        max_sessions: int = 1,
        imports: Sequence[str] = (),
        allow_path: Sequence[str] = (),
        insecure: bool = False,
        tls: bool = False,
        identity: str | os.PathLike[str] | None = None,
        client_ca: str | os.PathLike[str] | None = None,
        require_client: bool = False,
        policy: str | os.PathLike[str] | None = None,
        pair: bool = False,
        peer_timeout: float = 30.0,
        poll: bool | None = None,
        sandbox: bool = False,
        sandbox_grant: Sequence[str] = (),
    ) -> None:
        check_key(key)
        if not isinstance(max_sessions, int) or max_sessions < 1:
            raise ValueError(f"max_sessions={max_sessions!r} must be a whole number, 1 or more")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout={timeout} must be more than 0 seconds")
        if not 0 < peer_timeout <= _MAX_PEER_SECONDS:
            raise ValueError(f"peer_timeout={peer_timeout} must be more than 0 and at most {_MAX_PEER_SECONDS} seconds")
        for name, value in (("imports", imports), ("allow_path", allow_path), ("sandbox_grant", sandbox_grant)):
            if isinstance(value, str):  # its characters would be taken for a list, and "/" is among a path's
                raise ValueError(f"{name} takes a list of texts, not the text {value!r}")
        self._protection = protect(
            tls=tls,
            identity=identity,
            client_ca=client_ca,
            require_client=require_client,
            policy=policy,
            pair=pair,
        )
        secure = insecure or self._protection.tls is not None
        self._unix: str | None = None
        self._proxy = proxy_url(host, port, secure) if is_proxy else None
        if self._proxy is None:
            self._unix = listening_path(host, port, port_end, secure)
        self._tracker = registering_url(tracker_addr, custom_addr, self._unix)
        self._custom_addr = custom_addr
        self.host = host.removeprefix("[").removesuffix("]")
        self.port = port
        if self._proxy is not None:
            self.host, self.port = self._proxy.host, self._proxy.port
        self._port_end = port_end
        self._key = key
        self._log_level = logging.DEBUG if silent else logging.INFO
        self._reuse_addr = reuse_addr
        self._handshake_timeout = timeout if timeout is not None else HANDSHAKE_SECONDS
        self._peer_timeout = peer_timeout
        self._config = WorkerConfig(
            key=key,
            sys_path=[path or os.getcwd() for path in sys.path],
            imports=tuple(imports),
            libraries=tuple(_libraries(load_library)),
            callback=_pickled(server_init_callback),
            allowed=tuple(os.path.abspath(path) for path in allow_path),
            packet_timeout=timeout if timeout is not None else _PACKET_SECONDS,
            no_fork=no_fork,
            poll=poll,
            greets=self._proxy is None or self._protection.tls is not None,
            sandbox=sandbox,
            sandbox_grant=check_grants(sandbox_grant),
            hidden=tuple(os.path.abspath(path) for path in (identity, policy) if path is not None),
        )
        if sandbox_grant and not sandbox:
            raise ValueError("sandbox_grant is for a sandbox: sandbox=True makes one")
        self._registration: Registration | None = None
        self._max_sessions = max_sessions
        self._queue = TurnQueue(max_sessions)
        self._numbers = 0
        self._rights = Rights(self._protection.policy)
        self._limited_log = LimitedLog(_log)
        self._desk: PairingDesk | None = None
        self._connections = 0
        self._stack: AsyncExitStack | None = None

    def __repr__(self) -> str:
        doing = "not started"
        if self._stack is not None:
            doing = f"{self._connections} connections, {self._queue.waiting} waiting"
        return f"<rpcflow.Server {self.url}: {doing}>"

    @property
    def url(self) -> Url:
        """Where clients find it: its own address, or that of the proxy where it waits for them."""
        if self._proxy is not None:
            return self._proxy
        if self._unix is not None:
            return Url("unix", path=self._unix)
        if self._protection.tls is not None:
            return Url("tls", self.host, self.port, query=(("pin", self._protection.pin),))
        return Url("tcp", self.host, self.port)

    async def __aenter__(self) -> "Server":
        if self._stack is not None:
            raise RuntimeError("a server runs once: make a new one")
        async with AsyncExitStack() as stack:
            stack.callback(self._limited_log.flush)
            self._listeners = self._listen(stack)
            self._watcher = GoneWatcher()
            stack.callback(self._watcher.close)
            self._launcher = await LauncherProcess.start(self._config)
            stack.push_async_callback(self._close_launcher)
            self._door = Door(
                self._listeners,
                self._welcome,
                DoorLimits.of(_connection_limit(self._max_sessions)),
                _log,
                tls=self._protection.tls,
                handshake_timeout=self._handshake_timeout,
                peer_timeout=self._peer_timeout,
                poll=self._config.poll,
            )
            await self._door.start()
            stack.push_async_callback(self._door.aclose)
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
            stack.push_async_callback(end_tasks, self._tasks)
            self._launcher_lock = anyio.Lock()
            for task in (self._launcher.run, self._watcher.run, self._door.run):
                self._tasks.start_soon(task)
            if self._protection.pairing:
                self._open_desk()
            await self._be_found()
            self._stack = stack.pop_all()
        _log.log(self._log_level, "serving at %s", self.url)
        if self._protection.tls is not None and self._protection.open and not tcp_transport.is_loopback(self.host):
            _log.warning(
                "whoever reaches %s is served, though in secret: pair, require_client or policy (--pair ...) lets in "
                "only those who are known",
                self.host,
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        await self._stack.aclose()

    async def _be_found(self) -> None:
        """Register with the tracker or go to the proxy, if there is one, and wait until that is done.

        Raises:
            ConnectionLostError: it is not done in time.
        """
        if self._proxy is not None:
            dialer = ProxyDialer(self, self._proxy, self._key)
            self._tasks.start_soon(dialer.run)
            with anyio.move_on_after(_FOUND_SECONDS):
                await dialer.waiting.wait()
                return
            raise ConnectionLostError(f"cannot wait at the proxy {self._proxy}: {dialer.failure}")
        if self._tracker is not None:
            self._registration = Registration(
                self._tracker,
                self._key,
                self.port,
                self._custom_addr,
                self._max_sessions,
                self._log_level,
                self._protection.pin,
            )
            self._tasks.start_soon(self._registration.run)
            with anyio.move_on_after(_FOUND_SECONDS):
                await self._registration.registered.wait()
                if self._registration.refused is not None:
                    raise self._registration.refused
                return
            raise ConnectionLostError(
                f"cannot register with the tracker at {self._tracker}: {self._registration.failure}"
            )

    # ---- listening

    def _listen(self, stack: AsyncExitStack) -> list[socket.socket]:
        if self._proxy is not None:
            return []
        if self._unix is not None:
            listener = unix_transport.listen(self._unix)
            stack.callback(_unlink, self._unix)
            sockets = [listener]
        else:
            sockets = tcp_transport.listen(self.host, self.port, self._port_end, reuse_addr=self._reuse_addr)
            self.port = sockets[0].getsockname()[1]
        for sock in sockets:
            stack.callback(sock.close)
        return sockets

    def _welcome(self, sock: socket.socket, visitor: Visitor) -> None:
        self._connections += 1
        self._tasks.start_soon(self._serve, sock, visitor)

    async def _serve(self, sock: socket.socket, visitor: Visitor) -> None:
        try:
            await Connection(self, sock, visitor).run()
        except Exception:  # one connection's fault must not end the others: the log has it
            self._limited_log.exception("failed", "serving %s failed", visitor)
        finally:
            self._connections -= 1

    # ---- pairing

    def _open_desk(self) -> None:
        from rpcflow.security.known import KnownClients
        from rpcflow.security.pairing_desk import PairingDesk

        assert self._protection.known_clients is not None
        self._desk = PairingDesk(self._protection.pin, KnownClients(self._protection.known_clients))
        self._tasks.start_soon(self._desk.wait_over)
        # Not to the log, which others may read.
        print(
            f"to pair, run `rpcflow pair HOST:{self.port}` there and give the code {self._desk.code}",
            file=sys.stderr,
            flush=True,
        )

    async def _pair(self, sock: socket.socket, visitor: Visitor) -> None:
        if self._desk is not None:
            await self._desk.serve(AsyncSocketChannel(sock, poll=False), str(visitor))

    # ---- for sessions

    def _admit(self, key: str) -> Callable[[], None] | None:
        """Let in who comes with this key: what is to be called when it leaves; None if the key is not one of ours."""
        if self._registration is not None:
            return self._registration.take(key)
        return _nothing if key == self._key else None

    def _greeting(self) -> bytes:
        """What a client must hear before it understands anything else."""
        return encode_answer(Answer.OK, str(KeyText(Side.SERVER, self._key))) if self._config.greets else b""

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    async def _get_launcher(self) -> LauncherProcess:
        """The launcher, or a new one if it has died."""
        async with self._launcher_lock:
            if not self._launcher.alive:
                _log.error("the launcher has died and is started again")
                await self._launcher.aclose()
                self._launcher = await LauncherProcess.start(self._config)
                self._tasks.start_soon(self._launcher.run)
            return self._launcher

    async def _close_launcher(self) -> None:
        await self._launcher.aclose()


def _nothing() -> None:
    pass


def _connection_limit(max_sessions: int) -> int:
    """How many strangers may hold a descriptor, so that sessions always find enough for themselves."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(16, min(_MAX_CONNECTIONS, (soft - 64 - 16 * max_sessions) // 2))


def _libraries(names: str | None) -> list[str]:
    if not names:
        return []
    paths = []
    for name in names.split(":"):
        path = os.path.abspath(name)
        if not os.path.isfile(path):
            raise ValueError(f"load_library: there is no file {name!r} in {os.getcwd()}")
        paths.append(path)
    return paths


def _pickled(callback: Callable[[], Any] | None) -> bytes | None:
    if callback is None:
        return None
    import cloudpickle

    data: bytes = cloudpickle.dumps(callback)
    return data


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # somebody has removed it before us
