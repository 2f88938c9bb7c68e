# SPDX-License-Identifier: Apache-2.0
"""The server machine, asked by hand-made packets: what is answered, refused, or the end."""

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcflow.errors import ProtocolError
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.limits import Limits
from rpcflow.protocol.packets import (
    CallFunc,
    Code,
    CopyFromRemote,
    CopyToRemote,
    ExceptionPacket,
    InitServer,
    Packet,
    Shutdown,
    SysCall,
    alloc_with_scope,
    copy_among,
    encode,
    free_data,
    get_global_func,
)
from rpcflow.protocol.sinks import DiscardSink
from rpcflow.protocol.values import (
    BulkBytes,
    Device,
    FunctionRef,
    ModuleRef,
    ObjectBytes,
    ObjectRef,
    ObjectText,
    Pointer,
    TensorView,
)
from rpcflow.session import server as s
from rpcflow.session.handles import Kind
from rpcflow.session.server import Given, GivenTensor, ServerMachine, State
from rpcflow.session.wire_errors import FEATURE
from tests.transcripts import cases

from .tiny import CPU, FUNCTIONS, REFUSED, Memory, Scripted, Thing, TinyServer, joined

U8 = DataType(1, 8)
FORGED = Pointer(1 << 32 | 1000)


def free(number: int) -> SysCall:
    return SysCall(Code.FREE_HANDLE, [Pointer(number)])


def view(number: int, nbytes: int, offset: int = 0, device: Device = CPU) -> TensorView:
    return TensorView(number, device, U8, (nbytes,), offset)


def refused(client: Scripted, packet: Packet, words: str, payload: bytes = b"") -> None:
    """The request fails in words, and the session goes on."""
    held = len(client.machine.handles)
    answer = client.ask(packet, payload)
    assert isinstance(answer, ExceptionPacket)
    assert words in answer.message, answer.message
    assert client.machine.state is State.READY
    assert len(client.machine.handles) == held
    assert client.call("add", 1, 2) == [1, 3]


# ---- beginning and end


@pytest.mark.parametrize("packet", [CallFunc(1, []), get_global_func("echo"), free(0), CopyFromRemote(view(1, 1), 1)])
def test_before_init(packet: Packet) -> None:
    client = Scripted(begin=False)
    answer = client.ask(packet)
    assert isinstance(answer, ExceptionPacket)
    assert "has not been initialized" in answer.message
    assert client.machine.state is State.AWAIT_INIT
    assert client.ask(InitServer("0.8.0", [])) == [None]
    assert client.call("add", 1, 2) == [1, 3]


def test_a_copy_before_init_is_answered_once_its_payload_is_out_of_the_way() -> None:
    client = Scripted(begin=False)
    data = joined(encode(CopyToRemote(view(1, 3), 3))) + b"abc"
    assert client.send_bytes(data[:-1]) == []
    (answer,) = client.send_bytes(data[-1:])
    assert "before the session was initialized" in answer.message
    assert client.ask(InitServer("0.8.0", [])) == [None]


def test_init_twice() -> None:
    client = Scripted()
    refused(client, InitServer("0.8.0", []), "already been initialized")


def test_another_version_then_the_right_one() -> None:
    client = Scripted(begin=False)
    for version in ("0.7.0", "", "0.8.0\0", "1" * 1000):
        answer = client.ask(InitServer(version, []))
        assert "Client protocol version mismatch" in answer.message
        assert client.machine.state is State.AWAIT_INIT
    assert client.ask(InitServer("0.8.0", [])) == [None]


def test_a_constructor_that_fails_leaves_room_for_another_try() -> None:
    client = Scripted(begin=False)
    assert "no constructor" in client.ask(InitServer("0.8.0", ["rpc.Nothing", 1])).message
    assert client.machine.state is State.AWAIT_INIT
    assert client.ask(InitServer("0.8.0", [])) == [None]


def test_forwarding_leaves_the_bytes_alone() -> None:
    client = Scripted(begin=False)
    assert client.ask(InitServer("0.8.0", ["elsewhere"])) == [None]
    assert client.machine.state is State.FORWARDING
    assert client.send(get_global_func("echo")) == []
    assert client.machine.reader.unread() == joined(encode(get_global_func("echo")))


