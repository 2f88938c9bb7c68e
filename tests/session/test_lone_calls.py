# SPDX-License-Identifier: Apache-2.0
"""Calls that are alone on the line go around requests and events, and nobody can tell."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.errors import ConnectionLostError, ProtocolError, RemoteError
from rpcflow.protocol.packets import ExceptionPacket, InitServer, Return, encode, encode_call, get_global_func
from rpcflow.protocol.shortcut import MISS
from rpcflow.protocol.values import Pointer, TypeIndex, Value
from rpcflow.session.client import ClientMachine, State
from rpcflow.session.results import RemoteHandle
from rpcflow.session.server import ServerMachine
from tests.strategies import sequences

from .test_client import Scripted
from .tiny import TinyServer, joined


def put(machine: Any, data: bytes) -> memoryview:
    room: memoryview = machine.reader.fresh_buffer()
    room[: len(data)] = data
    return room


def test_a_small_result() -> None:
    machine = Scripted().machine
    assert machine.lone_call(7, [1]) == joined(encode_call(7, [1]))
    data = joined(encode(Return([1, 42])))
    assert machine.lone_answer(put(machine, data), len(data)) == 42
    assert machine.state is State.OPEN
    assert machine.pending == 0
    assert machine.reader.between_packets


@pytest.mark.parametrize("pieces", [1, 2])
def test_any_other_result(pieces: int) -> None:
    machine = Scripted().machine
    assert machine.lone_call(7, [1]) is not None
    data = joined(encode(Return([int(TypeIndex.FUNCTION), Pointer(9)])))
    size = len(data) // pieces
    assert machine.lone_answer(put(machine, data[:size]), size) is MISS
    request = machine.resume("f")
    machine.reader.received(size)
    machine.process()
    assert request.done == (pieces == 1)
    if pieces == 2:
        room = machine.reader.get_buffer()
        room[: len(data) - size] = data[size:]
        machine.reader.received(len(data) - size)
        machine.process()
    assert request.result() == RemoteHandle(TypeIndex.FUNCTION, 9)


def test_an_error() -> None:
    machine = Scripted().machine
    assert machine.lone_call(7, []) is not None
    data = joined(encode(ExceptionPacket("no")))
    assert machine.lone_answer(put(machine, data), len(data)) is MISS
    request = machine.resume("f")
    machine.reader.received(len(data))
    machine.process()
    with pytest.raises(RemoteError, match="no"):
        request.result()
    assert machine.lone_call(7, []) is not None


def busy() -> list[tuple[str, ClientMachine]]:
    new = ClientMachine()
    closed = Scripted().machine
    closed.close()
    dropped = Scripted().machine
    dropped.drop(3)
    pending = Scripted().machine
    pending.call(7, [1])
    answered = Scripted().machine
    answered.call(7, [1])
    answered.take_outgoing()
    told = Scripted()
    told.answer(ExceptionPacket("the end"))
    return [
        ("new", new),
        ("closed", closed),
        ("dropped", dropped),
        ("outgoing", pending),
        ("pending", answered),
        ("told", told.machine),
    ]


@pytest.mark.parametrize(("name", "machine"), busy())
def test_not_alone(name: str, machine: ClientMachine) -> None:
    assert machine.lone_call(7, [1]) is None


def test_what_is_long_is_no_lone_call() -> None:
    machine = Scripted().machine
    assert machine.lone_call(7, ["x" * 10]) is not None
    with pytest.raises(OverflowError):
        machine.lone_call(7, [1 << 70])


def test_closed_meanwhile() -> None:
    machine = Scripted().machine
    assert machine.lone_call(7, []) is not None
    machine.close()
    request = machine.resume("f")
    assert request.done
    with pytest.raises(ConnectionLostError):
        request.result()


def test_given_up() -> None:
    machine = Scripted().machine
    assert machine.lone_call(7, []) is not None
    request = machine.resume("f")
    machine.abandon(request)
    data = joined(encode(Return([int(TypeIndex.FUNCTION), Pointer(9)])))
    put(machine, data)
    machine.reader.received(len(data))
    machine.process()
    assert request.done
    assert machine.dropped == 1


# ---- the server's side


def outcome(machine: ServerMachine) -> str:
    try:
        return repr(machine.next_action())
    except ProtocolError as error:
        return str(error)


@given(sequences, st.booleans())
def test_a_call_is_the_same_action(args: list[Value], known: bool) -> None:
    """``whole_call`` gives what ``next_action`` would, or leaves all as it was."""
    machines = []
    numbers = []
    for _ in range(2):
        server = TinyServer()
        server.feed(joined(encode(InitServer("0.8.0", []))))
        server.feed(joined(encode(get_global_func("echo"))))
        machines.append(server.machine)
        numbers.append(server.machine._functions["echo"])
    data = joined(encode_call(numbers[0] if known else 12345, args))
    whole = machines[0].whole_call(put(machines[0], data), len(data))
    put(machines[1], data)
    machines[1].reader.received(len(data))
    found = outcome(machines[1])
    if whole is None:
        machines[0].reader.received(len(data))
        assert outcome(machines[0]) == found
    else:
        assert repr(whole) == found
    assert machines[0].state is machines[1].state
    assert machines[0].take_outgoing() == machines[1].take_outgoing()


def test_not_behind_the_beginning_of_something_unasked() -> None:
    """An answer with bytes behind it that are no packet yet: the next call goes the long way."""
    machine = Scripted().machine
    request = machine.call(7, [1], "f")
    machine.take_outgoing()
    data = joined(encode(Return([1, 42]))) + b"\1\2\3"
    room = machine.reader.get_buffer()
    room[: len(data)] = data
    machine.reader.received(len(data))
    machine.process()
    assert request.result() == 42
    assert machine.lone_call(7, [1]) is None
