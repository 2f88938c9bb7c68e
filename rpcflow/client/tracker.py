# SPDX-License-Identifier: Apache-2.0
"""Sessions by way of a tracker, for trio, and by anyio for asyncio."""

import inspect
import os
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import anyio

from rpcflow.errors import ConnectionLostError, ProtocolError, RPCError, RPCSessionTimeoutError
from rpcflow.protocol.handshake import KeyText, Side
from rpcflow.session.client import ClientMachine
from rpcflow.tracker import questions
from rpcflow.tracker.link import TrackerLink
from rpcflow.transports import AsyncChannel, check_url, find_meeting_transport, find_transport
from rpcflow.transports.greeting import greet_async
from rpcflow.transports.url import tracker_url

from .connection import Connection
from .credentials import Credentials
from .session import Session, SessionContext, initialize
from .tracking import (
    ANSWER_SECONDS,
    FAREWELL,
    GIVE_BACK_SECONDS,
    GRANTED_SECONDS,
    TRY_AGAIN,
    Wanted,
    checked_request,
    failed_to_run,
    late_grant,
    no_session,
    not_in_time,
    retry_backoff,
)

T = TypeVar("T")


class TrackerSession:
    """A line to a tracker, for ``async with``; made by :func:`connect_tracker` or with its address.

    When the tracker has been restarted, the next call finds it again. Several tasks may use it.

    Args:
        addr: ``(host, port)``, a URL, or ``host:port``; 9190 is the port where there is none.
        token: bearer token, sent first, to the tracker and to servers that it gives us, inside TLS or on lines that do
            not leave this machine.
        pin, ca: whom to trust, for ``tls:`` and ``wss:``: the pin of the other end's key, or a file with authorities
            (or the name of one of ours). By default the pin known from pairing, or else the system's authorities.
        identity: name or file of the key and certificate to show if asked; "" for none. By default the identity
            ``default``, if there is one.

    Raises:
        ValueError: that is no address.
        ConnectionLostError: nobody answers there (on entering the block).
        ProtocolError: who answers is no tracker (on entering the block).
    """

    def __init__(
        self,
        addr: Any,
        *,
        token: str | None = None,
        pin: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        identity: str | os.PathLike[str] | None = None,
    ) -> None:
        self._credentials = Credentials(token, pin, ca, identity)
        self._url = check_url(self._credentials.on(tracker_url(addr)))
        find_meeting_transport(self._url.scheme)
        self._link: TrackerLink | None = None
        self._lock = anyio.Lock()
        self._open = False

    def __repr__(self) -> str:
        return f"<rpcflow session with the tracker at {self._url}: {'open' if self._open else 'closed'}>"

    async def __aenter__(self) -> "TrackerSession":
        if self._open:
            raise RuntimeError("a tracker session's block can be entered once at a time")
        self._link = await TrackerLink.connect(self._url)
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._open = False
        if self._link is not None:
            self._link.close()

    async def aclose(self) -> None:
        """Leave the tracker now; leaving the block does the same. Sessions go on."""
        self._close()

    async def summary(self) -> dict[str, Any]:
        """What the tracker says of itself: ``queue_info``, by key how many servers are free and how many requests
        wait; ``server_info``, who is registered. What else is in it is up to the tracker.

        Raises:
            ConnectionLostError: the tracker is not there.
            ProtocolError: it does not answer as trackers do.
        """
        return questions.read_summary(await self._ask(questions.SUMMARY))

    async def text_summary(self) -> str:
        """The same as a table for people."""
        return questions.text_summary(await self.summary())

    async def _ask(self, message: list[Any]) -> Any:
        async with self._lock:
            self._check_open()
            link = self._link
            if link is not None and link.open:
                try:
                    return await _answer(link, message)
                except ConnectionLostError:
                    self._check_open()  # else it is gone: perhaps another is in its place
            link = self._link = await TrackerLink.connect(self._url)
            if not self._open:
                link.close()
            return await _answer(link, message)

    def _check_open(self) -> None:
        if not self._open:
            raise ConnectionLostError("the tracker session is closed")

    def request(
        self,
        key: str,
        priority: int = 1,
        session_timeout: float = 0,
        max_retry: int = 5,
        session_constructor_args: Sequence[Any] | None = None,
        *,
        wait_timeout: float | None = None,
    ) -> SessionContext:
        """A session with a server of a kind, for ``async with``. Waits until one is free.

        Cancelled at any time, it leaves nothing: neither the tracker nor a server waits for us.

        Args:
            key: the kind.
            priority: higher ones are served first.
            session_timeout: seconds from when the server starts serving until it ends the session; 0 for none. The
                time spent waiting does not count.
            max_retry: how many tries in all, where a server that was given to us, or the tracker, does not answer.
            session_constructor_args: as for :func:`connect`.
            wait_timeout: seconds to wait until the session has begun; None for ever.

        Raises:
            ValueError: an argument that cannot be.
            WaitTimeoutError: no server was free in time (on entering the block, as the next ones).
            ConnectionLostError: the last try failed too; its error is chained.
            RemoteError: the server refused the session constructor.
        """
        wanted = checked_request(key, priority, session_timeout, max_retry, session_constructor_args, wait_timeout)

        async def make() -> Connection:
            with anyio.move_on_after(wanted.wait_timeout):
                return await self._session(wanted)
            raise not_in_time(wanted)

        return SessionContext(make)

    async def _session(self, wanted: Wanted) -> Connection:
        backoff = retry_backoff()
        for left in reversed(range(wanted.max_retry)):
            self._check_open()
            grant = None
            try:
                grant = await self._grant(wanted)
                return await _begin(grant, wanted)
            except TRY_AGAIN as error:
                if grant is None and isinstance(error, ProtocolError):
                    raise  # that is no tracker, and will be none the next time
                if not left:
                    raise no_session(wanted, error) from error
            if grant is None:
                await anyio.sleep(backoff.seconds())
        raise AssertionError("there is a last try")

    async def _grant(self, wanted: Wanted) -> questions.Grant:
        """Ask on a line of its own: it may take for ever, and closing it takes the request back."""
        link = await TrackerLink.connect(self._url)
        try:
            grant = self._credentials.granted(questions.read_grant(await link.call(wanted.message, GIVE_BACK_SECONDS)))
            assert grant is not None
            return grant
        except BaseException:
            await _give_back(self._credentials.granted(late_grant(link.late_answer)))  # it came as we turned to go
            raise
        finally:
            link.close()

    async def request_and_run(
        self,
        key: str,
        func: Callable[[Session], Awaitable[T] | T],
        priority: int = 1,
        session_timeout: float = 0,
        max_retry: int = 2,
    ) -> T:
        """Run a function with a session, on another server if the first one fails.

        Args:
            key, priority, session_timeout: as for :meth:`request`.
            func: takes the session; a plain function or a coroutine function.
            max_retry: how many tries in all.

        Raises:
            ValueError: an argument that cannot be.
            RPCSessionTimeoutError: the session's time was up; there is no other try then.
            RPCError: the last try failed too; its error is chained.
            Exception: whatever else ``func`` raises.
        """
        checked_request(key, priority, session_timeout, max_retry, None, None)
        last: RPCError | None = None
        for _ in range(max_retry):
            try:
                async with self.request(key, priority, session_timeout) as session:
                    value = func(session)
                    return await value if inspect.isawaitable(value) else value
            except RPCSessionTimeoutError:
                raise
            except RPCError as error:
                last = error
            self._check_open()
        raise failed_to_run(key, max_retry) from last


