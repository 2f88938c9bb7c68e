# SPDX-License-Identifier: Apache-2.0
"""What both tracker sessions, the async and the blocking one, know about requests; pure."""

from collections.abc import Sequence
from typing import Any, Final

import attrs

from rpcflow.errors import (
    ConnectionLostError,
    DuplicateKeyError,
    KeyMismatchError,
    ProtocolError,
    RPCError,
    SessionCrashedError,
    WaitTimeoutError,
)
from rpcflow.protocol.handshake import check_key
from rpcflow.protocol.packets import Shutdown, encode
from rpcflow.tracker import questions
from rpcflow.tracker.backoff import Backoff
from rpcflow.tracker.questions import CONNECT_SECONDS as CONNECT_SECONDS
from rpcflow.tracker.scheduler import finite

from .options import constructor_arguments

ANSWER_SECONDS: Final = 30.0
"""How long a tracker may take for an answer that it has at hand."""
GRANTED_SECONDS: Final = 30.0
"""How long a server that was given to us may take to answer: it is free, and waits for us."""
GIVE_BACK_SECONDS: Final = 0.5
FAREWELL: Final = b"".join(bytes(part) for part in encode(Shutdown()) if isinstance(part, bytes | bytearray))
TRY_AGAIN: Final = (ConnectionLostError, DuplicateKeyError, KeyMismatchError, ProtocolError, SessionCrashedError)
"""Errors of a try behind which the next may be better. A match key can be void, a server gone or its process dead."""


@attrs.frozen
class Wanted:
    """A request, checked. ``session_timeout``: None for none."""

    key: str
    priority: int
    session_timeout: float | None
    max_retry: int
    constructor: Sequence[Any] | None
    wait_timeout: float | None

    @property
    def message(self) -> list[Any]:
        """What the tracker is asked."""
        return questions.request(self.key, self.priority)


def checked_request(
    key: str,
    priority: int,
    session_timeout: float,
    max_retry: int,
    constructor: Sequence[Any] | None,
    wait_timeout: float | None,
) -> Wanted:
    """The arguments of a request.

    Raises:
        TypeError, ValueError: one of them cannot be.
    """
    check_key(key)
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise ValueError(f"priority={priority!r} is not a whole number")
    finite(priority)
    if isinstance(session_timeout, bool) or not 0 <= session_timeout < float("inf"):
        raise ValueError(f"session_timeout={session_timeout!r} is not a number of seconds")
    if isinstance(max_retry, bool) or not isinstance(max_retry, int) or max_retry < 1:
        raise ValueError(f"max_retry={max_retry!r} is not a number of tries, 1 or more")
    if wait_timeout is not None and not wait_timeout > 0:
        raise ValueError(f"wait_timeout={wait_timeout!r} is not a number of seconds above 0")
    constructor_arguments(constructor)
    return Wanted(key, priority, session_timeout or None, max_retry, constructor, wait_timeout)


def late_grant(answer: Any) -> questions.Grant | None:
    """The server in an answer that nobody waited for any more, if there is one."""
    try:
        return None if answer is None else questions.read_grant(answer)
    except (ConnectionLostError, ProtocolError):
        return None


def retry_backoff() -> Backoff:
    """Waits between tries to reach a tracker: enough of them for it to be restarted meanwhile."""
    return Backoff(0.1, 2.0, factor=3.0)


def not_in_time(wanted: Wanted) -> WaitTimeoutError:
    """``wait_timeout`` has passed."""
    return WaitTimeoutError(
        f"no server of the kind {wanted.key!r} was free for us within {wanted.wait_timeout:g} s",
        wait_timeout=wanted.wait_timeout,
    )


def no_session(wanted: Wanted, error: RPCError) -> ConnectionLostError:
    """The last try has failed."""
    return ConnectionLostError(
        f"no session with a server of the kind {wanted.key!r} after {wanted.max_retry} tries; the last one: {error}"
    )


def failed_to_run(key: str, tries: int) -> RPCError:
    """The last try of ``request_and_run`` has failed."""
    return RPCError(f"Failed to run on {key} after {tries} retry")
