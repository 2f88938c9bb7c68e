# SPDX-License-Identifier: Apache-2.0
"""The link layer in C against the vectors that the one in Python passes too, tests/data/link.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from .clink import GREETING, CLink, decode, encode, library

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "link.json").read_text())


def parts(fields: list[Any]) -> tuple[bytes, bytes]:
    kind, session, number, wanted, credit, payload = fields
    return bytes([kind, session & 255, session >> 8, number, wanted, credit]), bytes.fromhex(payload)


def all_parts(listed: list[Any]) -> list[tuple[bytes, bytes] | None]:
    return [None if fields is None else parts(fields) for fields in listed]


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda vector: str(vector["frame"])[:40])
def test_frames(vector: dict[str, Any]) -> None:
    built, line = library(1024, xonxoff=vector["xonxoff"]), bytes.fromhex(vector["line"])
    assert encode(built, *parts(vector["frame"])) == line
    assert decode(built, line) == [parts(vector["frame"])]


@pytest.mark.parametrize("vector", VECTORS["lines"], ids=lambda vector: vector["about"])
def test_lines(vector: dict[str, Any]) -> None:
    assert decode(library(vector["payload"]), bytes.fromhex(vector["line"])) == all_parts(vector["events"])


def must_not_wait() -> None:
    raise AssertionError("the program has to wait")


@pytest.mark.parametrize("vector", VECTORS["conversations"], ids=lambda vector: vector["name"])
@pytest.mark.parametrize("start_ms", [0, 0xFFFFFE00])  # the clock may wrap
def test_conversations(vector: dict[str, Any], start_ms: int) -> None:
    device = CLink(library(vector["payload"], vector["receive_frames"], vector["send_frames"]), must_not_wait, start_ms)
    frames = library(1024)
    for step in vector["steps"]:
        device.tick(start_ms + step["at"])
        device.receive(bytes.fromhex(step.get("line", "")))
        if step.get("accept"):
            device.accept()
        if "read" in step:
            expected = bytes.fromhex(step["read"])
            assert device.read(len(expected)) == expected
        if "write" in step:
            assert device.write(bytes.fromhex(step["write"]))
        if step.get("ended"):
            assert device.read(1) is None
        assert decode(frames, b"~" + device.transmit()) == all_parts(step["out"]), step
    device.check()


def test_a_program_that_waits_is_woken_by_a_new_session() -> None:
    waits = []

    def wait() -> None:
        waits.append(len(waits))
        if len(waits) == 3:
            device.receive(GREETING)

    device = CLink(library(), wait)
    device.accept()
    assert waits == [0, 1, 2]


def frame(kind: int, session: int, number: int, payload: bytes = b"", wanted: int = 0) -> bytes:
    return encode(library(), bytes([kind, session & 255, session >> 8, number, wanted, 4]), payload)


@pytest.mark.parametrize("what", ["read", "write"])
def test_a_session_that_begins_while_bytes_are_copied(what: str) -> None:
    device = CLink(library(), must_not_wait)
    device.receive(GREETING)
    device.accept()
    device.receive(frame(3, 0xBEEF, 0, b"abc"))
    device.between = lambda: device.receive(frame(1, 0x1234, 0, b"\1\x40\0"))
    assert not (device.read(2) if what == "read" else device.write(b"old"))
    device.accept()
    device.receive(frame(3, 0x1234, 0, b"xyz"))
    assert device.read(3) == b"xyz"
    assert device.write(b"new")
    sent = [found for found in decode(library(), device.transmit()) if found is not None and found[0][0] == 3]
    assert sent == [(bytes([3, 0x34, 0x12, 0, 1, 4]), b"new")]


def test_a_frame_that_is_acknowledged_while_it_goes_out_stays_whole() -> None:
    line = b""

    def wait() -> None:
        nonlocal line
        line += device.transmit()

    device = CLink(library(64, 2, 1), wait)
    device.receive(GREETING)
    device.accept()
    device.transmit()
    device.write(b"first")
    line = device.transmit(4)
    device.receive(frame(4, 0xBEEF, 0, wanted=1))
    device.write(b"other")
    line += device.transmit()
    assert [found and found[1] for found in decode(library(), line)] == [b"first", b"other"]


def test_a_frame_for_which_there_was_no_room_at_first_is_not_taken() -> None:
    device = CLink(library(64, 1, 1), must_not_wait)
    device.receive(GREETING)
    device.accept()
    device.receive(frame(3, 0xBEEF, 0, b"abc"))
    later = frame(3, 0xBEEF, 1, bytes(range(20)))
    device.receive(later[:20])
    assert device.read(3) == b"abc"  # and now there would be room
    device.receive(later[20:])
    device.transmit()
    device.receive(later)
    assert device.read(20) == bytes(range(20))


def test_an_acknowledgement_when_all_was_to_be_sent_again() -> None:
    device = CLink(library(), must_not_wait)
    device.receive(GREETING)
    device.accept()
    device.write(b"first")
    device.transmit()
    device.tick(1000)
    device.receive(frame(4, 0xBEEF, 0, wanted=1))
    device.write(b"other")
    sent = decode(library(), device.transmit())
    assert [found and found[1] for found in sent] == [b"other"]


def test_a_served_session_whose_host_is_silent_is_closed() -> None:
    sent = []

    def wait() -> None:
        sent.extend(decode(library(), device.transmit()))
        device.receive(frame(1, 0x1234, 0, b"\1\x40\0"))

    device = CLink(library(), wait)
    device.receive(GREETING)
    device.accept()
    device.write(b"for nobody")
    for now_ms in range(0, 20000, 50):
        device.transmit()
        device.tick(now_ms)
    device.accept()
    assert sent == [(bytes([7, 0xEF, 0xBE, 0, 0, 0]), b"\2\1")]
