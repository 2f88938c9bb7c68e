# SPDX-License-Identifier: Apache-2.0
"""Growing keeps what is there, and gives room to write."""

import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcflow.protocol import growing
from rpcflow.protocol.growing import grow
from rpcflow.protocol.sinks import MemorySink


@pytest.mark.parametrize("plain", [False, True], ids=["resize", "extend"])
@pytest.mark.parametrize("sizes", [(1, 2), (1000, 1001, 5000), (1 << 20, 9 << 20, 20 << 20)])
def test_what_was_there_stays(sizes: tuple[int, ...], plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if plain:
        monkeypatch.setattr(growing, "_RESIZE", None)
    data = bytearray(b"x" * sizes[0])
    for size in sizes[1:]:
        before = len(data)
        grow(data, size)
        assert len(data) == size
        assert data[:before].count(b"x") == before
        data[before:] = b"x" * (size - before)
    assert data == b"x" * sizes[-1]
    data.extend(b"yz")
    assert data[-3:] == b"xyz"


def test_no_growing_under_a_view() -> None:
    data = bytearray(10)
    with memoryview(data), pytest.raises(BufferError):
        grow(data, 20)
    assert len(data) == 10


def test_more_than_there_can_be() -> None:
    data = bytearray(b"abc")
    with pytest.raises(MemoryError):
        grow(data, 1 << 62)
    assert data == b"abc"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux's /proc")
def test_room_that_nobody_wrote_to_takes_no_memory() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    data = bytearray(b"x" * (1 << 20))
    before = resident()
    grow(data, 512 << 20)
    assert resident() - before < 64 << 20


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 12 << 20), st.lists(st.integers(1, 4 << 20), min_size=1, max_size=9))
def test_a_sink_gives_what_was_put_in(nbytes: int, steps: list[int]) -> None:
    sink = MemorySink(nbytes)
    expected = bytearray()
    while len(expected) < nbytes:
        pos = len(expected)
        room = sink.get_buffer()
        # Of a byte each, millions of pieces would say no more than a thousand.
        step = min(len(room), nbytes - pos, max(steps[pos % len(steps)], nbytes // 1000))
        piece = bytes([pos % 251]) * step
        room[:step] = piece
        sink.filled(step)
        expected += piece
    assert sink.finish() == expected
