# SPDX-License-Identifier: Apache-2.0
"""Frames to and from a tracker."""

import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.errors import ProtocolError
from rpcflow.protocol.limits import Limits
from rpcflow.protocol.tracker import MAGIC_BYTES, FrameReader, TrackerCode, encode_frame, frame
from tests import strategies as wire

from .feeding import pieces

PING = (
    b"\x03\0\0\0"  # i32 size
    b"[1]"  # JSON
)


def test_literal() -> None:
    assert encode_frame([TrackerCode.PING]) == PING
    assert MAGIC_BYTES == b"\x71\xf2\x02\x00"
    for parts in ([MAGIC_BYTES + PING], [bytes([b]) for b in MAGIC_BYTES + PING]):
        reader = FrameReader()
        assert not reader.between_frames
        got = [message for part in parts for message in reader.feed(part)]
        assert got == [[1]]
        assert reader.between_frames
        assert reader.feed(PING[:6]) == []
        assert not reader.between_frames
        assert reader.feed(PING[6:]) == [[1]]
    assert FrameReader(magic=False).feed(PING + PING) == [[1], [1]]


def test_text_is_escaped() -> None:
    assert encode_frame("é") == b"\x08\0\0\0" + b'"\\u00e9"'  # so that characters and bytes are as many


@given(st.lists(wire.json_messages, max_size=5), st.lists(st.integers(0, 200), max_size=10))
def test_there_and_back_in_any_pieces(messages: list[Any], cuts: list[int]) -> None:
    data = MAGIC_BYTES + b"".join(encode_frame(message) for message in messages)
    reader = FrameReader()
    assert [message for piece in pieces(data, cuts) for message in reader.feed(piece)] == messages
    assert reader.between_frames
    assert reader.total == len(data)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (struct.pack("<i", 0), "of 0 bytes"),
        (struct.pack("<i", -1), "of -1 bytes"),
        (struct.pack("<i", 2**20 + 1), "of 1048577 bytes"),
        (struct.pack("<i", 2**31 - 1), "of 2147483647 bytes"),
        (b"\x01\0\0\0{", "not JSON"),
        (b"\x01\0\0\0\xff", "not JSON"),
        (b"\x04\0\0\0[1]]", "not JSON"),
        (struct.pack("<i", 200_000) + b"[" * 200_000, "not JSON"),  # nested deeper than any stack
        (struct.pack("<i", 100_000) + b"9" * 100_000, "not JSON"),  # a number longer than Python reads
    ],
)
def test_refused(bad: bytes, words: str) -> None:
    for magic in (True, False):
        reader = FrameReader(magic)
        data = MAGIC_BYTES + PING + bad if magic else PING + bad
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolError, match=words) as first:
                reader.feed(data)
            assert tracemalloc.get_traced_memory()[1] < 20 * len(data) + 100_000
        finally:
            tracemalloc.stop()
        assert first.value.offset == len(data)
        with pytest.raises(ProtocolError) as again:
            reader.feed(PING)
        assert again.value is first.value


def test_another_magic() -> None:
    with pytest.raises(ProtocolError, match="does not speak to trackers"):
        FrameReader().feed(b"\x71\xf2\x0f\x00")


def test_limits() -> None:
    limits = Limits(tracker_frame_nbytes=3)
    assert FrameReader(limits=limits).feed(MAGIC_BYTES + PING) == [[1]]
    with pytest.raises(ProtocolError):
        FrameReader(limits=limits).feed(MAGIC_BYTES + encode_frame([10]))
    with pytest.raises(ValueError, match="the limit is 3"):
        encode_frame([10], limits)


def test_answers_may_be_longer() -> None:
    limits = Limits(tracker_frame_nbytes=3, tracker_answer_nbytes=4)
    assert FrameReader(False, limits, answers=True).feed(frame(b"[10]", 4)) == [[10]]
    with pytest.raises(ProtocolError, match="the limit is 4"):
        FrameReader(False, limits, answers=True).feed(frame(b"[100]", 5))
    with pytest.raises(ValueError, match="the limit is 4"):
        frame(b"[100]", 4)


def test_one_message_at_a_time() -> None:
    reader = FrameReader()
    reader.add(MAGIC_BYTES[:3])
    assert reader.next_message() is None
    assert not reader.greeted
    reader.add(MAGIC_BYTES[3:] + PING + encode_frame(None) + b"\0\0\0\0")
    assert reader.next_message() == ([1],)
    assert reader.greeted
    assert reader.next_message() == (None,)  # a message, not the lack of one
    for _ in range(2):
        with pytest.raises(ProtocolError, match="of 0 bytes"):
            reader.next_message()
        reader.add(PING)
