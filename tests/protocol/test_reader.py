# SPDX-License-Identifier: Apache-2.0
"""Large packets, sinks, and how much memory a claim is worth."""

import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.errors import ProtocolError
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.limits import Limits
from rpcflow.protocol.packets import CallFunc, Code, CopyToRemote, InitServer, Return, SysCall
from rpcflow.protocol.reader import Bulk, Direction, PacketReader, PayloadEnd
from rpcflow.protocol.sinks import DiscardSink, MemorySink, ViewSink
from rpcflow.protocol.values import Device, ObjectBytes, ObjectText, Pointer, TensorView, plain
from tests import strategies as wire
from tests.strategies import same

from .feeding import Feeder, packet_bytes, pieces

UP, DOWN = Direction.TO_SERVER, Direction.TO_CLIENT
SMALL = Limits(packet_nbytes=300, bulk_nbytes=32, value_nbytes=4096)
MIB = 1 << 20

long_values = st.one_of(
    st.binary(min_size=32, max_size=600),
    st.text(min_size=32, max_size=200),
    st.binary(min_size=32, max_size=600).map(ObjectBytes),
    st.text(min_size=32, max_size=200).map(ObjectText),
)


def _no_forms(values: list[Any]) -> list[Any]:
    """Long values come out of a large packet without their form, bytes as what the sink made of them."""
    return [bytes(value) if isinstance(value, bytearray) else value for value in plain(values)]


@given(
    st.lists(st.one_of(long_values, long_values, wire.values), max_size=4),
    st.sampled_from(["call", "return", "init"]),
    st.lists(st.integers(0, 3000), max_size=12),
)
def test_large_packets_in_any_pieces(values: list[Any], what: str, cuts: list[int]) -> None:
    """Whatever the pieces and the limits, a packet within the limits comes out as under the default ones."""
    packet: Any = {
        "call": CallFunc(9, values),
        "return": Return(values),
        "init": InitServer("0.8.0", values),
    }[what]
    data = packet_bytes(packet)
    sizes = [len(v.encode() if isinstance(v, str) else v) for v in values if isinstance(v, str | bytes)]
    long = [size for size in sizes if size >= SMALL.bulk_nbytes]
    is_large = len(data) - 8 > SMALL.packet_nbytes
    bulks: list[Bulk] = []
    feeder = Feeder(PacketReader(DOWN if what == "return" else UP, SMALL), bulks.append)
    fault = ""
    try:
        for piece in pieces(data + data, cuts):
            feeder.feed(piece)
    except ProtocolError as error:
        fault = str(error)
    if fault:
        assert "beside its long values" in fault
        assert is_large
        assert len(data) - 12 - sum(long) > SMALL.packet_nbytes
        return
    assert [bulk.nbytes for bulk in bulks] == (long + long if is_large else [])
    assert len(feeder.events) == 2
    for got, _ in feeder.events:
        assert type(got) is type(packet)
        assert same(_no_forms(got[-1]), plain(values))
        assert got[:-1] == packet[:-1]
    assert feeder.reader.between_packets


def test_large_packets_keep_to_their_budget() -> None:
    """What a large packet holds beside its long values is counted once, to the byte."""
    texts = ["a" * 20] * 8  # 32 bytes each on the line
    long = b"x" * 400
    for more, good in ((0, True), (1, False)):
        values: list[Any] = [*texts, "b" * (300 - 12 - 256 - 12 - 12 + more), long]
        feeder = Feeder(PacketReader(UP, SMALL))
        data = packet_bytes(CallFunc(1, values))
        if good:
            feeder.feed(data)
            assert feeder.events == [(CallFunc(1, [*values[:-1], bytearray(long)]), b"")]
        else:
            with pytest.raises(ProtocolError, match="beside its long values"):
                feeder.feed(data)


@given(st.binary(min_size=300, max_size=2000), st.lists(st.integers(0, 3000), max_size=8))
def test_a_named_sink_gets_the_bytes(data: bytes, cuts: list[int]) -> None:
    target = memoryview(bytearray(len(data)))
    reader = PacketReader(UP, SMALL)
    seen: list[Bulk] = []

    def named(bulk: Bulk) -> None:
        seen.append(bulk)
        assert bulk.values == ["name"]
        reader.receive_payload(ViewSink(target))

    feeder = Feeder(reader, named)
    for piece in pieces(packet_bytes(CallFunc(7, ["name", data, 3])), cuts):
        feeder.feed(piece)
    assert [(b.code, b.handle, b.nbytes, b.is_text) for b in seen] == [(Code.CALL_FUNC, 7, len(data), False)]
    assert feeder.events == [(CallFunc(7, ["name", target, 3]), b"")]
    assert bytes(target) == data


