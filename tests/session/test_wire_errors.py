# SPDX-License-Identifier: Apache-2.0
"""Errors into words and out of them again, in both forms, whatever the words."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rpcflow.errors import (
    STRUCTURED_KINDS,
    ConnectionLostError,
    FunctionNotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RemoteError,
    RPCError,
    RPCSessionTimeoutError,
    SessionCrashedError,
)
from rpcflow.protocol.limits import DEFAULT_LIMITS
from rpcflow.protocol.packets import ExceptionPacket, encode
from rpcflow.protocol.values import FilePayload
from rpcflow.session.wire_errors import describe, from_text, not_found, to_text

PREFIX = "rpcflow-error "


def nbytes(text: str) -> int:
    """What the packet takes."""
    total = 0
    for part in encode(ExceptionPacket(text)):
        assert not isinstance(part, FilePayload)
        total += len(part)
    return total


class Nasty(Exception):
    """User code: nothing about it can be trusted."""

    def __str__(self) -> str:
        raise RuntimeError("not even this")


class NastyNotes(Exception):
    @property
    def __notes__(self) -> Any:
        raise RuntimeError("no notes")


def _huge_name() -> BaseException:
    made: BaseException = type("E" * 2_000_000, (Exception,), {})("x")
    return made


HOSTILE: list[BaseException] = [
    Nasty(),
    NastyNotes("x"),
    ValueError(""),
    ValueError("\ud800 \0 \x1b[31m"),
    ValueError("\U0001f600" * 3_000_000),
    ValueError("\0" * 3_000_000),
    ValueError("\ud800" * 3_000_000),
    RPCError("x" * 3_000_000, field="y" * 3_000_000),
    SessionCrashedError("crash", last_words="\U0001f600" * 3_000_000, signal=9),
    PermissionDeniedError("no", path=object()),
    PermissionDeniedError("no", path={1: {(2, 3): 4}}),
    PermissionDeniedError("no", path=Nasty()),
    ProtocolError("x", offset=float("nan")),
    ExceptionGroup("several", [ValueError("a"), Nasty()]),
    KeyboardInterrupt(),
]
_loop: dict[str, Any] = {}
_loop["again"] = _loop
HOSTILE.append(PermissionDeniedError("no", path=_loop))


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("error", [*HOSTILE, pytest.param(None, id="huge name")], ids=lambda e: type(e).__name__)
def test_any_error_can_be_told(error: BaseException | None, structured: bool) -> None:
    text = to_text(error or _huge_name(), structured)
    assert text
    assert text.startswith(PREFIX) == structured
    assert nbytes(text) < DEFAULT_LIMITS.packet_nbytes
    made = from_text(text)
    assert isinstance(made, RPCError)
    assert str(made).encode()


def test_bare_words_are_what_stock_servers_send() -> None:
    assert to_text(ValueError("abc"), structured=False) == "abc"
    assert to_text(KeyError("abc"), structured=False) == "'abc'"
    assert to_text(ValueError(), structured=False) == "ValueError"
    assert to_text(PermissionDeniedError("outside"), structured=False) == "PermissionDeniedError: outside"
    timeout = RPCSessionTimeoutError("Your 1.0s session has expired", budget=1.0)
    assert to_text(timeout, structured=False) == "RPCSessionTimeoutError: Your 1.0s session has expired"


def test_bare_words_are_read_as_stock_clients_read_them() -> None:
    made = from_text("abc")
    assert type(made) is RemoteError
    assert str(made) == "Error caught from RPC call:\nabc"
    assert (made.remote_message, made.remote_type, made.remote_traceback) == ("abc", None, None)
    timeout = from_text("RPCSessionTimeoutError: Your 1.0s session has expired")
    assert type(timeout) is RPCSessionTimeoutError
    assert str(timeout) == "Your 1.0s session has expired"
    assert type(from_text("RPCSessionTimeoutError:no space")) is RemoteError


def test_structured() -> None:
    def broken() -> None:
        raise ValueError("it broke")

    with pytest.raises(ValueError) as caught:
        broken()
    made = from_text(to_text(caught.value, structured=True))
    assert type(made) is RemoteError
    assert str(made) == "ValueError: it broke"
    assert made.remote_message == "it broke"
    assert made.remote_type == "ValueError"
    assert made.remote_traceback is not None
    assert "in broken" in made.remote_traceback


@pytest.mark.parametrize(
    "error",
    [
        FunctionNotFoundError("no f", function="f"),
        RPCSessionTimeoutError("over", budget=1.5, used=2.0, call="f"),
        RPCSessionTimeoutError("over", budget=30, used=31, call=None),
        SessionCrashedError("died", signal=11, status=None, call="f", last_words="bye"),
        ConnectionLostError("gone"),
        PermissionDeniedError("outside", path="../x"),
        not_found("f"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_kinds_keep_their_fields(error: RPCError) -> None:
    made = from_text(to_text(error, structured=True))
    assert type(made) is type(error)
    assert str(made) == str(error)
    assert made.details == error.details


def test_a_fault_of_ours_says_whose_words_they_are() -> None:
    made = from_text(to_text(ProtocolError("3 bytes too many", offset=7), structured=True))
    assert type(made) is ProtocolError
    assert str(made) == "the server refused what we sent: 3 bytes too many"
    assert made.offset == 7


def test_a_second_hop_changes_nothing() -> None:
    once = from_text(to_text(ValueError("it broke"), structured=True))
    twice = from_text(to_text(once, structured=True))
    assert (str(twice), twice.details) == (str(once), once.details)


def test_subclasses_of_ours_travel_as_remote_errors() -> None:
    class Special(RPCError):
        pass

    made = from_text(to_text(Special("no"), structured=True))
    assert type(made) is RemoteError
    assert made.remote_type == "Special"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "[1]",
        '"kind"',
        "3",
        "null",
        "{}",
        '{"kind": "RemoteError"}',
        '{"message": "x"}',
        '{"kind": "Exception", "message": "x"}',
        '{"kind": "KeyboardInterrupt", "message": "x"}',
        '{"kind": "RPCError", "message": "x"}',
        '{"kind": ["RemoteError"], "message": "x"}',
        '{"kind": {}, "message": "x"}',
        '{"kind": "RemoteError", "message": ["x"]}',
        '{"kind": "RemoteError", "message": null}',
        "[" * 100_000,
        '{"kind": "RemoteError", "message": "x", "a": ' + "[" * 100_000,
        '{"kind": "RemoteError", "message": "x", "a": ' + "9" * 10_000 + "}",
    ],
)
def test_words_that_only_look_structured(body: str) -> None:
    made = from_text(PREFIX + body)
    assert type(made) is RemoteError
    assert made.remote_message == PREFIX + body
    assert made.remote_type is None


@pytest.mark.parametrize("kind", STRUCTURED_KINDS)
@pytest.mark.parametrize(
    "field",
    [
        "args",
        "__class__",
        "details",
        "message",
        "with_traceback",
        "__str__",
        "result",
        "name",
        "errno",
        "strerror",
        "remote_type",
        "signal",
        "budget",
        "offset",
        "path",
        "function",
        "last_words",
    ],
)
@pytest.mark.parametrize("value", [None, {}, [], "text", 5, 1.5, True])
def test_only_declared_fields_of_the_declared_type_are_taken(kind: str, field: str, value: Any) -> None:
    made = from_text(PREFIX + json.dumps({field: value, "kind": kind, "message": "m"}))
    assert type(made) is STRUCTURED_KINDS[kind]
    assert "m" in str(made)
    assert made.args == (str(made),)
    known = {name: hint for base in type(made).__mro__ for name, hint in getattr(base, "__annotations__", {}).items()}
    for name, got in made.details.items():
        assert isinstance(got, known[name]) or (type(got) is int and isinstance(1.0, known[name]))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.one_of(
        st.text(max_size=100),
        st.text(max_size=100).map(lambda text: PREFIX + text),
        st.builds(
            lambda kind, message, more: PREFIX + json.dumps({**more, "kind": kind, "message": message}),
            st.sampled_from([*STRUCTURED_KINDS, "Other"]),
            st.text(max_size=10) | _json,
            st.dictionaries(
                st.sampled_from(["remote_type", "signal", "budget", "call", "offset", "x"]), _json, max_size=3
            ),
        ),
    )
)
@example(PREFIX + '{"kind": "RemoteError", "message": "\\ud800"}')
def test_any_words_become_an_error(text: str) -> None:
    made = from_text(text)
    assert isinstance(made, RPCError)
    again = from_text(to_text(made, structured=True))
    assert type(again) is type(made)


def test_describe() -> None:
    assert describe(Nasty()) == "(its message cannot be had: RuntimeError)"
    assert describe(ValueError()) == "ValueError"
