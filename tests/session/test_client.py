# SPDX-License-Identifier: Apache-2.0
"""The client machine, answered by hand-made packets."""

import gc
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcflow.errors import ConnectionLostError, ProtocolError, RemoteError, RPCError, RPCSessionTimeoutError
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.limits import Limits
from rpcflow.protocol.packets import (
    CallFunc,
    Code,
    CopyAck,
    CopyFromRemote,
    CopyToRemote,
    ExceptionPacket,
    InitServer,
    Packet,
    Return,
    Shutdown,
    SysCall,
    alloc_with_scope,
    encode,
    free_data,
    get_global_func,
)
from rpcflow.protocol.reader import Direction, PacketReader, PayloadEnd
from rpcflow.protocol.sinks import MemorySink, ViewSink
from rpcflow.protocol.values import Device, ObjectBytes, ObjectText, Pointer, TensorView
from rpcflow.session.client import (
    MAX_FREES,
    ClientMachine,
    Request,
    State,
)
from rpcflow.session.results import RemoteHandle, RemoteTensor, read_result
from rpcflow.session.table import IllegalEventError
from rpcflow.session.wire_errors import FEATURE

from .tiny import CPU, joined

U8 = DataType(1, 8)
VIEW = TensorView(9, CPU, U8, (4,), 0)


class Scripted:
    """A server made by hand: what was asked, and any bytes as answers."""

    def __init__(self, limits: Limits | None = None, begin: bool = True) -> None:
        self.machine = ClientMachine(limits) if limits else ClientMachine()
        self._reader = PacketReader(Direction.TO_SERVER)
        if begin:
            request = self.machine.init()
            assert self.asked() == [InitServer("0.8.0", []), get_global_func(FEATURE)]
            self.answer(Return([None]), Return([Pointer(0)]))
            assert request.done
            assert self.machine.state is State.OPEN

    def asked(self) -> list[Any]:
        """What the client has sent since the last time."""
        return [e for e in self._reader.feed(joined(self.machine.take_outgoing())) if type(e) is not PayloadEnd]

    def answer(self, *packets: Packet | bytes) -> None:
        """Packets, and payloads as bytes, on their way to the client."""
        self.feed(b"".join(p if isinstance(p, bytes) else joined(encode(p)) for p in packets))

    def feed(self, data: bytes) -> None:
        reader, pos = self.machine.reader, 0
        while True:
            self.machine.process()
            if pos == len(data) or self.machine.state is State.CLOSED:
                return
            room = reader.get_buffer()
            step = min(len(room), len(data) - pos)
            room[:step] = data[pos : pos + step]
            reader.received(step)
            pos += step


# ---- beginning and end


@pytest.mark.parametrize(("number", "structured"), [(0, False), (7, True)])
def test_init_asks_for_the_feature_in_the_same_flight(number: int, structured: bool) -> None:
    server = Scripted(begin=False)
    request = server.machine.init(["rpc.LocalSession"])
    assert server.asked() == [InitServer("0.8.0", ["rpc.LocalSession"]), get_global_func(FEATURE)]
    server.answer(Return([None]))
    assert request.done
    assert server.machine.pending == 1
    server.answer(Return([Pointer(number)]))
    assert server.machine.structured == structured


def test_a_server_may_refuse_the_feature() -> None:
    server = Scripted(begin=False)
    server.machine.init()
    server.answer(Return([None]), ExceptionPacket("no"))
    assert server.machine.state is State.OPEN
    assert not server.machine.structured


def test_a_refused_init_ends_all() -> None:
    server = Scripted(begin=False)
    first, later = server.machine.init(), server.machine.lookup("f")
    server.answer(ExceptionPacket("another version"), ExceptionPacket("not initialized"))
    for request in (first, later):
        with pytest.raises(RemoteError, match="another version"):
            request.result()
    assert server.machine.state is State.CLOSED
    with pytest.raises(RemoteError, match="another version"):
        server.machine.lookup("f")


