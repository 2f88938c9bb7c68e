# SPDX-License-Identifier: Apache-2.0
"""Whatever comes: events, or ProtocolError and nothing else; and the same whatever the pieces."""

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rpcflow.errors import ProtocolError
from rpcflow.protocol.limits import Limits
from rpcflow.protocol.reader import Direction, PacketReader
from tests.strategies import same
from tests.transcripts import Case, Replay, cases

from .feeding import Feeder, pieces

ALL = [case for case in cases() if len(case.data) < 5000]
SMALL = Limits(packet_nbytes=64, bulk_nbytes=8, value_nbytes=1024, ndim=4, key_nbytes=64, tracker_frame_nbytes=200)

framed = st.builds(
    lambda code, body, off: struct.pack("<Qi", 4 + len(body) + off, code) + body,
    st.integers(-1, 23),
    st.binary(max_size=120),
    st.sampled_from([0, 0, 0, 0, -1, 1, 100]).map(abs),
)
noise = st.one_of(st.binary(max_size=200), st.lists(framed, max_size=4).map(b"".join))


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Case, bytes]:
    """A recorded direction with a few of its bytes changed, taken out, doubled or put in."""
    case = draw(st.sampled_from(ALL))
    data = bytearray(case.data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "set", "cut", "put", "repeat", "end"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                data[at : at + 1] = draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80", b"\x01"]))
            case "cut":
                del data[at : at + draw(st.integers(1, 16))]
            case "put":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case "end":
                del data[at:]
    return case, bytes(data)


def _outcome(feeder: Any, parts: list[bytes]) -> tuple[list[Any], str]:
    try:
        for part in parts:
            feeder.feed(part)
    except ProtocolError as error:
        return feeder.events, str(error)
    return feeder.events, ""


@given(noise, st.sampled_from(Direction), st.booleans(), st.lists(st.integers(0, 300), max_size=8))
@settings(max_examples=400)
def test_noise(data: bytes, direction: Direction, small: bool, cuts: list[int]) -> None:
    limits = SMALL if small else Limits()
    whole = _outcome(Feeder(PacketReader(direction, limits)), [data])
    cut = _outcome(Feeder(PacketReader(direction, limits)), list(pieces(data, cuts)))
    assert same(whole[0], cut[0])
    assert whole[1] == cut[1]


@given(mutated(), st.booleans(), st.lists(st.integers(0, 5000), max_size=8))
@settings(max_examples=400)
def test_mutated_transcripts(made: tuple[Case, bytes], small: bool, cuts: list[int]) -> None:
    case, data = made
    limits = SMALL if small else Limits()
    whole = _outcome(Replay(case, limits), [data])
    cut = _outcome(Replay(case, limits), list(pieces(data, cuts)))
    assert whole[1] == cut[1]
    if not case.is_tracker:  # a tracker closes at a fault, whatever came before it in the same piece
        assert same(whole[0], cut[0])