def test_good_bye() -> None:
    client = Scripted()
    client.lookup("echo")
    assert client.send_bytes(joined(encode(Shutdown())) + joined(encode(get_global_func("add")))) == []
    assert client.machine.state is State.CLOSED
    assert client.server.actions[-1] == s.Closed()
    client.machine.close()
    assert len(client.machine.handles) == 0


# ---- what ends the session


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Qi", 4, 99),
        struct.pack("<Qi", 4, 0),
        struct.pack("<Qiii", 12, 4, 1, 0),  # a Return
        struct.pack("<Qi", 4, 8),  # a CopyAck
        struct.pack("<Q", 1 << 63),
        struct.pack("<Q", 3),
        struct.pack("<QiQii", 20, 3, 1, 1, 13),
        struct.pack("<QiQiQ", 24, 3, 1, 0, 0),  # bytes behind the last value
        joined(encode(CallFunc(1, [TensorView(1, CPU, U8, (2**32, 2**32))]))),  # a shape that overflows
        joined(encode(CallFunc(1, [TensorView(1, CPU, DataType(3, 0), (2**62, 4))]))),
        joined(encode(CopyFromRemote(TensorView(1, CPU, U8, (2**62, 2**62, 2**62)), 1))),
        joined(encode(CallFunc(1, ["x"]))).replace(b"x", b"\xff"),  # not UTF-8
        b"\xff" * 64,
    ],
)
def test_the_end(data: bytes) -> None:
    """The client is told what was wrong, everything given out is let go of, and nothing more is answered."""
    client = Scripted()
    client.lookup("echo")
    (answer,) = client.send_bytes(data)
    assert isinstance(answer, ExceptionPacket)
    assert answer.message.startswith("ProtocolError: ")
    assert client.machine.state is State.CLOSED
    assert len(client.machine.handles) == 0
    assert client.send_bytes(joined(encode(get_global_func("echo")))) == []


@pytest.mark.parametrize("at", range(1, 44))
def test_a_client_that_stops_half_way(at: int) -> None:
    """Nothing is answered, nothing is an error, and the machine knows that it stands inside a packet."""
    client = Scripted()
    number = client.alloc(4)
    data = joined(encode(CopyToRemote(view(number, 4), 4))) + b"abcd"
    assert client.send_bytes(data[:at]) == []
    assert not client.machine.reader.between_packets
    client.machine.close()
    assert client.machine.state is State.CLOSED


def test_faults_of_the_recordings() -> None:
    """What stock servers die of is answered in words here."""
    wanted = {"raw-trailing-bytes", "raw-unknown-code", "raw-unknown-type-index"}
    for case in cases():
        if case.name in wanted and case.way == "c2s":
            client = Scripted(begin=False)
            key = struct.unpack_from("<i", case.data, 4)[0]
            last = client.send_bytes(case.data[8 + key :])[-1]
            assert last.message.startswith("ProtocolError: ")
            wanted.remove(case.name)
    assert not wanted


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raw-call-before-init", ["has not been initialized"]),
        ("raw-syscall-before-init", ["has not been initialized"]),
        ("raw-init-twice", ["already been initialized"]),
        ("raw-version-mismatch", ["version mismatch"]),
        ("raw-version-mismatch-then-init", ["version mismatch"]),
    ],
)
def test_recorded_clients_that_ask_too_early_or_twice(name: str, words: list[str]) -> None:
    (case,) = [case for case in cases() if case.name == name and case.way == "c2s"]
    client = Scripted(begin=False)
    key = struct.unpack_from("<i", case.data, 4)[0]
    got = client.send_bytes(case.data[8 + key :])
    told = [answer.message for answer in got if isinstance(answer, ExceptionPacket)]
    for word in words:
        assert any(word in message for message in told)


# ---- handles