def test_an_init_that_cannot_be_written_changes_nothing() -> None:
    server = Scripted(begin=False)
    with pytest.raises(TypeError):
        server.machine.init([object()])  # type: ignore[list-item]
    assert server.machine.state is State.NEW
    server.machine.init()


def test_requests_in_the_wrong_state() -> None:
    server = Scripted(begin=False)
    with pytest.raises(IllegalEventError):
        server.machine.lookup("f")
    server.machine.init()
    with pytest.raises(IllegalEventError):
        server.machine.init()


def test_good_bye() -> None:
    server = Scripted()
    server.machine.shutdown()
    assert server.asked() == [Shutdown()]
    server.machine.close()
    server.machine.shutdown()
    assert server.asked() == []
    with pytest.raises(ConnectionLostError, match="the session is closed"):
        server.machine.lookup("f")


# ---- requests and their answers


def test_answers_come_in_order() -> None:
    server = Scripted()
    machine = server.machine
    found, called, made = (
        machine.lookup("f"),
        machine.call(7, [1, "a"], "f"),
        machine.syscall(SysCall(Code.DEV_GET_ATTR, [CPU, 5])),
    )
    assert server.asked() == [
        get_global_func("f"),
        CallFunc(7, [1, "a"]),
        SysCall(Code.DEV_GET_ATTR, [CPU, 5]),
    ]
    server.answer(Return([Pointer(7)]))
    assert (found.done, called.done, machine.pending) == (True, False, 2)
    server.answer(Return([1, 2]), Return([ObjectText("name")]))
    assert (found.result(), called.result(), made.result()) == (7, 2, "name")
    assert type(made.result()) is str


def test_an_exception_answers_one_request_only() -> None:
    server = Scripted()
    first, second = server.machine.call(1, []), server.machine.call(1, [])
    server.answer(ExceptionPacket("no"), Return([0, None]))
    with pytest.raises(RemoteError, match="Error caught from RPC call:\nno") as error:
        first.result()
    assert error.value.remote_message == "no"
    assert second.result() is None
    assert server.machine.state is State.OPEN


@pytest.mark.parametrize(
    ("values", "result"),
    [
        ([0, None], None),
        ([0], None),
        ([0, 5, 6], None),
        ([1, 5], 5),
        ([True, 5], 5),
        ([2, True], True),
        ([3, 1.5], 1.5),
        ([4, Pointer(9)], Pointer(9)),
        ([5, U8], U8),
        ([6, CPU], CPU),
        ([11, "abc"], "abc"),
        ([65, ObjectText("a\0b")], "a\0b"),
        ([12, b"abc"], b"abc"),
        ([66, ObjectBytes(b"abc")], b"abc"),
        ([68, Pointer(3)], RemoteHandle(68, 3)),
        ([73, Pointer(3)], RemoteHandle(73, 3)),
        ([69, Pointer(3)], RemoteHandle(69, 3)),
        ([1000, Pointer(3)], RemoteHandle(1000, 3)),
        ([70, VIEW, Pointer(3)], RemoteTensor(VIEW, 3)),
        ([7, VIEW, Pointer(3)], RemoteTensor(VIEW, 3)),
        ([1, "not an int"], "not an int"),  # stock clients take the value as it comes, too
    ],
)
def test_results(values: list[Any], result: Any) -> None:
    assert read_result(values) == result
    assert type(read_result(values)) is type(result)


@pytest.mark.parametrize(
    "values",
    [[], ["x"], [None], [1], [70, VIEW], [70, VIEW, 3], [70, 3, Pointer(3)], [68, 3], [73, None], [99, "x"]],
)
def test_no_results(values: list[Any]) -> None:
    server = Scripted()
    first, later = server.machine.call(1, []), server.machine.call(1, [])
    with pytest.raises(ProtocolError):
        server.answer(Return(values))
    for request in (first, later):  # also the one whose answer it was
        assert request.done
        with pytest.raises(ProtocolError):
            request.result()
    assert server.machine.state is State.CLOSED


