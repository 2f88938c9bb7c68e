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
