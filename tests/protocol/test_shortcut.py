# SPDX-License-Identifier: Apache-2.0
"""What the shortcut understands, it understands as the reader and the machines do."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rpcflow.errors import ProtocolError
from rpcflow.protocol.limits import DEFAULT_LIMITS, Limits
from rpcflow.protocol.packets import CallFunc, Return, encode
from rpcflow.protocol.reader import Direction, PacketReader
from rpcflow.protocol.shortcut import MISS, call_in, result_in
from rpcflow.protocol.values import TypeIndex
from rpcflow.session.results import read_result
from tests.strategies import I64, U64, same, sequences

from .test_garbage import noise

SMALL = Limits(packet_nbytes=64)


def joined(packet: Any) -> bytes:
    return b"".join(bytes(part) for part in encode(packet) if not isinstance(part, tuple))


def events(direction: Direction, data: bytes, limits: Limits = DEFAULT_LIMITS) -> list[Any] | None:
    reader = PacketReader(direction, limits)
    try:
        found = reader.feed(data)
    except ProtocolError:
        return None
    return found if reader.between_packets else None


def check_call(data: bytes, limits: Limits = DEFAULT_LIMITS) -> tuple[int, list[Any]] | None:
    try:
        found = call_in(memoryview(data + bytes(100)), len(data), limits)
    except ProtocolError:
        assert events(Direction.TO_SERVER, data, limits) is None
        return None
    if found is not None:
        read = events(Direction.TO_SERVER, data, limits)
        assert read is not None
        assert len(read) == 1
        assert same(read[0], CallFunc(*found))
    return found


def check_result(data: bytes) -> Any:
    value = result_in(memoryview(data + bytes(100)), len(data))
    if value is not MISS:
        read = events(Direction.TO_CLIENT, data)
        assert read is not None
        (packet,) = read
        assert same(read_result(packet.values), value)
    return value


@given(U64, sequences)
@example(1, [1])
@example(1, [1.5])
@example(1, [])
def test_calls(handle: int, args: list[Any]) -> None:
    data = joined(CallFunc(handle, args))
    found = check_call(data)
    if len(data) < 1000:
        assert found is not None
        assert found[0] == handle
    assert check_call(data[:-1]) is None
    assert check_call(data + b"\0") is None
    assert check_call(data + data) is None
    if len(data) > 72:
        assert check_call(data, SMALL) is None


@pytest.mark.parametrize("value", [None, 0, -1, 1 << 62, 0.5, float("nan")])
def test_results(value: Any) -> None:
    index = {type(None): TypeIndex.NONE, int: TypeIndex.INT, float: TypeIndex.FLOAT}[type(value)]
    data = joined(Return([int(index), value]))
    assert same(check_result(data), value)
    for other in (data[:-1], data + b"\0", data + data, b""):
        assert check_result(other) is MISS


@given(I64, I64 | st.floats() | st.none() | st.booleans() | st.text(max_size=9))
def test_indices_that_do_not_fit_their_values(index: int, value: Any) -> None:
    check_result(joined(Return([index, value])))


@given(noise)
def test_noise(data: bytes) -> None:
    check_call(data)
    check_result(data)