def test_a_tensor_argument_returned_by_a_stock_server_fails_its_call_only() -> None:
    server = Scripted()
    request = server.machine.call(1, [VIEW])
    server.answer(Return([7, VIEW]))
    with pytest.raises(RemoteError, match="no handle"):
        request.result()
    assert server.machine.state is State.OPEN


@pytest.mark.parametrize("values", [[], [1], [None, None], ["x"]])
def test_a_lookup_wants_a_handle(values: list[Any]) -> None:
    server = Scripted()
    request = server.machine.lookup("f")
    with pytest.raises(ProtocolError):
        server.answer(Return(values))
    assert isinstance(request.error, ProtocolError)


def test_what_does_not_travel_is_no_request() -> None:
    server = Scripted()
    server.machine.drop(5)
    for args in ([object()], [1 << 63], ["\ud800"], [Device(1 << 40, 0)]):
        with pytest.raises((TypeError, OverflowError, UnicodeEncodeError)):
            server.machine.call(1, args)  # type: ignore[arg-type]
    assert server.asked() == []
    assert server.machine.pending == 0
    assert server.machine.dropped == 1


# ---- copies


def test_copies() -> None:
    server = Scripted()
    data, target = memoryview(b"abcd"), memoryview(bytearray(4))
    up, down = server.machine.copy_to(VIEW, data), server.machine.copy_from(VIEW, 4, ViewSink(target))
    assert server.asked() == [CopyToRemote(VIEW, 4), CopyFromRemote(VIEW, 4)]
    server.answer(Return([None]), CopyAck(4), b"wx")
    assert (up.done, down.done) == (True, False)
    assert server.machine.state is State.RECEIVING
    later = server.machine.lookup("f")  # requests may be made meanwhile
    server.answer(b"yz", Return([Pointer(1)]))
    assert bytes(down.result()) == b"wxyz" == bytes(target)
    assert later.result() == 1
    assert server.machine.state is State.OPEN


def test_payload_is_sent_from_where_it_lies() -> None:
    server = Scripted()
    data = memoryview(b"x" * 10)
    server.machine.copy_to(VIEW, data)
    assert any(part is data for part in server.machine.take_outgoing())


def test_a_copy_may_be_refused() -> None:
    server = Scripted()
    request = server.machine.copy_from(VIEW, 4, ViewSink(memoryview(bytearray(4))))
    server.answer(ExceptionPacket("no"))
    with pytest.raises(RemoteError):
        request.result()
    assert server.machine.state is State.OPEN


def test_the_sink_of_a_copy_finishes_once() -> None:
    class Counted(MemorySink):
        finished = 0

        def finish(self) -> bytearray:
            self.finished += 1
            return super().finish()

    server, sink = Scripted(), Counted(4)
    request = server.machine.copy_from(VIEW, 4, sink)
    server.answer(CopyAck(4), b"abcd")
    assert request.result() == b"abcd"
    assert sink.finished == 1


@pytest.mark.parametrize("nbytes", [0, 3, 5, 1 << 60])
def test_a_copy_of_another_size_is_a_fault(nbytes: int) -> None:
    server = Scripted()
    request = server.machine.copy_from(VIEW, 4, ViewSink(memoryview(bytearray(4))))
    with pytest.raises(ProtocolError, match="where 4 were asked for"):
        server.feed(struct.pack("<Qi", 4 + nbytes, 8))
    assert request.done


@pytest.mark.parametrize("when", ["before", "in"])
def test_an_abandoned_copy_does_not_touch_the_memory_any_more(when: str) -> None:
    server = Scripted()
    target = bytearray(4)
    request = server.machine.copy_from(VIEW, 4, ViewSink(memoryview(target)))
    if when == "in":
        server.answer(CopyAck(4), b"ab")
    server.machine.abandon(request)
    assert server.asked()
    later = server.machine.lookup("f")
    server.answer(b"cd" if when == "in" else joined(encode(CopyAck(4))) + b"abcd", Return([Pointer(3)]))
    assert bytes(target) == (b"ab\0\0" if when == "in" else bytes(4))
    assert later.result() == 3
    assert request.done


