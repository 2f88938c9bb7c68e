# SPDX-License-Identifier: Apache-2.0
"""The C runtime packet by packet: each request gets one answer, whatever it is, and the next one works."""

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpcflow.protocol.dtype import DataType, DTypeCode
from rpcflow.protocol.packets import CallFunc, Code, CopyFromRemote, CopyToRemote, InitServer, Shutdown, SysCall
from rpcflow.protocol.values import Device as Where
from rpcflow.protocol.values import FunctionRef, ModuleRef, ObjectBytes, ObjectText, Pointer, TensorView
from tests.strategies import sequences, to_server
from tests.transcripts import load, malformed

from .serving import COPY_ACK, EXCEPTION, INIT, NONE, RETURN, SHUTDOWN, Device, packet, raw

CPU = Where(1, 0)
BYTE = DataType(DTypeCode.UINT, 8, 1)
FLOAT = DataType(DTypeCode.FLOAT, 32, 1)


@pytest.fixture
def device(device_program: Path) -> Iterator[Device]:
    with Device(device_program) as device:
        assert device.ask(INIT) == (RETURN, NONE)
        yield device
        assert answered(device)


def syscall(code: Code, *args: Any) -> bytes:
    return packet(SysCall(code, list(args)))


def call(handle: int, *args: Any) -> bytes:
    return packet(CallFunc(handle, list(args)))


def answered(device: Device) -> bool:
    """Whether a good request gets its own answer, and no other is left over."""
    return device.ask(syscall(Code.DEV_GET_ATTR, CPU, 0)) == (RETURN, struct.pack("<iiq", 1, 1, 1))


def allocate(device: Device, nbytes: int) -> int:
    return device.pointer(syscall(Code.DEV_ALLOC_DATA, CPU, nbytes, 64, BYTE))


def view(data: int, nbytes: int, offset: int = 0, dtype: DataType = BYTE, where: Where = CPU) -> TensorView:
    return TensorView(data, where, dtype, (nbytes,), offset)


# ---------------------------------------------------------------------------------------------- sessions


def test_a_session_before_it_begins(device_program: Path) -> None:
    with Device(device_program) as device:
        assert "before InitServer" in device.refused(syscall(Code.GET_GLOBAL_FUNC, "echo"))
        assert "before InitServer" in device.refused(call(1))
        assert "before InitServer" in device.refused(packet(CopyToRemote(view(0, 4), 4), b"abcd"))
        assert "0.8.0" in device.refused(packet(InitServer("0.7.0", [])))
        assert "0.8.0" in device.refused(packet(InitServer("0.8.0 ", [])))
        assert "0.8.0" in device.refused(packet(InitServer("", [])))
        assert "only constructor" in device.refused(packet(InitServer("0.8.0", ["rpc.Connect", "host", 9091])))
        assert "only constructor" in device.refused(packet(InitServer("0.8.0", [1])))
        assert device.ask(packet(InitServer("0.8.0", [ObjectText("rpc.LocalSession")]))) == (RETURN, NONE)
        assert "already been initialized" in device.refused(INIT)
        assert answered(device)


@pytest.mark.parametrize("end", [SHUTDOWN, b"", raw(b"\1\0\0\0 and more")], ids=["Shutdown", "end", "long Shutdown"])
def test_ends_that_are_clean(device_program: Path, end: bytes) -> None:
    with Device(device_program) as device:
        device.socket.sendall(INIT + end)
        assert device.answer() == (RETURN, NONE)


@pytest.mark.parametrize("cut", [1, 7, 8, 11, 20, len(INIT) - 1])
def test_an_end_in_the_middle_of_a_packet(device_program: Path, cut: int) -> None:
    with Device(device_program) as device:
        device.socket.sendall(INIT[:cut])
        device.broken = True
    assert device.status == 4
    assert device.words.startswith("the session broke off: ")
    assert device.words.count("\n") == 1


