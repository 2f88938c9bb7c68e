# SPDX-License-Identifier: Apache-2.0
"""Errors in words, for the Exception packet, and back.

A stock peer sends and reads bare messages; the one that begins with ``RPCSessionTimeoutError: `` means what
it says. Between two rpcflow ends (the client has looked up :data:`FEATURE`) the text is ``rpcflow-error ``
and a JSON object: ``kind`` (a class of rpcflow.errors), ``message``, and that class's fields.
"""

import json
import traceback
from typing import Any, Final

from rpcflow.errors import (
    STRUCTURED_KINDS,
    AuthenticationError,
    FunctionNotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RemoteError,
    RPCError,
    RPCSessionTimeoutError,
    SessionCrashedError,
)
from rpcflow.protocol.packets import ExceptionPacket, encode

FEATURE: Final = "rpcflow.structured_errors"
"""Looked up by a client that reads structured errors; a server that has it sends them from then on."""

_PREFIX: Final = "rpcflow-error "
_TIMEOUT_PREFIX: Final = "RPCSessionTimeoutError: "
_CRASH_PREFIX: Final = "SessionCrashedError: "
_REFUSALS: Final = {f"{kind.__name__}: ": kind for kind in (AuthenticationError, PermissionDeniedError)}
"""These are told before a server knows that its client reads more than words."""
_STOCK_HOP: Final = "RPCError: Error caught from RPC call:\n"
_MAX_CHARACTERS: Final = 64 * 1024
"""An error text is cut to this: long enough for any traceback, far below what a packet may hold."""


_MAX_STRUCTURED: Final = 768 * 1024
"""A structured text, all ASCII, is kept below this: an Exception packet must fit into the limit for
packets."""


def _cut(text: str, limit: int = _MAX_CHARACTERS) -> str:
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
    # Lone surrogates cannot be UTF-8: put them as escapes.
    return text.encode("utf-8", "backslashreplace").decode()


def describe(error: object) -> str:
    """The message of any error, never empty, also when its ``str`` itself raises."""
    try:
        text = str(error)
    except Exception as second:  # user code: its __str__ may do anything
        text = f"(its message cannot be had: {type(second).__name__})"
    return text or type(error).__name__


def to_text(error: BaseException, structured: bool) -> str:
    """What an Exception packet says of ``error``."""
    if not structured:
        if isinstance(error, RPCSessionTimeoutError):
            return _cut(_TIMEOUT_PREFIX + describe(error))
        if isinstance(error, RPCError) and not isinstance(error, RemoteError):
            return _cut(f"{type(error).__name__}: {describe(error)}")
        return _cut(describe(error))
    kind = type(error).__name__
    message = describe(error)
    fields: dict[str, Any]
    if kind in STRUCTURED_KINDS and isinstance(error, RPCError):
        if isinstance(error, RemoteError) and error.remote_message:
            message = error.remote_message  # passed on by a second hop: its reader puts the type before it again
        fields = error.details
    else:
        fields = {"remote_type": _cut(kind, 1024), "remote_traceback": _traceback(error)}
        kind = "RemoteError"
    for limit in (_MAX_CHARACTERS, _MAX_CHARACTERS // 16):
        short = {name: _cut(value, limit) if type(value) is str else value for name, value in fields.items()}
        try:
            text = json.dumps({**short, "kind": kind, "message": _cut(message, limit)}, default=describe)
        except (ValueError, TypeError, RecursionError):
            break  # fields of user code: loops, keys that are no text
        if len(text) <= _MAX_STRUCTURED:
            return _PREFIX + text
    return _PREFIX + json.dumps({"kind": kind, "message": _cut(message)})


def _traceback(error: BaseException) -> str | None:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # user code: its __notes__ or __cause__ may be anything
        return None


def error_packet(error: BaseException, structured: bool) -> bytes:
    """The Exception packet that tells a client of an error."""
    packet = encode(ExceptionPacket(to_text(error, structured)))
    return b"".join(bytes(part) for part in packet if not isinstance(part, tuple))


def from_text(text: str) -> RPCError:
    """The error that an Exception packet stands for. Never raises: what is not understood is a
    RemoteError."""
    if text.startswith(_TIMEOUT_PREFIX):
        return RPCSessionTimeoutError(text.removeprefix(_TIMEOUT_PREFIX))
    if text.startswith(_CRASH_PREFIX):  # told before the server knew that we read more than words
        return SessionCrashedError(text.removeprefix(_CRASH_PREFIX))
    for prefix, kind in _REFUSALS.items():
        if text.startswith(prefix):
            return kind(text.removeprefix(prefix))
    own = text
    while own.startswith(_STOCK_HOP):  # a stock server on the way has passed it on
        own = own.removeprefix(_STOCK_HOP)
    if own.startswith(_PREFIX):
        try:
            fields = json.loads(own.removeprefix(_PREFIX))
            kind, message = fields.pop("kind"), fields.pop("message")
            made = _rebuild(STRUCTURED_KINDS[kind], message, fields)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass  # words after all
        else:
            return made
    return RemoteError(
        f"Error caught from RPC call:\n{text}", remote_message=text, remote_type=None, remote_traceback=None
    )


def _rebuild(kind: type[RPCError], message: str, fields: dict[str, Any]) -> RPCError:
    if not isinstance(message, str):
        raise TypeError("a message is text")
    allowed = {
        name: annotation for base in kind.__mro__ for name, annotation in getattr(base, "__annotations__", {}).items()
    }
    known = {name: value for name, value in fields.items() if name in allowed and _fits(value, allowed[name])}
    if kind is RemoteError:
        known["remote_message"] = message
        remote_type = known.get("remote_type")
        message = f"{remote_type}: {message}" if remote_type else message
    elif kind is ProtocolError:
        message = f"the server refused what we sent: {message}"
    return kind(message, **known)


def _fits(value: Any, annotation: Any) -> bool:
    # JSON has one kind of number.
    return isinstance(value, annotation) or (type(value) is int and isinstance(0.0, annotation))


def not_found(name: str) -> FunctionNotFoundError:
    """The error for a name that a server does not have."""
    return FunctionNotFoundError(f"the server has no function {name!r}", function=name)
