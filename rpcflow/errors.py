# SPDX-License-Identifier: Apache-2.0
"""Every error rpcflow raises of its own.

::

    RPCError (RuntimeError)
    |- RemoteError                the remote function raised
    |- FunctionNotFoundError      no such name there (also AttributeError)
    |- RPCSessionTimeoutError     the session's time is up
    |- WaitTimeoutError           nobody became free in time (also TimeoutError)
    |- CallTimeoutError           one call took too long (also TimeoutError)
    |- ConnectionLostError        the line went, or was closed (also ConnectionError)
    |- SessionCrashedError        the session's process died
    |- KeyMismatchError           that server answers to another key
    |- DuplicateKeyError          that key is taken (proxy)
    |- ProtocolError              bytes that are not the protocol
    |- AuthenticationError        the peer does not know us
    |- PermissionDeniedError      the peer knows us and says no

After RemoteError, FunctionNotFoundError and PermissionDeniedError the session is as usable as before. After
CallTimeoutError too, unless the request could not be sent whole. After any of the others it is closed.

This module imports nothing of rpcflow, so that every layer may raise what it knows best.
"""

from typing import Any


class RPCError(RuntimeError):
    """Base of all errors of rpcflow. ``details`` holds the fields by name."""

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details
        for name, value in details.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.details))


def _rebuild(kind: type[RPCError], message: str, details: dict[str, Any]) -> RPCError:
    return kind(message, **details)


class RemoteError(RPCError):
    """The remote function raised. The session goes on.

    ``remote_message``: what the remote error said. ``remote_type``, ``remote_traceback``: its kind and traceback,
    None where the other end is a stock peer, which does not send them.
    """

    remote_message: str = ""
    remote_type: str | None = None
    remote_traceback: str | None = None


class FunctionNotFoundError(RPCError, AttributeError):
    """The server has no function of that name. ``function``: the name."""

    function: str = ""


class RPCSessionTimeoutError(RPCError):
    """The session outlived its ``session_timeout``; the server has closed it.

    ``budget``, ``used``: seconds allowed and passed, ``call``: the call in progress; each None where not known.
    """

    budget: float | None = None
    used: float | None = None
    call: str | None = None


class WaitTimeoutError(RPCError, TimeoutError):
    """Nothing became free within ``wait_timeout`` (seconds)."""

    wait_timeout: float | None = None


class CallTimeoutError(RPCError, TimeoutError):
    """One call did not answer within ``call_timeout`` (seconds). The server may still be running it."""

    call_timeout: float | None = None


class ConnectionLostError(RPCError, ConnectionError):
    """The line to the peer went away, or was closed by us: nothing more can be asked of this session."""


class SessionCrashedError(RPCError):
    """The session's process at the server died.

    ``signal``: number of the signal that killed it or None, ``status``: its exit status or None, ``call``: the call
    in progress or None, ``last_words``: the last lines it wrote to standard error.
    """

    signal: int | None = None
    status: int | None = None
    call: str | None = None
    last_words: str = ""


class KeyMismatchError(RPCError):
    """The server answers to another key. ``key``: the one we asked for."""

    key: str | None = None


class DuplicateKeyError(RPCError):
    """Another peer waits at the proxy under the same key. ``key``: that key."""

    key: str | None = None


class ProtocolError(RPCError):
    """The peer sent bytes that TVM's RPC protocol does not allow here. The line is closed.

    ``offset``: how many bytes of the stream had been taken in, or None.
    """

    offset: int | None = None


class AuthenticationError(RPCError):
    """The peer could not make sure who we are, or we who it is."""


class PermissionDeniedError(RPCError):
    """The peer does not let us do that: a path outside the session's folder, a function outside the policy.

    ``path``, ``function``, ``constructor``, ``device``: what was refused; each None where it was something else.
    """

    path: str | None = None
    function: str | None = None
    constructor: str | None = None
    device: str | None = None


STRUCTURED_KINDS: dict[str, type[RPCError]] = {
    kind.__name__: kind
    for kind in (
        RemoteError,
        FunctionNotFoundError,
        RPCSessionTimeoutError,
        SessionCrashedError,
        ConnectionLostError,
        ProtocolError,
        AuthenticationError,
        PermissionDeniedError,
    )
}
"""The kinds that may cross the wire between two rpcflow ends, by name."""