def test_handles_never_given_out() -> None:
    client = Scripted()
    for packet in (
        CallFunc(0, []),
        CallFunc(FORGED, []),
        CallFunc((1 << 64) - 1, []),
        free(FORGED),
        free_data(CPU, FORGED),
        CopyFromRemote(view(FORGED, 1), 1),
        copy_among(view(FORGED, 1), view(FORGED, 1)),
    ):
        refused(client, packet, "is no handle of this session")
    refused(client, CopyToRemote(view(FORGED, 3), 3), "is no handle of this session", b"abc")
    echo = client.lookup("echo")
    for ref in (FunctionRef(FORGED), ModuleRef(FORGED), ObjectRef(FORGED), view(FORGED, 1), view(0, 0)):
        refused(client, CallFunc(echo, [ref]), "is no handle of this session")


def test_freed_twice() -> None:
    client = Scripted()
    number = client.lookup("echo")
    assert client.ask(free(number)) == [None]
    refused(client, free(number), "freed before")
    refused(client, CallFunc(number, []), "freed before")
    memory = client.alloc(4)
    assert client.ask(free_data(CPU, memory)) == [None]
    assert client.server.memories[0].freed
    refused(client, free_data(CPU, memory), "freed before")
    refused(client, CopyFromRemote(view(memory, 4), 4), "freed before")


def test_zero_is_freed_without_a_word() -> None:
    client = Scripted()
    assert client.ask(free(0)) == [None]
    assert client.ask(free_data(CPU, 0)) == [None]


def test_of_the_wrong_kind() -> None:
    client = Scripted()
    echo, memory = client.lookup("echo"), client.alloc(4)
    _, module = client.call("module")
    _, thing = client.call("make", "t")
    _, tensor, tensor_number = client.call("tensor", b"abcd")
    refused(client, CallFunc(memory, []), "stands for a memory, not a function")
    refused(client, CallFunc(module, []), "stands for a module, not a function")
    refused(client, free(memory), "stands for a memory")
    refused(client, free_data(CPU, echo), "stands for a function, not a memory")
    refused(client, free_data(CPU, tensor_number), "stands for a tensor, not a memory")
    refused(client, CopyFromRemote(view(thing, 1), 1), "stands for a object, not a memory or tensor")
    refused(client, CallFunc(echo, [ModuleRef(echo)]), "stands for a function, not a module")
    refused(client, CallFunc(echo, [FunctionRef(module)]), "stands for a module, not a function")
    for number in (memory, tensor_number):  # bare memory is never handed to a function
        refused(client, CallFunc(echo, [ObjectRef(number)]), "not a object")
    assert tensor.data == tensor_number


def test_each_look_up_is_a_reference() -> None:
    client = Scripted()
    numbers = {client.lookup("echo") for _ in range(3)}
    assert len(numbers) == 1
    number = numbers.pop()
    for _ in range(3):
        assert client.ask(CallFunc(number, [5])) == [1, 5]
        assert client.ask(free(number)) == [None]
    refused(client, free(number), "freed before")
    assert client.lookup("echo") != number
    assert client.lookup("no such thing") == 0


def test_each_answer_is_a_handle_of_its_own() -> None:
    client = Scripted()
    _, one = client.call("make", "t")
    answer = client.call("echo", ObjectRef(one))
    assert answer[0] == 64
    assert client.call("name of", ObjectRef(answer[1])) == [11, "t"]
    assert client.ask(free(one)) == [None]
    assert client.call("name of", ObjectRef(answer[1])) == [11, "t"]
    assert client.ask(free(answer[1])) == [None]
    assert len(client.machine.handles) == 0


def test_functions_modules_and_objects_are_borrowed_as_arguments() -> None:
    client = Scripted()
    _, adder = client.call("adder", 40)
    assert client.ask(CallFunc(adder, [2])) == [1, 42]
    kind, again = client.call("echo", FunctionRef(adder))
    assert kind == 68
    for number in (adder, again):
        assert client.ask(free(number)) == [None]
    assert len(client.machine.handles) == 0


# ---- tensors and memory


