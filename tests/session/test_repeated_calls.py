# SPDX-License-Identifier: Apache-2.0
"""Calls that are made again with the same arguments are packed and read once, and nobody can tell."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.packets import InitServer, encode, encode_call, encode_free, free_data, get_global_func
from rpcflow.protocol.values import Device, TensorView, Value
from rpcflow.session.actions import Arguments
from rpcflow.session.server import ServerMachine
from tests.strategies import sequences

from .test_client import Scripted
from .test_lone_calls import put
from .tiny import Memory, TinyServer, joined

CPU = Device(1, 0)
F32 = DataType(2, 32)


@given(st.lists(sequences, min_size=1, max_size=3), st.lists(st.integers(0, 2), max_size=6))
def test_the_same_packets(choices: list[list[Value]], order: list[int]) -> None:
    machine = Scripted().machine
    for which in order:
        args = choices[which % len(choices)]
        parts = encode_call(7 + which, args)
        expected = joined(parts) if len(parts) == 1 and type(parts[0]) is bytes else None
        assert machine.lone_call(7 + which, list(args)) == expected


def test_what_only_looks_the_same() -> None:
    machine = Scripted().machine
    for args in ([1, 2, 3], [True, 2, 3], [1.0, 2, 3], [1, 2, 3, 4], [1, 2, 3], [0.0, 2, 3], [-0.0, 2, 3]):
        assert machine.lone_call(7, args) == joined(encode_call(7, args))
    assert machine.lone_call(8, [-0.0, 2, 3]) == joined(encode_call(8, [-0.0, 2, 3]))


class Session:
    """A server's machine with a function and some tensors."""

    def __init__(self, same_again: bool = True) -> None:
        server = TinyServer()
        self.machine: Any = server.machine
        if not same_again:
            self.machine = server.machine = ServerMachine(server._tensor, same_again=False)
        server.feed(joined(encode(InitServer("0.8.0", []))))
        server.feed(joined(encode(get_global_func("echo"))))
        self.server = server
        self.function = self.machine._functions["echo"]
        self.tensors = [self.machine.handles.add(s_kind(), Memory(64, CPU)) for _ in range(3)]

    def view(self, i: int, count: int = 4) -> TensorView:
        return TensorView(self.tensors[i], CPU, F32, (count,))

    def call(self, args: list[Value]) -> Any:
        data = joined(encode_call(self.function, args))
        action = self.machine.whole_call(put(self.machine, data), len(data))
        if action is not None:
            self.machine.reply_call(None)
            self.machine.take_outgoing()
        return action


def s_kind() -> Any:
    from rpcflow.session.handles import Kind

    return Kind.MEMORY


def test_the_same_objects() -> None:
    session = Session()
    first = session.call([session.view(0), session.view(1), 5])
    assert type(first.args) is Arguments
    assert session.call([session.view(0), session.view(1), 5]) is first
    other = session.call([session.view(0), session.view(2), 5])
    assert other is not first
    assert other.args[1].memory is not first.args[1].memory
    assert session.call([session.view(0), session.view(1), 5]) is not first


def test_not_where_they_may_be_changed() -> None:
    session = Session(same_again=False)
    first = session.call([session.view(0), 5])
    assert type(first.args) is list
    assert session.call([session.view(0), 5]) is not first


def test_not_plain_values() -> None:
    session = Session()
    first = session.call([1, 2, "three"])
    assert type(first.args) is list
    assert session.call([1, 2, "three"]) is not first


@pytest.mark.parametrize("what", ["tensor", "other tensor", "function"])
def test_nothing_holds_once_a_handle_is_given_back(what: str) -> None:
    session = Session()
    args: list[Value] = [session.view(0), session.view(1), 5]
    first = session.call(args)
    if what == "function":
        data = encode_free(session.function)
    else:
        data = joined(encode(free_data(CPU, session.tensors[0 if what == "tensor" else 2])))
    session.server.feed(data)
    assert session.machine._repeat is None  # or what is freed would live on
    again = session.call(args)
    if what == "other tensor":
        assert again is not first
        assert again.args[0].memory is first.args[0].memory
    else:
        assert again is None  # it goes the long way, to its error


def test_the_end() -> None:
    session = Session()
    session.call([session.view(0)])
    session.machine.close()
    assert session.machine._repeat is None
    assert session.call([session.view(0)]) is None


steps = st.one_of(
    st.tuples(st.just("call"), st.lists(st.integers(0, 5), max_size=4)),
    st.tuples(st.just("free"), st.integers(0, 2)),
    st.tuples(st.just("alloc"), st.just(0)),
)


def seen(action: Any) -> Any:
    """A call as its function would see it."""
    return action and (action.label, [getattr(arg, "view", arg) for arg in action.args])


@given(st.lists(steps, max_size=12))
def test_as_if_nothing_were_remembered(program: list[tuple[str, Any]]) -> None:
    """Any order of calls and frees, by the short way and by the long one: the same actions, the same answers."""
    short, long = Session(), Session()
    for what, how in program:
        if what == "free":
            packets = [free_data(CPU, session.tensors[how]) for session in (short, long)]
            answers = [s.server.feed(joined(encode(packet))) for s, packet in zip((short, long), packets, strict=True)]
            assert answers[0] == answers[1]
        elif what == "alloc":
            for session in (short, long):
                session.tensors = [session.machine.handles.add(s_kind(), Memory(64, CPU)), *session.tensors[:2]]
        else:
            args: list[Value] = [short.view(i) if i < 3 else i for i in how]
            data = joined(encode_call(short.function, args))
            action = short.machine.whole_call(put(short.machine, data), len(data))
            if action is None:
                short.machine.reader.received(len(data))
                action = short.machine.next_action()
            put(long.machine, data)
            long.machine.reader.received(len(data))
            assert seen(action) == seen(long.machine.next_action())
            for session in (short, long):
                if session.machine.state.name == "WORKING":
                    session.machine.reply_call(None)
            assert short.machine.take_outgoing() == long.machine.take_outgoing()
