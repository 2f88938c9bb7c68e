# SPDX-License-Identifier: Apache-2.0
"""Frames of pairing: what goes in comes out, and nothing else does anything but be refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.errors import ProtocolError
from rpcflow.security import pairing_frames as frames
from rpcflow.security.pairing_frames import Frame, FrameReader, Kind, Reason

LENGTHS = {
    Kind.HELLO: (65, 65),
    Kind.REPLY: (33, 33),
    Kind.CLIENT_CONFIRM: (32, 32),
    Kind.SERVER_CONFIRM: (32, 32),
    Kind.INTRODUCTION: (34, 32 + 1 + 64 + 8192),
    Kind.STORED: (33, 96),
    Kind.REFUSED: (1, 1),
}


@st.composite
def some_frames(draw: Any) -> Frame:
    kind = draw(st.sampled_from(Kind))
    least, most = LENGTHS[kind]
    return Frame(kind, draw(st.binary(min_size=least, max_size=min(most, 300))))


def read(data: bytes) -> list[Frame]:
    """All whole frames of it."""
    reader, found, at = FrameReader(), [], 0
    while at + reader.wanted <= len(data):
        step = reader.wanted
        frame = reader.feed(data[at : at + step])
        at += step
        if frame is not None:
            found.append(frame)
    return found


@given(st.lists(some_frames(), max_size=5))
def test_what_goes_in_comes_out(sent: list[Frame]) -> None:
    assert read(b"".join(frame.encode() for frame in sent)) == sent


@given(st.binary(max_size=200))
def test_garbage_is_frames_or_refused(data: bytes) -> None:
    try:
        found = read(data)
    except ProtocolError:
        return
    assert data.startswith(b"".join(frame.encode() for frame in found))


@pytest.mark.parametrize("kind", Kind)
def test_lengths_are_checked_in_the_head(kind: Kind) -> None:
    for length in (LENGTHS[kind][0] - 1, LENGTHS[kind][1] + 1, 65535):
        with pytest.raises(ProtocolError, match=kind.name):
            FrameReader().feed(bytes((1, kind)) + length.to_bytes(2, "little"))
        with pytest.raises(ValueError):
            Frame(kind, bytes(length)).encode()


def test_another_version_and_another_kind() -> None:
    with pytest.raises(ProtocolError, match="version 2"):
        FrameReader().feed(b"\x02\x01\x41\x00")
    for kind in (0, 8, 255):
        with pytest.raises(ProtocolError, match=f"kind {kind}"):
            FrameReader().feed(bytes((1, kind, 1, 0)))


def test_only_what_is_wanted_can_be_fed() -> None:
    with pytest.raises(ValueError):
        FrameReader().feed(b"\x01\x01\x41")


@given(st.text(max_size=16), st.binary(min_size=1, max_size=200))
def test_introductions(name: str, certificate: bytes) -> None:
    assert frames.unpack_introduction(frames.pack_introduction(name, certificate)) == (name, certificate)


@given(st.binary(min_size=2, max_size=100))
def test_garbage_introductions(data: bytes) -> None:
    try:
        name, certificate = frames.unpack_introduction(data)
    except ProtocolError:
        return
    assert frames.pack_introduction(name, certificate) == data


def test_introductions_that_cannot_be() -> None:
    for name, certificate in (("x" * 65, b"c"), ("ü" * 33, b"c"), ("x", b""), ("x", bytes(8193))):
        with pytest.raises(ValueError):
            frames.pack_introduction(name, certificate)
    frames.pack_introduction("x" * 64, bytes(8192))


@pytest.mark.parametrize("reason", Reason)
def test_refusals(reason: Reason) -> None:
    (frame,) = read(frames.refusal(reason).encode())
    assert frames.reason_of(frame) is reason


def test_a_refusal_for_no_reason() -> None:
    with pytest.raises(ProtocolError):
        frames.reason_of(Frame(Kind.REFUSED, b"\xff"))


def test_a_frame_does_not_show_what_it_holds() -> None:
    assert "secret" not in repr(Frame(Kind.REPLY, b"secret"))
