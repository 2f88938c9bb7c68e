# SPDX-License-Identifier: Apache-2.0
"""Sessions by way of a tracker, for threads. No event loop, no thread of ours."""

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from rpcflow.client.credentials import Credentials
from rpcflow.client.tracking import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
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
from rpcflow.errors import (
    CallTimeoutError,
    ConnectionLostError,
    ProtocolError,
    RPCError,
    RPCSessionTimeoutError,
)
from rpcflow.protocol.handshake import KeyText, Side
from rpcflow.session.client import ClientMachine
from rpcflow.tracker import questions
from rpcflow.transports import BlockingChannel, check_url, find_transport
from rpcflow.transports.greeting import greet
from rpcflow.transports.url import tracker_url

from .connecting import initialize
from .connection import Connection
from .session import RPCSession
from .tracker_link import BlockingTrackerLink

T = TypeVar("T")


class TrackerSession:
    """A line to a tracker; ends with :meth:`close`, its ``with`` block, or when it is collected. Sessions go on.

    When the tracker has been restarted, the next call finds it again. Several threads may use it; their requests wait
    side by side.

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
        ConnectionLostError: nobody answers there.
        ProtocolError: who answers is no tracker.
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
        self._lock = threading.Lock()
        self._links: weakref.WeakSet[BlockingTrackerLink] = weakref.WeakSet()
        self._open = True
        self._process = os.getpid()
        self._link = self._connect(None)

    def __repr__(self) -> str:
        return f"<rpcflow.sync session with the tracker at {self._url}: {'open' if self._open else 'closed'}>"

    def __enter__(self) -> "TrackerSession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A forked child has the same line; that it lets go of its copy must not end the parent's.
        if getattr(self, "_process", None) == os.getpid():
            self.close()

    def close(self) -> None:
        """Leave the tracker now. Requests of other threads that still wait raise ConnectionLostError."""
        self._open = False
        for link in list(self._links):
            link.close()

    def summary(self) -> dict[str, Any]:
        """What the tracker says of itself: ``queue_info``, by key how many servers are free and how many requests
        wait; ``server_info``, who is registered. What else is in it is up to the tracker.

        Raises:
            ConnectionLostError: the tracker is not there.
            ProtocolError: it does not answer as trackers do.
        """
        return questions.read_summary(self._ask(questions.SUMMARY))

    def text_summary(self) -> str:
        """The same as a table for people."""
        return questions.text_summary(self.summary())

    def _ask(self, message: list[Any]) -> Any:
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            with self._lock:
                self._check_open()
                self._leave_to_parent(deadline)
                if self._link.open:
                    try:
                        return self._link.call(message, deadline)
                    except ConnectionLostError:
                        self._check_open()  # else it is gone: perhaps another is in its place
                self._link = self._connect(deadline)
                return self._link.call(message, deadline)
        except TimeoutError:
            raise ConnectionLostError(f"the tracker has not answered within {ANSWER_SECONDS:g} s") from None

    def _leave_to_parent(self, deadline: float) -> None:
        """In a forked child, lines that were there before the fork are the parent's: two who ask on one would get each
        other's answers."""
        if self._process != os.getpid():
            self._links = weakref.WeakSet()
            self._link = self._connect(deadline)
            self._process = os.getpid()

    def _connect(self, deadline: float | None) -> BlockingTrackerLink:
        """A new line to the tracker. It takes 30 s at most, or until the deadline, whose TimeoutError passes."""
        bound = time.monotonic() + CONNECT_SECONDS
        try:
            link = BlockingTrackerLink(self._url, bound if deadline is None else min(bound, deadline))
        except TimeoutError:
            if deadline is not None and deadline <= bound:
                raise
            raise ConnectionLostError(f"{self._url} has not answered within {CONNECT_SECONDS:g} s") from None
        self._links.add(link)
        if not self._open:
            link.close()
        return link

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
    ) -> RPCSession:
        """A session with a server of a kind. Waits until one is free.

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
            WaitTimeoutError: no server was free in time.
            ConnectionLostError: the last try failed too; its error is chained.
            RemoteError: the server refused the session constructor.
        """
        wanted = checked_request(key, priority, session_timeout, max_retry, session_constructor_args, wait_timeout)
        deadline = None if wait_timeout is None else time.monotonic() + wait_timeout
        backoff = retry_backoff()
        for left in reversed(range(wanted.max_retry)):
            self._check_open()
            grant = None
            try:
                grant = self._grant(wanted, deadline)
                return RPCSession(_begin(grant, wanted, deadline))
            except TRY_AGAIN as error:
                if grant is None and isinstance(error, ProtocolError):
                    raise  # that is no tracker, and will be none the next time
                if not left:
                    raise no_session(wanted, error) from error
            except TimeoutError:
                raise not_in_time(wanted) from None
            if grant is None:
                pause = backoff.seconds()
                if deadline is not None and (rest := deadline - time.monotonic()) <= pause:
                    time.sleep(max(0.0, rest))
                    raise not_in_time(wanted)
                time.sleep(pause)
        raise AssertionError("there is a last try")

    def _grant(self, wanted: Wanted, deadline: float | None) -> questions.Grant:
        """Ask on a line of its own: it may take for ever, and closing it takes the request back."""
        link = self._connect(deadline)
        try:
            grant = self._credentials.granted(
                questions.read_grant(link.call(wanted.message, deadline, GIVE_BACK_SECONDS))
            )
            assert grant is not None
            return grant
        except BaseException:
            _give_back(self._credentials.granted(late_grant(link.late_answer)))  # it came as we turned to go
            raise
        finally:
            link.close()

    def request_and_run(
        self,
        key: str,
        func: Callable[[RPCSession], T],
        priority: int = 1,
        session_timeout: float = 0,
        max_retry: int = 2,
    ) -> T:
        """Run a function with a session, on another server if the first one fails.

        Args:
            key, priority, session_timeout: as for :meth:`request`.
            func: takes the session.
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
                with self.request(key, priority, session_timeout) as session:
                    return func(session)
            except RPCSessionTimeoutError:
                raise
            except RPCError as error:
                last = error
            self._check_open()
        raise failed_to_run(key, max_retry) from last


def _begin(grant: questions.Grant, wanted: Wanted, deadline: float | None) -> Connection:
    """A session with a server that we were given."""
    bound = time.monotonic() + GRANTED_SECONDS
    until = bound if deadline is None else min(bound, deadline)
    channel: BlockingChannel | None = None
    said = False
    try:
        channel = find_transport(grant.url.scheme).connect_blocking(grant.url, deadline=until)
        said = True
        greet(channel, KeyText(Side.CLIENT, grant.key, wanted.session_timeout), until)
        core = Connection(channel, ClientMachine(), str(grant.url), wanted.session_timeout)
        try:
            initialize(core, wanted.constructor, deadline)
        except CallTimeoutError:
            raise TimeoutError from None
    except BaseException as error:
        if channel is not None:
            channel.close()
        if isinstance(error, TimeoutError) and not isinstance(error, RPCError) and until == bound:
            raise ConnectionLostError(f"{grant.url} has not answered within {GRANTED_SECONDS:g} s") from None
        if not said and not isinstance(error, RPCError):
            _give_back(grant)
        raise
    return core


def _give_back(grant: questions.Grant | None) -> None:
    """We do not want it any more. Going there and leaving tells the server at once; it would offer itself again by
    itself, but only after some seconds."""
    if grant is None:
        return
    deadline = time.monotonic() + GIVE_BACK_SECONDS
    try:
        channel = find_transport(grant.url.scheme).connect_blocking(grant.url, deadline=deadline, poll=False)
        try:
            greet(channel, KeyText(Side.CLIENT, grant.key), deadline)
            channel.send([FAREWELL], deadline)
        finally:
            channel.close()
    except (RPCError, TimeoutError):
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
    """A tracker.

    Args:
        url: host or address, or a whole URL (``tcp://host:port``).
        port: where ``url`` has none; 9190 by default.
        token, pin, ca, identity: as for :class:`TrackerSession`.

    Raises:
        ValueError: that is no address.
        ConnectionLostError, ProtocolError: no tracker answers there.
    """
    return TrackerSession(url if port is None else (url, port), token=token, pin=pin, ca=ca, identity=identity)