def test_copies() -> None:
    client = Scripted()
    memory = client.alloc(6)
    assert client.ask(CopyToRemote(view(memory, 6), 6), b"abcdef") == [None]
    assert client.ask(CopyFromRemote(view(memory, 6), 6)) == b"abcdef"
    assert client.ask(CopyFromRemote(view(memory, 2, offset=4), 2)) == b"ef"
    assert client.ask(CopyToRemote(view(memory, 6, offset=2), 3), b"XYZ") == [None]
    assert client.ask(CopyFromRemote(view(memory, 6), 6)) == b"abXYZf"
    other = client.alloc(3)
    assert client.ask(copy_among(view(memory, 3, offset=2), view(other, 3))) == [None]
    assert client.ask(CopyFromRemote(view(other, 3), 3)) == b"XYZ"
    assert client.ask(CopyFromRemote(view(other, 3), 0)) == b""
    assert client.ask(CopyToRemote(view(other, 3), 0)) == [None]
    assert client.call("bytes of", view(memory, 2, offset=1)) == [12, b"bX"]


def test_a_returned_tensor() -> None:
    client = Scripted()
    kind, tensor, number = client.call("tensor", b"abcd")
    assert (kind, tensor.shape, tensor.dtype, tensor.byte_offset) == (70, (4,), U8, 0)
    assert client.ask(CopyFromRemote(tensor, 4)) == b"abcd"
    assert client.call("bytes of", tensor) == [12, b"abcd"]
    assert client.ask(free(number)) == [None]
    refused(client, CopyFromRemote(tensor, 4), "freed before")


@pytest.mark.parametrize(
    ("offset", "nbytes", "shape"),
    [
        (0, 9, (9,)),  # a tensor larger than its memory
        (1, 8, (8,)),
        (8, 1, (1,)),
        (9, 0, (0,)),
        ((1 << 64) - 1, 1, (1,)),
        (0, 2**59, (2**59,)),
        (0, 5, (4,)),  # a copy longer than the tensor
        (0, (1 << 64) - 1, (4,)),
    ],
)
def test_past_the_end(offset: int, nbytes: int, shape: tuple[int, ...]) -> None:
    client = Scripted()
    memory, echo = client.alloc(8), client.lookup("echo")
    tensor = TensorView(memory, CPU, U8, shape, offset)
    refused(client, CopyFromRemote(tensor, nbytes), "bytes")
    if nbytes < 100:
        refused(client, CopyToRemote(tensor, nbytes), "bytes", b"x" * nbytes)
    if shape != (4,):
        refused(client, CallFunc(echo, [tensor]), "bytes")
        refused(client, copy_among(tensor, tensor), "bytes")
    assert client.ask(CopyFromRemote(view(memory, 8), 8)) == bytes(8)


def test_other_refusals_of_tensors() -> None:
    client = Scripted()
    memory, echo = client.alloc(8), client.lookup("echo")
    refused(client, CopyFromRemote(view(memory, 8, device=Device(2, 0)), 8), "lies on")
    refused(client, copy_among(view(memory, 4), view(memory, 3)), "a copy of 4 bytes into a tensor of 3")
    refused(client, alloc_with_scope(REFUSED, (3,), U8, None), "no such memory")
    refused(client, alloc_with_scope(CPU, (3,), U8, "texture"), "no such memory")
    refused(client, alloc_with_scope(CPU, (2**59,), U8, None), "bytes")
    refused(client, SysCall(Code.DEV_ALLOC_DATA, [CPU, -1, 64, U8]), "cannot be")
    refused(client, SysCall(Code.DEV_ALLOC_DATA, [CPU, 1, -64, U8]), "cannot be")
    no_size = TensorView(memory, CPU, DataType(3, 0), (2**62,))
    refused(client, CallFunc(echo, [no_size]), "elements of no size")
    # What the executor cannot make a tensor of is the request's failure, not the session's.
    refused(client, CallFunc(echo, [TensorView(memory, CPU, DataType(5, 8), (1,))]), "no complex numbers here")


def test_a_copy_that_its_executor_refuses() -> None:
    """The words come behind the payload, whose bytes go nowhere."""
    client = Scripted()
    odd = Device(12, 0)
    memory = client.alloc(4, odd)
    data = joined(encode(CopyToRemote(view(memory, 4, device=odd), 4))) + b"abcd"
    assert client.send_bytes(data[:-1]) == []
    (answer,) = client.send_bytes(data[-1:])
    assert answer.message == "this device takes no data"
    assert client.call("add", 1, 2) == [1, 3]


# ---- system calls


