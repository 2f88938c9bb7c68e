# SPDX-License-Identifier: Apache-2.0
"""A client machine and a server machine joined in memory, against a model that keeps plain Python values.

The lines between them deliver any number of bytes at a time. Requests are made ahead of answers, abandoned, and what
they gave is dropped at any moment. The model is changed when a request is made, because requests are carried out in
order; so whatever the bytes did in between, each answer must be the one that was known when it was asked for.
"""

import enum
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rpcflow.errors import ConnectionLostError, RemoteError, RPCSessionTimeoutError
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.limits import Limits
from rpcflow.protocol.packets import ExceptionPacket, alloc_with_scope, copy_among, encode
from rpcflow.protocol.sinks import ViewSink
from rpcflow.protocol.values import FunctionRef, ObjectRef, Pointer, TensorView
from rpcflow.session import client as c
from rpcflow.session import server as s
from rpcflow.session.client import ClientMachine, Request
from rpcflow.session.results import RemoteHandle, RemoteTensor
from rpcflow.session.table import Automaton
from rpcflow.session.wire_errors import FEATURE

from .tiny import CPU, TinyServer, joined

U8 = DataType(1, 8)
SMALL = Limits(packet_nbytes=16384, bulk_nbytes=64)  # an error and its traceback must fit
FOLLOWED: set[tuple[enum.Enum, enum.Enum]] = set()
"""Rows of both tables that any run has followed."""

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=100),
    st.binary(max_size=300),
    st.integers(0, 2**64 - 1).map(Pointer),
    st.integers(16_000, 20_000).map(lambda n: "é" * (n // 2)),
    st.integers(16_000, 20_000).map(lambda n: b"\0x" * (n // 2)),
)


FORGED = st.integers(1, 2**32 - 1) | st.integers(2**50, 2**63)
"""Numbers that no table gives out before it has been used for ever; others may be live when the call comes."""


class Spy(Automaton[Any, Any]):
    """An automaton whose state changes by rows of its table only."""

    __slots__ = ("path",)

    def __init__(self, table: Mapping[Any, Any], initial: Any) -> None:
        super().__init__(table, initial)
        self.path = [initial]

    def on(self, event: Any) -> None:
        row = self.state, event
        super().on(event)
        FOLLOWED.add(row)
        assert self.table[row] is self.state
        self.path.append(self.state)


class JoinedMachines(RuleBasedStateMachine):
    """Rules are what programs and lines do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = bytearray(), bytearray()
        self.waiting: list[tuple[Request, Callable[[Any], None] | None]] = []
        self.functions: list[tuple[int, str]] = []
        self.adders: list[tuple[int, int]] = []
        self.things: list[tuple[int, str]] = []
        self.tensors: list[tuple[TensorView, int, bytes]] = []
        self.memories: list[tuple[TensorView, bytearray]] = []
        self.over = False

    # ---- the lines

    @initialize(small=st.booleans())
    def begin(self, small: bool) -> None:
        limits = SMALL if small else Limits()
        self.client, self.server = ClientMachine(limits), TinyServer(limits)
        self.client._automaton = Spy(c.TABLE, c.State.NEW)
        self.server.machine._automaton = Spy(s.TABLE, s.State.AWAIT_INIT)
        self.ask(self.client.init(), lambda value: None)

    @rule(nbytes=st.one_of(st.integers(1, 400), st.integers(400, 30_000)))
    def some_bytes_up(self, nbytes: int) -> None:
        self.up += joined(self.client.take_outgoing())
        piece, self.up = self.up[:nbytes], self.up[nbytes:]
        self.down += self.server.feed(piece)

    @rule(nbytes=st.one_of(st.integers(1, 400), st.integers(400, 30_000)))
    def some_bytes_down(self, nbytes: int) -> None:
        piece, self.down = self.down[:nbytes], self.down[nbytes:]
        reader, pos = self.client.reader, 0
        while pos < len(piece) and self.client.state is not c.State.CLOSED:
            room = reader.get_buffer()
            step = min(len(room), len(piece) - pos)
            room[:step] = piece[pos : pos + step]
            reader.received(step)
            pos += step
            self.client.process()
        self.look()

    @rule()
    def settle(self) -> None:
        self.some_bytes_up(1 << 30)
        self.some_bytes_down(1 << 30)

    def look(self) -> None:
        """Answers come in order; each is what the model says."""
        while self.waiting and self.waiting[0][0].done:
            request, check = self.waiting.pop(0)
            if check is not None:
                check(request)

    def ask(self, request: Request, check: Callable[[Any], None]) -> None:
        self.waiting.append((request, lambda r: check(r.result())))

    def live(self) -> bool:
        return not self.over

    # ---- requests

    @precondition(live)
    @rule(name=st.sampled_from(["echo", "add", "fail", "make", "adder", "tensor", "bytes of", "name of", "no such"]))
    def look_up(self, name: str) -> None:
        def check(number: int) -> None:
            assert (number == 0) == (name == "no such")
            if number:
                self.functions.append((number, name))

        self.ask(self.client.lookup(name), check)

    def function(self, name: str) -> int | None:
        return next((number for number, known in self.functions if known == name), None)

    @precondition(live)
    @rule(value=values)
    def call_echo(self, value: Any) -> None:
        if (echo := self.function("echo")) is None:
            return

        def check(result: Any) -> None:
            assert result == value
            assert type(result) is type(value) or isinstance(value, bytes)

        self.ask(self.client.call(echo, [value], "echo"), check)

    @precondition(live)
    @rule(text=st.text(min_size=1, max_size=50))
    def call_fail(self, text: str) -> None:
        if (fail := self.function("fail")) is None:
            return

        def check(request: Request) -> None:
            with pytest.raises(RemoteError) as error:
                request.result()
            assert error.value.remote_message == text
            assert error.value.remote_type == "ValueError"

        self.waiting.append((self.client.call(fail, [text], "fail"), check))

    @precondition(live)
    @rule(number=FORGED, as_what=st.sampled_from([FunctionRef, ObjectRef]))
    def call_with_a_forged_handle(self, number: int, as_what: type) -> None:
        if (echo := self.function("echo")) is None:
            return

        def check(request: Request) -> None:
            with pytest.raises(RemoteError, match=r"is no handle of this session|stands for a"):
                request.result()

        self.waiting.append((self.client.call(echo, [as_what(number)], "echo"), check))

    @precondition(live)
    @rule(name=st.text(max_size=12))
    def make_a_thing(self, name: str) -> None:
        if (make := self.function("make")) is None:
            return

        def check(handle: RemoteHandle) -> None:
            assert handle.type_index == 64
            self.things.append((handle.number, name))

        self.ask(self.client.call(make, [name], "make"), check)

    @precondition(lambda self: self.things and not self.over)
    @rule(pick=st.integers(0, 9))
    def name_a_thing(self, pick: int) -> None:
        number, name = self.things[pick % len(self.things)]
        if (name_of := self.function("name of")) is not None:
            self.ask(self.client.call(name_of, [ObjectRef(number)], "name of"), _equals(name))

    @precondition(live)
    @rule(number=st.integers(-100, 100))
    def make_an_adder(self, number: int) -> None:
        if (adder := self.function("adder")) is None:
            return

        def check(handle: RemoteHandle) -> None:
            assert handle.type_index == 68
            self.adders.append((handle.number, number))

        self.ask(self.client.call(adder, [number], "adder"), check)

    @precondition(lambda self: self.adders and not self.over)
    @rule(pick=st.integers(0, 9), number=st.integers(-100, 100))
    def call_an_adder(self, pick: int, number: int) -> None:
        handle, first = self.adders[pick % len(self.adders)]
        self.ask(self.client.call(handle, [number]), _equals(first + number))

    @precondition(live)
    @rule(data=st.binary(max_size=300))
    def make_a_tensor(self, data: bytes) -> None:
        if (make := self.function("tensor")) is None:
            return

        def check(tensor: RemoteTensor) -> None:
            assert tensor.view.shape == (len(data),)
            self.tensors.append((tensor.view, tensor.number, data))

        self.ask(self.client.call(make, [data], "tensor"), check)

    @precondition(lambda self: self.tensors and not self.over)
    @rule(pick=st.integers(0, 9))
    def read_a_tensor(self, pick: int) -> None:
        view, _, data = self.tensors[pick % len(self.tensors)]
        self.ask(self.client.copy_from(view, len(data), ViewSink(_room(len(data)))), _equals_memory(data))
        if (bytes_of := self.function("bytes of")) is not None:
            self.ask(self.client.call(bytes_of, [view], "bytes of"), _equals(data))

    @precondition(live)
    @rule(nbytes=st.integers(0, 300))
    def allocate(self, nbytes: int) -> None:
        def check(number: int) -> None:
            self.memories.append((TensorView(number, CPU, U8, (nbytes,), 0), bytearray(nbytes)))

        self.ask(self.client.alloc(alloc_with_scope(CPU, (nbytes,), U8, None)), check)

    @precondition(lambda self: self.memories and not self.over)
    @rule(pick=st.integers(0, 9), data=st.binary(max_size=400), offset=st.integers(0, 350))
    def write_memory(self, pick: int, data: bytes, offset: int) -> None:
        view, model = self.memories[pick % len(self.memories)]
        view = view._replace(byte_offset=offset)
        if offset + len(data) <= len(model):
            self.ask(self.client.copy_to(view, memoryview(data)), _equals(None))
            model[offset : offset + len(data)] = data
        else:
            self.waiting.append((self.client.copy_to(view, memoryview(data)), _refused))

    @precondition(lambda self: self.memories and not self.over)
    @rule(pick=st.integers(0, 9), nbytes=st.integers(0, 400), offset=st.integers(0, 350))
    def read_memory(self, pick: int, nbytes: int, offset: int) -> None:
        view, model = self.memories[pick % len(self.memories)]
        request = self.client.copy_from(view._replace(byte_offset=offset), nbytes, ViewSink(_room(nbytes)))
        if offset + nbytes <= len(model):
            self.ask(request, _equals_memory(bytes(model[offset : offset + nbytes])))
        else:
            self.waiting.append((request, _refused))

    @precondition(lambda self: self.memories and not self.over)
    @rule(one=st.integers(0, 9), two=st.integers(0, 9))
    def copy_memory(self, one: int, two: int) -> None:
        view, model = self.memories[one % len(self.memories)]
        other, other_model = self.memories[two % len(self.memories)]
        request = self.client.syscall(copy_among(view, other))
        if len(model) == len(other_model):
            self.ask(request, _equals(None))
            other_model[:] = model
        else:
            self.waiting.append((request, _refused))

    # ---- letting go

    @precondition(lambda self: self.waiting and not self.over)
    @rule(pick=st.integers(0, 9))
    def abandon(self, pick: int) -> None:
        pick %= len(self.waiting)
        request, _ = self.waiting[pick]
        if request.label not in ("InitServer", "free"):
            self.client.abandon(request)
            self.waiting[pick] = (request, None)

    @precondition(live)
    @rule(pick=st.integers(0, 9), what=st.sampled_from(["functions", "adders", "things", "tensors", "memories"]))
    def drop(self, pick: int, what: str) -> None:
        kept = getattr(self, what)
        if not kept:
            return
        item = kept.pop(pick % len(kept))
        if what == "memories":
            self.client.drop_data(CPU, item[0].data)
        else:
            self.client.drop(item[1] if what == "tensors" else item[0])

    @precondition(live)
    @rule()
    def give_back(self) -> None:
        self.client.give_back()

    # ---- the end

    @precondition(live)
    @rule(how=st.sampled_from(["cut", "good-bye", "timeout"]))
    def end(self, how: str) -> None:
        self.over = True
        if how == "good-bye":
            self.client.shutdown()
            self.settle()
            assert self.server.machine.state is s.State.CLOSED
            assert not self.waiting
        elif how == "timeout":
            self.down += joined(encode(ExceptionPacket("RPCSessionTimeoutError: over")))
        self.server.machine.close()
        requests = [request for request, _ in self.waiting]
        self.waiting = [(request, _if_good(check)) for request, check in self.waiting]
        self.some_bytes_down(1 << 30)
        kind = RPCSessionTimeoutError if how == "timeout" else ConnectionLostError
        with pytest.raises(kind):
            self.client.connection_lost()
        for request in requests:
            assert request.done
            assert request.error is None or isinstance(request.error, kind | RemoteError)
        assert all(request.error is not None for request, _ in self.waiting)
        self.waiting.clear()
        with pytest.raises(kind):
            self.client.call(1, [])
        assert len(self.server.machine.handles) == 0
        assert self.client.pending == self.client.dropped == 0

    @invariant()
    def states_are_legal(self) -> None:
        if not hasattr(self, "client"):
            return
        for machine in (self.client, self.server.machine):
            automaton: Any = machine._automaton
            assert automaton.state is automaton.path[-1]
        assert self.client.state is not c.State.CLOSED or self.over
        assert self.server.machine.state is not s.State.WORKING  # the executor is done with each when it returns

    def teardown(self) -> None:
        """Everything dropped: nothing is left on the server but the feature that the client had asked for."""
        if self.over or not hasattr(self, "client"):
            return
        self.settle()
        assert not self.waiting
        for what in ("functions", "adders", "things", "tensors", "memories"):
            while getattr(self, what):
                self.drop(0, what)
        while self.client.give_back() is not None:
            self.settle()
        assert self.client.pending == 0
        left = [entry.label for entry in self.server.machine.handles._entries if entry is not None]
        assert left == [FEATURE]
        assert all(memory.freed for memory in self.server.memories)
        assert self.client.structured


def _if_good(check: Callable[[Any], None] | None) -> Callable[[Any], None]:
    def checked(request: Request) -> None:
        if check is not None and request.error is None:
            check(request)

    return checked


def _room(nbytes: int) -> memoryview:
    return memoryview(bytearray(nbytes))


def _equals(expected: Any) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        assert value == expected

    return check


def _equals_memory(expected: bytes) -> Callable[[Any], None]:
    def check(value: memoryview) -> None:
        assert bytes(value) == expected

    return check


def _refused(request: Request) -> None:
    with pytest.raises(RemoteError, match="bytes"):
        request.result()


JoinedMachines.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestJoinedMachines = JoinedMachines.TestCase


def test_every_row_of_the_tables_leads_somewhere() -> None:
    """No state without a way in and a way out, no event that nothing follows."""
    for table, states, events, initial in (
        (c.TABLE, c.State, c.Event, c.State.NEW),
        (s.TABLE, s.State, s.Event, s.State.AWAIT_INIT),
    ):
        rows: Mapping[Any, Any] = table
        assert {state for state, _ in rows} == set(states)
        assert {event for _, event in rows} == set(events)
        reached, before = {initial}, set()
        while reached != before:
            before = set(reached)
            reached |= {after for (state, _), after in rows.items() if state in before}
        assert reached == set(states)