async def _answer(link: TrackerLink, message: list[Any]) -> Any:
    with anyio.move_on_after(ANSWER_SECONDS):
        return await link.call(message)
    raise ConnectionLostError(f"the tracker has not answered within {ANSWER_SECONDS:g} s")


async def _begin(grant: questions.Grant, wanted: Wanted) -> Connection:
    """A session with a server that we were given."""
    channel: AsyncChannel | None = None
    said = False
    try:
        with anyio.move_on_after(GRANTED_SECONDS) as scope:
            channel = await find_transport(grant.url.scheme).connect(grant.url)
            said = True
            await greet_async(channel, KeyText(Side.CLIENT, grant.key, wanted.session_timeout))
        if scope.cancelled_caught or channel is None:
            raise ConnectionLostError(f"{grant.url} has not answered within {GRANTED_SECONDS:g} s")
        core = Connection(channel, ClientMachine(), str(grant.url), wanted.session_timeout)
        await initialize(core, wanted.constructor)
    except BaseException as error:
        if channel is not None:
            channel.close()
        if not said and not isinstance(error, Exception):
            await _give_back(grant)
        raise
    return core


async def _give_back(grant: questions.Grant | None) -> None:
    """We do not want it any more. Going there and leaving tells the server at once; it would offer itself again by
    itself, but only after some seconds. Bounded, and not to be cancelled."""
    if grant is None:
        return
    with anyio.move_on_after(GIVE_BACK_SECONDS, shield=True):
        try:
            channel = await find_transport(grant.url.scheme).connect(grant.url, poll=False)
            try:
                await greet_async(channel, KeyText(Side.CLIENT, grant.key))
                await channel.send([FAREWELL])
            finally:
                channel.close()
        except RPCError:
            pass  # it is gone, or has been used: there is nothing to give back


def connect_tracker(
    url: str,
    port: int | None = None,
    *,
    token: str | None = None,
    pin: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    identity: str | os.PathLike[str] | None = None,
) -> TrackerSession:
    """A tracker, for ``async with``.

    Args:
        url: host or address, or a whole URL (``tcp://host:port``).
        port: where ``url`` has none; 9190 by default.
        token, pin, ca, identity: as for :class:`TrackerSession`.

    Raises:
        ValueError: that is no address.
        ConnectionLostError, ProtocolError: no tracker answers there (on entering the block).
    """
    return TrackerSession(url if port is None else (url, port), token=token, pin=pin, ca=ca, identity=identity)