def test_payload_without_a_sink_is_thrown_away() -> None:
    view = TensorView(0, Device(1, 0), DataType(0, 8), (5,), 0)
    reader = PacketReader(UP)
    data = packet_bytes(CopyToRemote(view, 5), b"12345")
    assert reader.feed(data + data) == [
        CopyToRemote(view, 5),
        PayloadEnd(),
        CopyToRemote(view, 5),
        PayloadEnd(),
    ]


def test_the_sink_is_let_go_of_when_the_rest_does_not_come() -> None:
    class Watched(MemorySink):
        abandoned = 0

        def abandon(self) -> None:
            super().abandon()
            self.abandoned += 1

    reader = PacketReader(UP, SMALL)
    sink = Watched(500)
    Feeder(reader, lambda _: reader.receive_payload(sink)).feed(packet_bytes(CallFunc(7, [bytes(500)]))[:100])
    reader.close()
    reader.close()
    assert sink.abandoned == 1


def test_a_text_that_is_not_utf8_is_found_in_a_sink_too() -> None:
    data = packet_bytes(CallFunc(7, ["a" * 400])).replace(b"a" * 400, b"\xff" * 400)
    with pytest.raises(ProtocolError, match="not UTF-8"):
        PacketReader(UP, SMALL).feed(data)


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (SysCall(Code.GET_GLOBAL_FUNC, ["n" * 400]), "GET_GLOBAL_FUNC packet of .* is refused"),
        (CallFunc(1, [b"x" * 5000]), "is refused; the limit for strings and bytes is 4096"),
        (CallFunc(1, [b"x" * 4200]), "a value of 4200 bytes is refused"),
        (CallFunc(1, [1] * 50), "beside its long values"),
        (InitServer("v" * 400, []), "version text"),
    ],
)
def test_refused_by_limits(packet: Any, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        PacketReader(UP, SMALL).feed(packet_bytes(packet))


@pytest.mark.parametrize(
    "tail",
    [
        b"\x01\0\0\0\x0d\0\0\0" + bytes(400),  # no such type
        b"\x01\0\0\0\xff\xff\xff\xff" + bytes(400),
        b"\x01\0\0\0\x41\0\0\0\x47\0\0\0" + bytes(400),  # an array inside
        b"\x01\0\0\0\x41\0\0\0\xff\xff\xff\xff" + bytes(400),
        b"\xff\xff\xff\xff" + bytes(400),  # a count below zero
        b"\xff\xff\xff\x7f" + bytes(400),  # a count beyond the packet
        b"\x01\0\0\0\x09\0\0\0\xff\xff\0\0\0\0\0\0" + bytes(400),  # longer than the packet
        b"\x01\0\0\0\x09\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(400),
        b"\x01\0\0\0\x07\0\0\0" + bytes(16) + b"\x41\0\0\0" + bytes(400),  # too many dimensions
        b"\x01\0\0\0\0\0\0\0" + bytes(400),  # None and then more
        b"\x02\0\0\0\x09\0\0\0" + struct.pack("<Q", 396) + bytes(396) + b"\x01\0\0\0",  # ends in a value
    ],
)
def test_malformed_large_packets(tail: bytes) -> None:
    data = struct.pack("<QiQ", 12 + len(tail), Code.CALL_FUNC, 1) + tail
    for step in (1, 7, len(data)):
        feeder = Feeder(PacketReader(UP, SMALL))
        parts = [data[i : i + step] for i in range(0, len(data), step)]
        with pytest.raises(ProtocolError):
            any(feeder.feed(part) for part in parts)  # type: ignore[func-returns-value]


# ---- claims


def _claims() -> list[tuple[str, Direction, bytes]]:
    head = struct.pack("<QiiiBBH", 1, 1, 0, 1, 0, 8, 1)
    made = []
    for power in (31, 62, 63):
        size = 1 << power
        made += [
            (f"packet 2**{power}", direction, struct.pack("<Q", size) + struct.pack("<i", code))
            for direction, codes in ((UP, (2, 3, 6, 9)), (DOWN, (4, 5)))
            for code in codes
        ]
        inner = min(size, (1 << 32) - 100)
        made += [
            (f"bytes 2**{power}", UP, struct.pack("<QiQiiQ", inner + 24, 3, 1, 1, 9, size)),
            (f"text 2**{power}", UP, struct.pack("<QiQiiQ", inner + 24, 3, 1, 1, 8, size)),
            (f"version 2**{power}", UP, struct.pack("<QiQ", inner + 24, 2, size)),
            (f"small bytes 2**{power}", UP, struct.pack("<QiQiiQ", 24, 3, 1, 1, 9, size)),
            (
                f"copy 2**{power}",
                UP,
                struct.pack("<Qi", min(size, 1 << 61), 7) + head + struct.pack("<qQQ", 5, 0, 1),
            ),
            (f"ack 2**{power}", DOWN, struct.pack("<Qi", min(size, 1 << 61), 8)),
        ]
    return made


@pytest.mark.parametrize(("what", "direction", "data"), _claims(), ids=[row[0] for row in _claims()])
def test_a_claim_takes_no_memory(what: str, direction: Direction, data: bytes) -> None:
    tracemalloc.start()
    try:
        reader = PacketReader(direction)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        try:
            reader.feed(data)
            room = reader.get_buffer()
            assert len(room) <= MIB
        except ProtocolError:
            pass
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 2 * MIB + 100_000  # the first piece of a MemorySink, twice while it is made


@pytest.mark.parametrize("code", [2, 3, 9])
def test_a_packet_of_2_to_63_is_refused_by_its_length(code: int) -> None:
    reader = PacketReader(UP)
    with pytest.raises(ProtocolError, match="larger than any memory"):
        reader.feed(b"\0\0\0\0\0\0\0\x80")
    assert reader.total == 8


def test_the_buffer_grows_as_bytes_come_and_no_further() -> None:
    """One byte at a time: the buffer is at most twice what is there, and each byte is moved a few times only."""
    reader = PacketReader(UP)
    data = packet_bytes(CallFunc(1, ["x" * 1000] * 1000))
    assert 900_000 < len(data) < MIB
    moved = pos = 0
    last = reader._view
    while pos < len(data):
        room = reader.get_buffer()
        if reader._view is not last:
            last = reader._view
            moved += pos
        assert len(reader._view) <= max(1 << 16, 2 * pos)
        step = min(len(room), len(data) - pos, 100)
        room[:step] = data[pos : pos + step]
        reader.received(step)
        pos += step
        assert (reader.next_event() is None) == (pos < len(data))
    assert moved < 2 * len(data)
    assert len(reader._view) <= len(data) + 8


def test_many_small_packets_do_not_make_the_buffer_grow() -> None:
    reader = PacketReader(UP)
    packet = packet_bytes(CallFunc(1, ["y" * 30]))
    for _ in range(200):
        assert len(reader.feed(packet * 50 + packet[:9])) == 50
        assert len(reader.feed(packet[9:])) == 1
    assert len(reader._view) == 1 << 16


def test_unread_bytes_can_be_taken_over() -> None:
    reader = PacketReader(UP)
    data = packet_bytes(InitServer("0.8.0", [])) + b"and more"
    room = reader.get_buffer()
    room[: len(data)] = data
    reader.received(len(data))
    assert reader.next_event() == InitServer("0.8.0", [])
    assert reader.unread() == b"and more"
    assert reader.between_packets


# ---- sinks


@given(st.integers(0, 5_000_000), st.lists(st.integers(10_000, 2_000_000), min_size=1, max_size=6))
def test_memory_grows_as_bytes_come(nbytes: int, steps: list[int]) -> None:
    sink = MemorySink(nbytes)
    got = 0
    while got < nbytes:
        room = sink.get_buffer()
        assert 0 < len(room) <= max(MIB, 7 * got)
        step = min(len(room), steps[got % len(steps)], nbytes - got)
        sink.filled(step)
        got += step
    made = sink.finish()
    assert len(made) == nbytes
    made += b"."  # nothing looks into it any more


def test_view_and_discard() -> None:
    data = bytearray(4)
    sink = ViewSink(memoryview(data))
    sink.get_buffer()[:1] = b"a"
    sink.filled(1)
    assert len(sink.get_buffer()) == 3
    sink.get_buffer()[:3] = b"bcd"
    sink.filled(3)
    assert bytes(sink.finish()) == b"abcd"
    thrown = DiscardSink()
    assert len(thrown.get_buffer()) > 0
    thrown.filled(10)
    assert thrown.finish() is None


def test_pointer_is_no_number_of_a_call() -> None:
    # A handle of 2**64 - 1 is a number like any other here; whether it stands for anything is the table's business.
    assert PacketReader(UP).feed(packet_bytes(SysCall(Code.FREE_HANDLE, [Pointer((1 << 64) - 1)]))) == [
        SysCall(Code.FREE_HANDLE, [Pointer((1 << 64) - 1)])
    ]