@pytest.mark.parametrize(
    "packet",
    [
        SysCall(Code.GET_GLOBAL_FUNC, []),
        SysCall(Code.GET_GLOBAL_FUNC, [1]),
        SysCall(Code.GET_GLOBAL_FUNC, [b"echo"]),
        SysCall(Code.GET_GLOBAL_FUNC, ["echo", "echo"]),
        SysCall(Code.FREE_HANDLE, []),
        SysCall(Code.FREE_HANDLE, [1]),
        SysCall(Code.FREE_HANDLE, [ObjectRef(1)]),
        SysCall(Code.DEV_FREE_DATA, [CPU]),
        SysCall(Code.DEV_FREE_DATA, [CPU, CPU]),
        SysCall(Code.DEV_GET_ATTR, [CPU, True]),
        SysCall(Code.DEV_ALLOC_DATA, [CPU, 1, 1, None]),
        SysCall(Code.DEV_ALLOC_DATA_WITH_SCOPE, [view(0, 1), 1]),
        SysCall(Code.COPY_AMONG_REMOTE, [view(0, 1), None, Pointer(0)]),
        SysCall(Code.DEV_STREAM_SYNC, [None, None]),
    ],
    ids=str,
)
def test_arguments_of_the_wrong_type_or_number(packet: Packet) -> None:
    refused(Scripted(), packet, "argument")


def test_every_system_call_has_a_signature() -> None:
    assert set(s._SIGNATURES) == {code for code in Code if code >= Code.GET_GLOBAL_FUNC}


@pytest.mark.parametrize(
    ("code", "args"),
    [
        (Code.DEV_SET_DEVICE, [CPU]),
        (Code.DEV_GET_ATTR, [CPU, 5]),
        (Code.DEV_STREAM_SYNC, [CPU, Pointer(0)]),
        (Code.DEV_CREATE_STREAM, [CPU]),
        (Code.DEV_FREE_STREAM, [CPU, Pointer(1)]),
        (Code.DEV_SET_STREAM, [CPU, Pointer(1)]),
        (Code.DEV_GET_CURRENT_STREAM, [CPU]),
    ],
)
def test_calls_of_a_device(code: Code, args: list[Any]) -> None:
    client = Scripted()
    assert client.ask(SysCall(code, args)) == [code.name]
    assert client.server.actions[-1] == s.DeviceCall(code, CPU, args[1:])


# ---- calls and their results


@pytest.mark.parametrize(
    ("arg", "answer"),
    [
        (None, [0, None]),
        (5, [1, 5]),
        (-(2**63), [1, -(2**63)]),
        (True, [2, True]),
        (1.5, [3, 1.5]),
        (Pointer(7), [4, Pointer(7)]),
        (DataType(2, 16), [5, DataType(2, 16)]),
        (Device(2, 1), [6, Device(2, 1)]),
        ("1234567", [11, "1234567"]),
        ("12345678", [65, "12345678"]),
        ("a\0b", [11, "a\0b"]),
        (b"1234567", [12, b"1234567"]),
        (b"12345678", [66, b"12345678"]),
        (ObjectText("abc"), [11, "abc"]),  # whatever form it came in
        (ObjectBytes(b"abc"), [12, b"abc"]),
    ],
)
def test_results(arg: Any, answer: list[Any]) -> None:
    got = Scripted().call("echo", arg)
    assert got == answer
    text_with_nul = isinstance(arg, str) and "\0" in arg
    assert isinstance(got[-1], ObjectText) == text_with_nul  # the form in which stock clients keep it


def test_results_that_do_not_travel() -> None:
    client = Scripted()
    refused(client, CallFunc(client.lookup("unsendable"), []), "a object does not travel")
    for result in (1 << 63, "\ud800", BulkBytes(memoryview(b"")), {}):
        FUNCTIONS["odd"] = lambda result=result: result
        try:
            answer = client.call("odd")
        finally:
            del FUNCTIONS["odd"]
        if not isinstance(result, BulkBytes):
            assert isinstance(answer, ExceptionPacket)
    assert len(client.machine.handles) == 1