# ---- answers that nobody waits for


@pytest.mark.parametrize("packet", [Return([None]), CopyAck(4), CopyAck(0)])
def test_unasked_answers(packet: Packet) -> None:
    server = Scripted()
    with pytest.raises(ProtocolError, match="nobody waits for"):
        server.answer(packet)
    assert server.machine.state is State.CLOSED


def test_the_wrong_kind_of_answer() -> None:
    server = Scripted()
    request = server.machine.copy_from(VIEW, 4, ViewSink(memoryview(bytearray(4))))
    with pytest.raises(ProtocolError, match="nobody waits for"):
        server.answer(Return([None]))
    assert isinstance(request.error, ProtocolError)
    server = Scripted()
    request = server.machine.call(1, [])
    with pytest.raises(ProtocolError, match="nobody waits for"):
        server.answer(CopyAck(4))
    assert isinstance(request.error, ProtocolError)


def test_a_long_answer_that_nobody_waits_for_takes_no_memory() -> None:
    server = Scripted(Limits(packet_nbytes=200, bulk_nbytes=50))
    data = joined(encode(Return([66, b"x" * 500])))
    with pytest.raises(ProtocolError, match="nobody waits for"):
        server.feed(data[:40])
    server = Scripted(Limits(packet_nbytes=200, bulk_nbytes=50))
    request = server.machine.call(1, [])
    server.feed(data)
    assert request.result() == b"x" * 500


# ---- the end


def test_last_words_while_idle_answer_the_next_request() -> None:
    server = Scripted()
    words = "RPCSessionTimeoutError: Your 1.0s session has expired"
    server.answer(ExceptionPacket(words))
    assert server.machine.state is State.OPEN
    with pytest.raises(RPCSessionTimeoutError, match=r"^Your 1\.0s session"):
        server.machine.call(1, [])
    assert server.machine.state is State.CLOSED
    with pytest.raises(RPCSessionTimeoutError):
        server.machine.lookup("f")


def test_last_words_answer_the_request_under_way() -> None:
    server = Scripted()
    first, second = server.machine.call(1, []), server.machine.call(1, [])
    server.answer(ExceptionPacket("RPCSessionTimeoutError: over"))
    with pytest.raises(RPCSessionTimeoutError):
        first.result()
    with pytest.raises(RPCSessionTimeoutError):
        server.machine.connection_lost()
    with pytest.raises(RPCSessionTimeoutError):
        second.result()


def test_last_words_that_answer_a_free_are_not_lost() -> None:
    server = Scripted()
    server.machine.drop(5)
    request = server.machine.call(1, [])
    server.answer(ExceptionPacket("RPCSessionTimeoutError: over"))
    assert not request.done
    with pytest.raises(RPCSessionTimeoutError):
        server.machine.connection_lost()
    with pytest.raises(RPCSessionTimeoutError):
        request.result()


def test_last_words_outlive_the_line() -> None:
    server = Scripted()
    server.answer(ExceptionPacket("RPCSessionTimeoutError: over"))
    with pytest.raises(RPCSessionTimeoutError):
        server.machine.connection_lost()
    with pytest.raises(RPCSessionTimeoutError):
        server.machine.call(1, [])


def test_a_lost_line_fails_all_that_wait() -> None:
    server = Scripted()
    requests = [server.machine.call(1, []) for _ in range(3)]
    server.machine.drop(9)
    with pytest.raises(ConnectionLostError, match="pulled"):
        server.machine.connection_lost("the cable was pulled")
    for request in requests:
        with pytest.raises(ConnectionLostError, match="pulled"):
            request.result()
    assert server.machine.pending == server.machine.dropped == 0
    assert server.asked() == []
    server.machine.drop(9)  # finalizers may still run
    server.machine.drop_data(CPU, 9)
    assert server.machine.dropped == 0