@pytest.mark.parametrize("length", [(1 << 64) - 1, 1 << 63, 1 << 48])
def test_a_senseless_length_ends_the_session_in_words(device_program: Path, length: int) -> None:
    with Device(device_program) as device:
        assert device.ask(INIT) == (RETURN, NONE)
        assert "no packet" in device.refused(struct.pack("<Q", length))
        with pytest.raises(EOFError):
            device.answer()
        device.broken = True
    assert device.status == 4


def test_a_host_that_does_not_take_its_answers(device_program: Path) -> None:
    with Device(device_program) as device:
        device.socket.sendall(INIT)
        device.broken = True
    assert device.status == 0 or "broke off" in device.words


@pytest.mark.parametrize("args", [[], ["1"], ["1", "2", "3"], ["x", "1"], ["-1", "1"], ["", ""], ["99999999999", "1"]])
def test_wrong_arguments(device_program: Path, args: list[str]) -> None:
    ran = subprocess.run([str(device_program), *args], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert "usage" in ran.stderr


def test_a_line_that_does_not_block(device_program: Path) -> None:
    """An event loop has left its descriptor like that."""
    with Device(device_program, blocking=False) as device:
        assert device.ask(INIT) == (RETURN, NONE)
        contents = bytes(range(256)) * (1 << 14)
        data = allocate(device, len(contents))
        tensor = view(data, len(contents))
        assert device.ask(packet(CopyToRemote(tensor, len(contents)), contents)) == (RETURN, NONE)
        device.socket.sendall(packet(CopyFromRemote(tensor, len(contents))) * 3)
        assert [device.answer() for _ in range(3)] == [(COPY_ACK, contents)] * 3


def test_empty_packets_are_skipped(device: Device) -> None:
    empty = bytes(8)
    device.socket.sendall(empty + syscall(Code.DEV_GET_CURRENT_STREAM, CPU) + empty * 1000)
    assert device.answer() == (RETURN, struct.pack("<iiq", 1, 4, 0))


def test_requests_sent_ahead_are_answered_in_order(device: Device) -> None:
    add = device.find("add")
    requests = [call(add, n, 1) if n % 3 else syscall(Code.GET_GLOBAL_FUNC, f"unknown{n}") for n in range(2000)]
    device.socket.sendall(b"".join(requests))
    for n in range(2000):
        code, contents = device.answer()
        assert code == RETURN
        assert int.from_bytes(contents[-8:], "little") == (n + 1 if n % 3 else 0)


# ---------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("outer", [11, 12, 64, 65, 66, 115, 200, 1 << 30])
def test_texts_and_bytes_in_every_form(device: Device, outer: int) -> None:
    echo = device.find("echo")
    for size in (0, 3, 7, 8, 100):
        text, data = ObjectText("x" * size), ObjectBytes(b"\0" * size)
        text.outer = data.outer = outer
        head = struct.pack("<iiq", 2, 1, 11 if size < 8 else 65)
        assert device.ask(call(echo, text)) == (RETURN, head + struct.pack("<iq", 8, size) + b"x" * size)
        head = struct.pack("<iiq", 2, 1, 12 if size < 8 else 66)
        assert device.ask(call(echo, data)) == (RETURN, head + struct.pack("<iq", 9, size) + b"\0" * size)
    plain = raw(struct.pack("<iQiiQ", 3, echo, 1, 9, 2) + b"ab")  # which stock clients never send
    assert device.ask(plain)[1].endswith(struct.pack("<iq", 9, 2) + b"ab")


def test_pointers_go_to_registered_functions_only(device: Device, tvm_program: Path) -> None:
    echo = device.find("echo")
    expected = struct.pack("<iiqiQ", 2, 1, 4, 4, (1 << 64) - 1)
    assert device.ask(call(echo, Pointer((1 << 64) - 1))) == (RETURN, expected)
    with Device(tvm_program) as other:
        assert other.ask(INIT) == (RETURN, NONE)
        module = other.pointer(call(other.find("ffi.SystemLib")))
        doubled = other.pointer(
            call(other.find("tvm.rpc.server.ModuleGetFunction"), ModuleRef(module), "doubled", True)
        )
        assert "argument 0" in other.refused(call(doubled, Pointer(4096), Pointer(4096)))
        assert "doubled" in other.refused(call(doubled, Pointer(0), Pointer(0)))


BAD = {
    "half a code": (b"\3\0", "shorter than its contents"),
    "code 0": (struct.pack("<i", 0), "code 0"),
    "Return": (struct.pack("<ii", 4, 0), "code 4"),
    "Exception": (struct.pack("<iiiQ", 5, 1, 8, 1) + b"x", "code 5"),
    "CopyAck": (struct.pack("<i", 8) + b"data", "code 8"),
    "code 22": (struct.pack("<i", 22), "code 22"),
    "code 99": (struct.pack("<i", 99) + bytes(100_000), "code 99"),
    "code -1": (struct.pack("<i", -1), "code"),
    "a call of nothing": (struct.pack("<i", 3), "shorter"),
    "a call without arguments": (struct.pack("<iQ", 3, 2), "shorter"),
    "more arguments than there are": (struct.pack("<iQi", 3, 2, 3), "shorter"),
    "a negative number of arguments": (struct.pack("<iQi", 3, 2, -1), "RPCFLOW_MAX_ARGS"),
    "half an argument": (struct.pack("<iQii", 3, 2, 1, 1) + bytes(7), "shorter"),
    "trailing bytes": (struct.pack("<iQii", 3, 2, 1, 0) + bytes(1), "longer"),
    "type 10": (struct.pack("<iQiiQ", 3, 2, 1, 10, 0), "type 10"),
    "type 13": (struct.pack("<iQiiQ", 3, 2, 1, 13, 0), "type 13"),
    "type -1": (struct.pack("<iQiiQ", 3, 2, 1, -1, 0), "type"),
    "inner type 7": (struct.pack("<iQiiiQ", 3, 2, 1, 65, 7, 0), "type 7"),
    "a remote object": (struct.pack("<iQiiiQ", 3, 2, 1, 115, 115, 1), "type 115"),
    "a text longer than the packet": (struct.pack("<iQiiQ", 3, 2, 1, 8, 1 << 63), "shorter"),
    "bytes longer than the packet": (struct.pack("<iQiiiQ", 3, 2, 1, 12, 66, 1) + b"", "shorter"),
    "a tensor of many dimensions": (struct.pack("<iQiiQiiii", 3, 2, 1, 7, 0, 1, 0, 1 << 20, 0), "dimensions"),
    "a tensor of negative dimensions": (struct.pack("<iQiiQiiii", 3, 2, 1, 7, 0, 1, 0, -1, 0), "dimensions"),
    "half a tensor": (struct.pack("<iQiiQiiii", 3, 2, 1, 7, 0, 1, 0, 2, 0), "shorter"),
    "half a version": (struct.pack("<iQ", 2, 5) + b"0.8", "shorter"),
    "a version without an end": (struct.pack("<iQ", 2, 1 << 63) + b"0.8.0", "shorter"),
    "InitServer of nothing": (struct.pack("<i", 2), "shorter"),
    "a copy of nothing": (struct.pack("<i", 7), "shorter"),
    "half a copy": (struct.pack("<iQiiii", 7, 0, 1, 0, 1, 0) + bytes(8), "shorter"),
    "a copy of many dimensions": (struct.pack("<iQiiii", 7, 0, 1, 0, -5, 0) + bytes(80), "dimensions"),
    "a read of nothing": (struct.pack("<i", 6), "shorter"),
    "no name": (struct.pack("<ii", 9, 0), "1 arguments, not 0"),
    "a number for a name": (struct.pack("<iiiq", 9, 1, 1, 5), "argument 0 is of type 1, not 8"),
    "two names": (struct.pack("<ii", 9, 2) + struct.pack("<iQ", 8, 0) * 2, "1 arguments, not 2"),
    "a packet as large as can be": (struct.pack("<i", 3) + bytes(1 << 20), "RPCFLOW_PACKET_NBYTES is 1048576"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_packets_are_answered_in_words(device: Device, name: str) -> None:
    contents, words = BAD[name]
    assert words in device.refused(raw(contents))
    assert answered(device)


@pytest.mark.parametrize("name", [name for name in malformed() if name.startswith("raw-") and "magic" not in name])
def test_recorded_transgressions(device_program: Path, name: str) -> None:
    """What made stock's server end: here all requests are answered, the last one by an Exception."""
    transcript, _, way = name.rpartition("-")
    data = b"".join(bytes.fromhex(e["hex"]) for e in load(transcript)["events"] if e["dir"] == way)
    data = data[8 + int.from_bytes(data[4:8], "little") :]  # no handshake on pipes
    packets = []
    while data:
        length = 8 + int.from_bytes(data[:8], "little")
        packets.append(data[:length])
        data = data[length:]
    with Device(device_program) as device:
        for sent in packets[:-1]:
            assert device.ask(sent)[0] == RETURN
        words = device.refused(packets[-1])
        assert words
        assert answered(device)


def test_the_recorded_session_of_a_minrpc_server(device_program: Path) -> None:
    """Stock's client over a pipe: the same answers, but for handles and for what only TVM has."""
    events = [(e["dir"], bytes.fromhex(e["hex"])) for e in load("pipe-minrpc")["events"]]
    names: dict[int, int] = {}  # the recorded numbers, and ours
    with Device(device_program) as device:
        compared = 0
        for (way, sent), (_, recorded) in zip(events[:-1:2], events[1::2], strict=True):
            assert way == "c2s"
            for theirs, ours in names.items():
                sent = sent.replace(struct.pack("<Q", theirs), struct.pack("<Q", ours))
            code, contents = device.ask(sent)
            if b"ffi.Shape" in sent or b"rpc.testing" in sent:
                assert (code, contents[-8:]) == (RETURN, bytes(8))
                continue
            if b"GetCRTMaxPacketSize" in sent:
                assert code == RETURN
                assert contents[-8:] != bytes(8)
                continue
            if sent[8:12] in (b"\3\0\0\0", b"\n\0\0\0") and code == EXCEPTION:
                continue  # of the shape that was not made
            assert code == int.from_bytes(recorded[8:12], "little")
            theirs = int.from_bytes(recorded[-8:], "little")
            if len(recorded) >= 24 and recorded[-12:-8] == b"\4\0\0\0" and theirs:
                names[theirs] = int.from_bytes(contents[-8:], "little")
                assert contents[:-8] == recorded[12:-8]
            else:
                assert contents == recorded[12:]
            compared += 1
        assert compared == 11
        device.socket.sendall(events[-1][1])


# ---------------------------------------------------------------------------------------------- memory


def test_copies_stay_in_their_memory(device: Device) -> None:
    data, other = allocate(device, 100), allocate(device, 100)
    assert device.ask(packet(CopyToRemote(view(data, 100), 100), bytes(range(100)))) == (RETURN, NONE)
    assert device.ask(packet(CopyFromRemote(view(data, 100, 40), 60))) == (COPY_ACK, bytes(range(40, 100)))
    assert device.ask(packet(CopyFromRemote(view(data + 40, 0, 60), 0))) == (COPY_ACK, b"")
    outside = [
        view(data, 100, 1),
        view(data + 1, 100),
        view(data - 1, 100),
        view(data, 100, 1 << 63),
        view(data, 100, (1 << 64) - 1),
        view((1 << 64) - 1, 100, 1),
        view(0, 100),
        view(0, 100, data),
        view(data + 101, 0),
        view(other + 128, 1),
        view(data, 100, where=Where(2, 0)),
        view(data, 100, where=Where(1, 1)),
    ]
    for tensor in outside:
        words = device.refused(packet(CopyToRemote(tensor, 100), b"z" * 100))
        assert words == device.refused(packet(CopyFromRemote(tensor, 100)))
        assert "beyond its memory" in words or "not in memory" in words or "no device here" in words
        assert device.refused(syscall(Code.COPY_AMONG_REMOTE, tensor, view(other, 100), Pointer(0)))
        assert device.refused(syscall(Code.COPY_AMONG_REMOTE, view(other, 100), tensor, Pointer(0)))
        assert device.refused(call(device.find("echo"), tensor, 1))
    for nbytes in (101, 1 << 40, 1 << 63, (1 << 64) - 1):
        assert "beyond its memory of 100 bytes" in device.refused(packet(CopyFromRemote(view(data, 100), nbytes)))
    assert "not of the same size" in device.refused(
        syscall(Code.COPY_AMONG_REMOTE, view(data, 100), view(other, 99), Pointer(0))
    )
    assert device.ask(packet(CopyFromRemote(view(data, 100), 100))) == (COPY_ACK, bytes(range(100)))


def test_data_that_are_not_as_many_as_was_said(device: Device) -> None:
    data = allocate(device, 100)
    for said, sent in ((10, 9), (10, 11), (0, 5), (100, 0), (1 << 60, 10)):
        head = packet(CopyToRemote(view(data, 100), said))[8:]
        assert device.refused(raw(head + b"x" * sent))
        assert answered(device)


def test_tensors_that_overlap(device: Device) -> None:
    data = allocate(device, 100)
    expected = bytearray(range(100))
    device.ask(packet(CopyToRemote(view(data, 100), 100), bytes(expected)))
    for source, target in ((0, 10), (20, 3), (50, 50)):
        copy = syscall(Code.COPY_AMONG_REMOTE, view(data, 50, source), view(data, 50, target), Pointer(0))
        assert device.ask(copy) == (RETURN, NONE)
        expected[target : target + 50] = expected[source : source + 50]
        assert device.ask(packet(CopyFromRemote(view(data, 100), 100))) == (COPY_ACK, bytes(expected))


def test_shapes_that_overflow(device: Device) -> None:
    data, echo = allocate(device, 64), device.find("echo")
    shapes = [(1 << 62, 4), (1 << 32, 1 << 32), (1 << 61,), (-1,), (-(1 << 63), 2), (1 << 21, 1 << 21, 1 << 22), (17,)]
    for shape in shapes:
        head = struct.pack("<QiiiBBH", data, 1, 0, len(shape), 2, 32, 1) + struct.pack(f"<{len(shape)}q", *shape)
        contents = struct.pack("<iQii", 3, echo, 1, 7) + head + bytes(8)
        assert "beyond its memory of 64 bytes" in device.refused(raw(contents))
        alloc = struct.pack("<iii", 17, 2, 7) + struct.pack("<Q", 0) + head[8:] + bytes(8) + struct.pack("<i", 0)
        if shape != (17,):
            assert "out of memory" in device.refused(raw(alloc))
    none = DataType(DTypeCode.FLOAT, 0, 1)
    assert device.refused(call(echo, view(data, 1, dtype=none), 1))
    zeros = TensorView(data, CPU, FLOAT, (1 << 40, 0, 1 << 40), 64)
    assert device.ask(call(echo, zeros, 1))[0] == RETURN


def test_freeing(device: Device) -> None:
    data = allocate(device, 0)
    assert data
    assert allocate(device, 0) != data
    assert device.ask(syscall(Code.DEV_FREE_DATA, CPU, Pointer(data))) == (RETURN, NONE)
    assert "no data at that address" in device.refused(syscall(Code.DEV_FREE_DATA, CPU, Pointer(data)))
    data = allocate(device, 1000)
    for wrong in (data + 64, data - 1, 1, (1 << 64) - 1):
        assert "no data at that address" in device.refused(syscall(Code.DEV_FREE_DATA, CPU, Pointer(wrong)))
    assert device.ask(syscall(Code.DEV_FREE_DATA, CPU, Pointer(0))) == (RETURN, NONE)
    assert device.ask(syscall(Code.FREE_HANDLE, Pointer(0))) == (RETURN, NONE)
    echo = device.find("echo")
    assert device.ask(syscall(Code.FREE_HANDLE, Pointer(echo))) == (RETURN, NONE)
    for wrong in (data, echo + (1 << 32), 0xFF, 6, 0x105, echo | 0xFF0000, (1 << 64) - 1):
        assert "nothing of that handle" in device.refused(syscall(Code.FREE_HANDLE, Pointer(wrong)))
        assert "nothing of that handle" in device.refused(call(wrong))
    assert "aligned to 64" in device.refused(syscall(Code.DEV_ALLOC_DATA, CPU, 8, 128, BYTE))
    assert "out of memory" in device.refused(syscall(Code.DEV_ALLOC_DATA, CPU, -8, 64, BYTE))
    assert data % 64 == 0


def test_handles_that_have_become_stale(device: Device) -> None:
    make = device.find("runtime.RPCTimeEvaluator")
    settings = [None, "counted", 1, 0, 1, 1, 0, 0, 0, 1, 0, ""]
    first = device.pointer(call(make, *settings))
    assert device.ask(syscall(Code.FREE_HANDLE, Pointer(first))) == (RETURN, NONE)
    second = device.pointer(call(make, *settings))
    assert first != second
    assert "nothing of that handle" in device.refused(call(first))
    assert "nothing of that handle" in device.refused(syscall(Code.FREE_HANDLE, Pointer(first)))
    code, contents = device.ask(call(second))
    assert code == RETURN
    assert struct.unpack("<d", contents[-8:])[0] > 0
    find = device.find("tvm.rpc.server.ModuleGetFunction")
    assert "nothing of that handle" in device.refused(call(find, ModuleRef(second), "add", True))
    assert "type 68, not 73" in device.refused(call(find, FunctionRef(3), "add", True))


# ---------------------------------------------------------------------------------------------- at random


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(to_server, st.binary(min_size=1, max_size=300), sequences), max_size=30))
def test_each_request_gets_one_answer(small_program: Path, given: list[Any]) -> None:
    sent = bytearray(INIT)
    count = 1
    for item in given:
        if isinstance(item, bytes):
            if item[:4] == b"\1\0\0\0":
                continue
            sent += raw(item)
        elif isinstance(item, list):
            sent += call(2 | len(item) << 16, *item)
        elif isinstance(item[0], Shutdown):
            continue
        else:
            sent += packet(*item)
        count += 1
    sent += SHUTDOWN
    with Device(small_program) as device:
        device.socket.sendall(sent)
        codes = [device.answer()[0] for _ in range(count)]
        assert codes[0] == RETURN
        assert set(codes) <= {RETURN, EXCEPTION, COPY_ACK}
        with pytest.raises(EOFError, match="after 0 of 8"):
            device.answer()


def test_large_tensors_arrive_whole(device: Device) -> None:
    """Sizes around those of the buffers on the way."""
    rng = np.random.default_rng(3)
    for nbytes in (4067, 4068, 4069, 8150, 8191, 8192, 8193, 65536, 1 << 20, (1 << 23) + 1):
        data, contents = allocate(device, nbytes), rng.bytes(nbytes)
        assert device.ask(packet(CopyToRemote(view(data, nbytes), nbytes), contents)) == (RETURN, NONE)
        assert device.ask(packet(CopyFromRemote(view(data, nbytes), nbytes))) == (COPY_ACK, contents)
        device.ask(syscall(Code.DEV_FREE_DATA, CPU, Pointer(data)))