def test_a_result_that_cannot_be_written_gives_no_handle() -> None:
    client = Scripted()
    results = [
        GivenTensor(Memory(4), DataType(999, 8), (4,)),
        GivenTensor(Memory(4), U8, (1 << 64,)),
        Given(1 << 70, Kind.OBJECT, Thing("t")),
    ]
    for result in results:
        FUNCTIONS["odd"] = lambda result=result: result
        try:
            assert isinstance(client.call("odd"), ExceptionPacket)
        finally:
            del FUNCTIONS["odd"]
        assert len(client.machine.handles) == 0


def test_errors_of_functions() -> None:
    client = Scripted()
    refused(client, CallFunc(client.lookup("fail"), ["it broke"]), "it broke")
    answer = client.call("fail", "it broke")
    assert answer.message == "it broke"


def test_structured_errors_once_asked_for() -> None:
    client = Scripted()
    assert not client.machine.structured
    assert client.lookup(FEATURE)
    assert client.machine.structured
    answer = client.call("fail", "it broke")
    assert answer.message.startswith("rpcflow-error {")
    assert '"remote_type": "ValueError"' in answer.message


def test_requests_ahead_of_answers() -> None:
    client = Scripted()
    echo = client.lookup("echo")
    data = b"".join(joined(encode(CallFunc(echo, [i]))) for i in range(100))
    assert client.send_bytes(data) == [[1, i] for i in range(100)]


# ---- long arguments

SMALL = Limits(packet_nbytes=200, bulk_nbytes=50)


def test_a_long_argument_is_announced() -> None:
    client = Scripted(SMALL)
    assert client.call("echo", b"x" * 500) == [66, b"x" * 500]
    (announced,) = [action for action in client.server.actions if isinstance(action, s.BulkArgument)]
    assert announced.function is FUNCTIONS["echo"]
    assert (announced.nbytes, announced.is_text) == (500, False)


def test_nothing_is_kept_of_a_long_argument_to_a_call_that_will_be_refused() -> None:
    client = Scripted(SMALL)
    before = Scripted(SMALL, begin=False)
    data = joined(encode(CallFunc(FORGED, [b"x" * 500])))
    for asked in (client, before):
        assert asked.send_bytes(data[:100]) == []
        assert isinstance(asked.machine.reader._sink, DiscardSink)
        (answer,) = asked.send_bytes(data[100:])
        assert isinstance(answer, ExceptionPacket)
        assert not [action for action in asked.server.actions if isinstance(action, s.BulkArgument)]


def test_a_constructor_may_have_a_long_argument() -> None:
    client = Scripted(SMALL, begin=False)
    assert "no constructor" in client.ask(InitServer("0.8.0", ["x", b"y" * 500])).message


# ---- anything


@given(st.lists(st.binary(max_size=60), max_size=8), st.integers(0, 23), st.booleans())
@settings(max_examples=300)
def test_garbage(bodies: list[bytes], code: int, begin: bool) -> None:
    """Whatever a client sends: answers, or one last Exception and the end. Nothing else is ever raised."""
    client = Scripted(begin=begin)
    for body in bodies:
        client.send_bytes(struct.pack("<Qi", 4 + len(body), code) + body)
    assert client.machine.state in (State.AWAIT_INIT, State.READY, State.CLOSED, State.RECEIVING)


def test_actions_come_one_at_a_time_and_states_follow() -> None:
    machine = ServerMachine(lambda memory, view: memory)
    room = machine.reader.get_buffer()
    data = joined(encode(InitServer("0.8.0", [])))
    room[: len(data)] = data
    machine.reader.received(len(data))
    assert machine.next_action() == s.Start([])
    assert machine.state is State.STARTING
    machine.started()
    assert machine.state is State.READY
    assert machine.next_action() is None
    machine.fault(ProtocolError("no"))
    assert machine.state is State.CLOSED
    machine.close()


def test_closing_lets_go_of_a_payload_under_way() -> None:
    server = TinyServer()
    server.feed(joined(encode(InitServer("0.8.0", []))))
    out = server.feed(joined(encode(alloc_with_scope(CPU, (4,), U8, None))))
    number = int.from_bytes(out[-8:], "little")
    server.feed(joined(encode(CopyToRemote(view(number, 4), 4))) + b"ab")
    assert server.machine.state is State.RECEIVING
    server.machine.close()
    assert server.machine.reader._sink is None
    assert server.machine._copy is None