def test_a_lost_line_lets_go_of_the_sink() -> None:
    class Watched(MemorySink):
        abandoned = False

        def abandon(self) -> None:
            self.abandoned = True

    server, sink = Scripted(), Watched(4)
    server.machine.copy_from(VIEW, 4, sink)
    server.answer(CopyAck(4), b"ab")
    with pytest.raises(ConnectionLostError):
        server.machine.connection_lost()
    assert sink.abandoned


def test_shutdown_from_the_server() -> None:
    server = Scripted()
    first, second = server.machine.call(1, []), server.machine.call(1, [])
    with pytest.raises(ConnectionLostError, match="the server ended the session"):
        server.answer(Return([1, 5]), Shutdown())
    assert first.result() == 5
    with pytest.raises(ConnectionLostError):
        second.result()


def test_shutdown_behind_the_last_answer_spares_that_answer() -> None:
    server = Scripted()
    request = server.machine.call(1, [])
    server.answer(Return([1, 5]), Shutdown())
    assert request.result() == 5
    assert server.machine.state is State.CLOSED
    with pytest.raises(ConnectionLostError, match="the server ended the session"):
        server.machine.call(1, [])


def test_nothing_is_taken_in_after_the_end() -> None:
    server = Scripted()
    server.machine.close("we are done")
    room = server.machine.reader.get_buffer()
    data = joined(encode(ExceptionPacket("late")))
    room[: len(data)] = data
    server.machine.reader.received(len(data))
    server.machine.process()
    with pytest.raises(ConnectionLostError, match="we are done"):
        server.machine.call(1, [])


@pytest.mark.parametrize(
    "data",
    [struct.pack("<Qi", 4, 3), struct.pack("<Q", 1 << 63), struct.pack("<Qii", 8, 5, 0), b"\xff" * 12],
)
def test_faults(data: bytes) -> None:
    server = Scripted()
    request = server.machine.call(1, [])
    with pytest.raises(ProtocolError):
        server.feed(data)
    with pytest.raises(ProtocolError):
        request.result()
    with pytest.raises(ProtocolError):
        server.machine.call(1, [])


# ---- handles given back


def test_frees_travel_ahead_of_the_next_request() -> None:
    server = Scripted()
    server.machine.drop(5)
    server.machine.drop_data(CPU, 6)
    server.machine.drop(0)  # stands for nothing
    assert server.asked() == []
    request = server.machine.call(1, [])
    assert server.asked() == [
        SysCall(Code.FREE_HANDLE, [Pointer(5)]),
        free_data(CPU, 6),
        CallFunc(1, []),
    ]
    server.answer(Return([None]), ExceptionPacket("no such handle"), Return([1, 5]))
    assert request.result() == 5
    assert server.machine.state is State.OPEN


def test_many_frees_travel_in_parts() -> None:
    server = Scripted()
    for number in range(1, MAX_FREES + 11):
        server.machine.drop(number)
    request = server.machine.call(1, [])
    assert len(server.asked()) == MAX_FREES + 1
    assert server.machine.dropped == 10
    server.answer(*[Return([None])] * MAX_FREES, Return([0, None]))
    assert request.done
    last = server.machine.give_back()
    assert last is not None
    assert len(server.asked()) == 10
    server.answer(*[Return([None])] * 10)
    assert last.done
    assert server.machine.give_back() is None


def _abandoned(make: Any, answer: Packet, late: bool) -> list[Any]:
    """What is given back for a request that was abandoned before (late: after) its answer."""
    server = Scripted()
    request: Request = make(server.machine)
    server.asked()
    if not late:
        server.machine.abandon(request)
        assert not request.done
    server.answer(answer)
    if late:
        server.machine.abandon(request)
    assert request.done
    server.machine.give_back()
    return server.asked()


