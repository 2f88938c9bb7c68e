# SPDX-License-Identifier: Apache-2.0
"""Packets: their bytes, spelled out, and there and back for any of each kind in any pieces."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.errors import ProtocolError
from rpcflow.protocol import packets as p
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.packets import (
    CallFunc,
    Code,
    CopyAck,
    CopyFromRemote,
    CopyToRemote,
    ExceptionPacket,
    InitServer,
    Return,
    Shutdown,
    SysCall,
)
from rpcflow.protocol.reader import Direction, PacketReader
from rpcflow.protocol.values import Device, Pointer, TensorView
from tests import strategies as wire
from tests.strategies import same

from .feeding import Feeder, packet_bytes, pieces

UP, DOWN = Direction.TO_SERVER, Direction.TO_CLIENT
VIEW = TensorView(16, Device(1, 0), DataType(2, 32), (2,), 4)
VIEW_BYTES = (
    b"\x10\0\0\0\0\0\0\0"  # u64 data
    b"\x01\0\0\0\0\0\0\0"  # i32 device type, i32 device id
    b"\x01\0\0\0"  # i32 ndim
    b"\x02\x20\x01\0"  # u8 code, u8 bits, u16 lanes
    b"\x02\0\0\0\0\0\0\0"  # i64 shape
    b"\x04\0\0\0\0\0\0\0"  # u64 byte offset
)

LITERAL: list[tuple[Direction, Any, bytes, bytes]] = [
    (
        UP,
        Shutdown(),
        b"",
        b"\x04\0\0\0\0\0\0\0"  # u64 length of the rest
        b"\x01\0\0\0",  # i32 code
    ),
    (
        DOWN,
        Shutdown(),
        b"",
        b"\x04\0\0\0\0\0\0\0\x01\0\0\0",  # length, code: the same either way
    ),
    (
        UP,
        InitServer("0.8.0", ["x"]),
        b"",
        b"\x22\0\0\0\0\0\0\0"  # u64 length
        b"\x02\0\0\0"  # i32 code
        b"\x05\0\0\0\0\0\0\0"  # u64 length of the version
        b"0.8.0"
        b"\x01\0\0\0"  # i32 count of constructor arguments
        b"\x08\0\0\0\x01\0\0\0\0\0\0\0x",  # raw string
    ),
    (
        UP,
        CallFunc(7, [1]),
        b"",
        b"\x1c\0\0\0\0\0\0\0"  # u64 length
        b"\x03\0\0\0"  # i32 code
        b"\x07\0\0\0\0\0\0\0"  # u64 function handle
        b"\x01\0\0\0"  # i32 count of arguments
        b"\x01\0\0\0\x01\0\0\0\0\0\0\0",  # int
    ),
    (
        DOWN,
        Return([1, -1]),
        b"",
        b"\x20\0\0\0\0\0\0\0"  # u64 length
        b"\x04\0\0\0"  # i32 code
        b"\x02\0\0\0"  # i32 count
        b"\x01\0\0\0\x01\0\0\0\0\0\0\0"  # int: the type index of the result
        b"\x01\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",  # int: the result
    ),
    (
        DOWN,
        Return([None]),
        b"",
        b"\x0c\0\0\0\0\0\0\0"  # u64 length
        b"\x04\0\0\0"  # i32 code
        b"\x01\0\0\0"  # i32 count
        b"\0\0\0\0",  # None
    ),
    (
        DOWN,
        ExceptionPacket("no"),
        b"",
        b"\x16\0\0\0\0\0\0\0"  # u64 length
        b"\x05\0\0\0"  # i32 code
        b"\x01\0\0\0"  # i32 count: one text
        b"\x08\0\0\0\x02\0\0\0\0\0\0\0no",  # raw string
    ),
    (
        UP,
        CopyFromRemote(VIEW, 8),
        b"",
        b"\x34\0\0\0\0\0\0\0"  # u64 length
        b"\x06\0\0\0" + VIEW_BYTES + b"\x08\0\0\0\0\0\0\0",  # i32 code  # u64 bytes asked for
    ),
    (
        UP,
        CopyToRemote(VIEW, 3),
        b"abc",
        b"\x37\0\0\0\0\0\0\0"  # u64 length, payload and all
        b"\x07\0\0\0"  # i32 code
        + VIEW_BYTES
        + b"\x03\0\0\0\0\0\0\0"  # u64 bytes of payload
        + b"abc",
    ),
    (
        DOWN,
        CopyAck(3),
        b"abc",
        b"\x07\0\0\0\0\0\0\0"  # u64 length: the payload's is 4 less
        b"\x08\0\0\0"  # i32 code
        b"abc",
    ),
    (
        DOWN,
        CopyAck(0),
        b"",
        b"\x04\0\0\0\0\0\0\0\x08\0\0\0",  # length, code: no data
    ),
    (
        UP,
        SysCall(Code.FREE_HANDLE, [Pointer(5)]),
        b"",
        b"\x14\0\0\0\0\0\0\0"  # u64 length
        b"\x0a\0\0\0"  # i32 code
        b"\x01\0\0\0"  # i32 count
        b"\x04\0\0\0\x05\0\0\0\0\0\0\0",  # opaque pointer
    ),
    (
        UP,
        SysCall(Code.DEV_FREE_DATA, [Device(1, 0), Pointer(5)]),
        b"",
        b"\x20\0\0\0\0\0\0\0"  # u64 length
        b"\x0e\0\0\0"  # i32 code
        b"\x02\0\0\0"  # i32 count
        b"\x06\0\0\0\x01\0\0\0\0\0\0\0"  # device
        b"\x04\0\0\0\x05\0\0\0\0\0\0\0",  # opaque pointer
    ),
    (
        UP,
        SysCall(Code.DEV_ALLOC_DATA_WITH_SCOPE, [VIEW, None]),
        b"",
        b"\x38\0\0\0\0\0\0\0"  # u64 length
        b"\x11\0\0\0"  # i32 code
        b"\x02\0\0\0"  # i32 count
        b"\x07\0\0\0" + VIEW_BYTES + b"\0\0\0\0",  # tensor, None
    ),
]


@pytest.mark.parametrize(
    ("direction", "packet", "payload", "data"), LITERAL, ids=[type(row[1]).__name__ for row in LITERAL]
)
def test_literal(direction: Direction, packet: Any, payload: bytes, data: bytes) -> None:
    assert packet_bytes(packet, payload) == data
    for parts in ([data], [data[i : i + 1] for i in range(len(data))], [data + data, data[:5]]):
        feeder = Feeder(PacketReader(direction))
        for part in parts:
            feeder.feed(part)
        assert feeder.events == [(packet, payload)] * (1 + (parts[0] == data + data))
        assert feeder.reader.between_packets == (b"".join(parts)[-5:] != data[:5] or parts[0] == data)


def test_each_code_has_its_direction() -> None:
    for code in range(-1, 30):
        for direction in Direction:
            reader = PacketReader(direction)
            data = b"\x04\0\0\0\0\0\0\0" + code.to_bytes(4, "little", signed=True)
            up = code in (1, 2, 3, 6, 7) or 9 <= code <= 21
            legal = up if direction is UP else code in (1, 4, 5, 8)
            words = ""
            try:
                reader.feed(data)
            except ProtocolError as error:
                words = str(error)
            assert ("is not the code of a packet" in words) == (not legal)


def test_the_quick_ways_write_the_same() -> None:
    assert p.encode_call(7, [5]) == p.encode(CallFunc(7, [5]))
    assert p.encode_call(7, []) == p.encode(CallFunc(7, []))
    assert p.encode_call(7, ["a", 1]) == p.encode(CallFunc(7, ["a", 1]))
    assert [p.encode_return_int(-5)] == p.encode(Return([1, -5]))
    assert [p.encode_return_none()] == p.encode(Return([None]))
    assert [p.encode_return_call_none()] == p.encode(Return([0, None]))
    assert [p.encode_free(5)] == p.encode(SysCall(Code.FREE_HANDLE, [Pointer(5)]))
    with pytest.raises(OverflowError, match="64 signed bits"):
        p.encode_call(7, [2**63])


def test_system_calls_as_stock_clients_make_them() -> None:
    device, view = Device(1, 0), TensorView(0, Device(1, 0), DataType(2, 32), (3,), 0)
    assert p.get_global_func("f") == SysCall(Code.GET_GLOBAL_FUNC, ["f"])
    assert p.free_data(device, 3) == SysCall(Code.DEV_FREE_DATA, [device, Pointer(3)])
    assert p.stream_sync(device) == SysCall(Code.DEV_STREAM_SYNC, [device, Pointer(0)])
    assert p.copy_among(view, view) == SysCall(Code.COPY_AMONG_REMOTE, [view, view, Pointer(0)])
    assert p.alloc_with_scope(device, (3,), view.dtype, None) == SysCall(Code.DEV_ALLOC_DATA_WITH_SCOPE, [view, None])


@pytest.mark.parametrize("direction", Direction)
def test_there_and_back_in_any_pieces(direction: Direction) -> None:
    @given(
        st.lists(wire.to_server if direction is UP else wire.to_client, max_size=5),
        st.lists(st.integers(0, 600), max_size=12),
        st.booleans(),
    )
    def check(packets: list[tuple[Any, bytes]], cuts: list[int], empty_between: bool) -> None:
        gap = bytes(8) if empty_between else b""
        data = gap.join(packet_bytes(*packet) for packet in packets)
        feeder = Feeder(PacketReader(direction))
        for piece in pieces(data, cuts):
            feeder.feed(piece)
        assert same(feeder.events, [(packet, payload) for packet, payload in packets])
        assert feeder.reader.between_packets
        assert feeder.reader.total == len(data)

    check()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x03\0\0\0\0\0\0\0", "no room for its code"),
        (b"\0\0\0\0\0\0\0\x80", "larger than any memory"),
        (b"\0\0\0\0\0\0\0\x40", "larger than any memory"),
        (b"\x05\0\0\0\0\0\0\0\x01\0\0\0\0", "bytes stand behind a Shutdown"),
        (b"\x04\0\0\0\0\0\0\0\x03\0\0\0", "middle of a value"),
        (b"\x04\0\0\0\0\0\0\0\x02\0\0\0", "middle of a value"),
        (b"\x04\0\0\0\0\0\0\0\x06\0\0\0", "middle of a value"),
        (b"\x04\0\0\0\0\0\0\0\x07\0\0\0", "too short for its tensor"),
        (
            b"\x34\0\0\0\0\0\0\0\x07\0\0\0" + VIEW_BYTES + b"\x01\0\0\0\0\0\0\0",
            "says 1 bytes and has room for 0",
        ),
        (b"\x30\0\0\0\0\0\0\0\x07\0\0\0" + VIEW_BYTES, "too short for its tensor"),
        (b"\x35\0\0\0\0\0\0\0\x06\0\0\0" + VIEW_BYTES + bytes(9), "bytes stand behind a CopyFromRemote"),
        (b"\x10\0\0\0\0\0\0\0\x02\0\0\0\x05\0\0\0\0\0\0\0" + b"0.8.", "ends behind its packet"),
        (b"\x11\0\0\0\0\0\0\0\x02\0\0\0\x01\0\0\0\0\0\0\0\xff" + bytes(4), "version text is not UTF-8"),
    ],
)
def test_refused_on_the_way_to_a_server(data: bytes, words: str) -> None:
    reader = PacketReader(UP)
    with pytest.raises(ProtocolError, match=words) as first:
        reader.feed(data)
    assert first.value.offset == len(data) == reader.total
    for _ in range(2):
        with pytest.raises(ProtocolError) as again:
            reader.next_event()
        assert again.value is first.value


@pytest.mark.parametrize(
    "body", [b"\0\0\0\0", b"\x01\0\0\0\0\0\0\0", b"\x01\0\0\0\x09\0\0\0" + bytes(8), b"\x02\0\0\0" + bytes(8)]
)
def test_an_exception_holds_one_text(body: bytes) -> None:
    data = (4 + len(body)).to_bytes(8, "little") + b"\x05\0\0\0" + body
    with pytest.raises(ProtocolError, match="exactly one text"):
        PacketReader(DOWN).feed(data)
