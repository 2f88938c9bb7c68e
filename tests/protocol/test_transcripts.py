# SPDX-License-Identifier: Apache-2.0
"""What stock peers said, read and written again: whole, byte by byte, and with half a packet behind it."""

import pytest

from rpcflow.errors import ProtocolError
from tests.transcripts import HTTP, Case, Replay, cases, malformed, names, without_empty_packets

BAD = malformed()
ALL = list(cases())
GOOD = [case for case in ALL if str(case) not in BAD]

WITH_EMPTY_PACKETS = frozenset({"raw-zero-length-packets-c2s"})


def _written(case: Case) -> bytes:
    return without_empty_packets(case) if str(case) in WITH_EMPTY_PACKETS else case.data


def test_the_recordings_are_all_here() -> None:
    assert len(names()) == 139
    assert set(names()) - {case.name for case in ALL} == HTTP
    assert {str(case) for case in ALL} >= set(BAD)


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_whole(case: Case) -> None:
    replay = Replay(case)
    replay.feed(case.data)
    assert replay.settled
    assert replay.encoded() == _written(case)


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_byte_by_byte(case: Case) -> None:
    replay = Replay(case)
    data = case.data if len(case.data) < 10_000 else case.data[:10_000]  # the rest is one long payload
    for i in range(len(data)):
        replay.feed(data[i : i + 1])
    replay.feed(case.data[len(data) :])
    assert replay.settled
    assert replay.encoded() == _written(case)


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_with_trailing_bytes(case: Case) -> None:
    """Half a packet behind it is no error, no event, and known to be half a packet."""
    half = b"\x04\0\0\0\0\0\0\0\x01\0\0" if not case.is_tracker else b"\x02\0\0\0["
    for extra in (half[:1], half[:8] if not case.is_tracker else half[:4], half):
        replay = Replay(case)
        replay.feed(case.data + extra)
        assert not replay.settled
        assert replay.encoded() == _written(case)


@pytest.mark.parametrize("case", [case for case in ALL if str(case) in BAD], ids=str)
def test_malformed(case: Case) -> None:
    """ProtocolError comes with the byte named, stays, and comes as well when all is fed at once."""
    offset = BAD[str(case)]
    replay = Replay(case)
    for i in range(offset - 1):
        replay.feed(case.data[i : i + 1])
    with pytest.raises(ProtocolError):
        replay.feed(case.data[offset - 1 : offset])
    with pytest.raises(ProtocolError):
        Replay(case).feed(case.data)


@pytest.mark.parametrize("case", [case for case in ALL if str(case) in BAD], ids=str)
def test_a_fault_of_packets_stays_and_knows_its_place(case: Case) -> None:
    replay = Replay(case)
    with pytest.raises(ProtocolError) as first:
        replay.feed(case.data)
    if replay.frames is not None:
        assert first.value.offset is not None
    elif case.name != "raw-wrong-magic":
        with pytest.raises(ProtocolError) as again:
            replay.packets.next_event()
        assert again.value is first.value
        assert first.value.offset == replay.packets.total


def test_a_pipe_begins_with_packets() -> None:
    case = next(case for case in ALL if str(case) == "pipe-minrpc-c2s")
    replay = Replay(case)
    replay.feed(case.data)
    assert replay.hello is None
    assert type(replay.events[0]).__name__ == "InitServer"