@pytest.mark.parametrize("late", [False, True])
def test_abandoned_requests_give_their_handles_back(late: bool) -> None:
    free = [SysCall(Code.FREE_HANDLE, [Pointer(3)])]
    for values in ([68, Pointer(3)], [73, Pointer(3)], [64, Pointer(3)], [70, VIEW, Pointer(3)]):
        assert _abandoned(lambda m: m.call(1, []), Return(values), late) == free
    for values in ([1, 5], [0, None], [4, Pointer(3)], [11, "x"], [68, Pointer(0)]):
        assert _abandoned(lambda m: m.call(1, []), Return(values), late) == []
    assert _abandoned(lambda m: m.lookup("f"), Return([Pointer(3)]), late) == free
    assert _abandoned(lambda m: m.lookup("f"), Return([Pointer(0)]), late) == []
    gpu = Device(2, 1)
    alloc = alloc_with_scope(gpu, (4,), U8, None)
    assert _abandoned(lambda m: m.alloc(alloc), Return([Pointer(3)]), late) == [free_data(gpu, 3)]
    alloc = SysCall(Code.DEV_ALLOC_DATA, [gpu, 4, 64, U8])
    assert _abandoned(lambda m: m.alloc(alloc), Return([Pointer(3)]), late) == [free_data(gpu, 3)]
    stream = SysCall(Code.DEV_CREATE_STREAM, [gpu])
    assert _abandoned(lambda m: m.syscall(stream), Return([Pointer(3)]), late) == [
        SysCall(Code.DEV_FREE_STREAM, [gpu, Pointer(3)])
    ]
    assert _abandoned(lambda m: m.syscall(stream), Return([Pointer(0)]), late) == []
    current = SysCall(Code.DEV_GET_CURRENT_STREAM, [gpu])
    assert _abandoned(lambda m: m.syscall(current), Return([Pointer(3)]), late) == []
    assert _abandoned(lambda m: m.call(1, []), ExceptionPacket("no"), late) == []


def test_abandoning_twice_gives_back_once() -> None:
    server = Scripted()
    request = server.machine.call(1, [])
    server.machine.abandon(request)
    server.answer(Return([68, Pointer(3)]))
    server.machine.abandon(request)
    assert server.machine.dropped == 1


def test_handles_may_be_dropped_by_finalizers_while_frees_are_written() -> None:
    server = Scripted()
    machine = server.machine

    class Proxy:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            machine.drop(7)

    for _ in range(50):
        Proxy()
    gc.collect()
    for _ in range(50):
        Proxy()
    before = machine.dropped
    assert before >= 50
    gc.set_threshold(1)
    try:
        machine.call(1, [])
    finally:
        gc.set_threshold(700, 10, 10)
    gc.collect()
    frees = len(server.asked()) - 1
    assert frees + machine.dropped == 100


# ---- anything


@given(st.lists(st.binary(max_size=60), max_size=6), st.integers(-1, 10), st.integers(0, 4))
@settings(max_examples=300)
def test_garbage(bodies: list[bytes], code: int, asked: int) -> None:
    """Whatever a server sends: answers, or RPCError once, after which every request has failed."""
    server = Scripted()
    makers: list[Any] = [
        lambda: server.machine.call(1, []),
        lambda: server.machine.copy_from(VIEW, 4, ViewSink(memoryview(bytearray(4)))),
        lambda: server.machine.lookup("f"),
        lambda: server.machine.copy_to(VIEW, memoryview(b"abcd")),
    ]
    requests = [make() for make in makers[:asked]]
    try:
        for body in bodies:
            server.feed(struct.pack("<Qi", 4 + len(body), code) + body)
    except RPCError:
        assert server.machine.state is State.CLOSED
    if server.machine.state is State.CLOSED:
        assert all(request.done for request in requests)
        assert server.machine.pending == 0
