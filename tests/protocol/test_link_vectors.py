# SPDX-License-Identifier: Apache-2.0
"""The vectors of tests/data/link.json (its "about" says how to read it); the C implementation has the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from rpcflow.protocol.link import DeviceLink, Frame, FrameReader, Kind, Sizes, State, encode

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "link.json").read_text())


def as_frame(fields: list[Any]) -> Frame:
    kind, session, number, wanted, credit, payload = fields
    return Frame(Kind(kind), session, number, wanted, credit, bytes.fromhex(payload))


def as_frames(listed: list[Any]) -> list[Frame | None]:
    return [None if fields is None else as_frame(fields) for fields in listed]


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda vector: str(vector["frame"])[:40])
def test_frames(vector: dict[str, Any]) -> None:
    frame, line = as_frame(vector["frame"]), bytes.fromhex(vector["line"])
    assert encode(frame, vector["xonxoff"]) == line
    assert list(FrameReader(1024).feed(line)) == [frame]


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("vector", VECTORS["lines"], ids=lambda vector: vector["about"])
def test_lines(vector: dict[str, Any], step: int) -> None:
    reader, line = FrameReader(vector["payload"]), bytes.fromhex(vector["line"])
    events = [event for at in range(0, len(line), step) for event in reader.feed(line[at : at + step])]
    assert events == as_frames(vector["events"])


@pytest.mark.parametrize("vector", VECTORS["conversations"], ids=lambda vector: vector["name"])
def test_conversations(vector: dict[str, Any]) -> None:
    device = DeviceLink(Sizes(payload=vector["payload"], room=vector["receive_frames"], window=vector["send_frames"]))
    serving, buffer = 0, memoryview(bytearray(4096))
    for step in vector["steps"]:
        now = step["at"] / 1000
        device.tick(now)
        device.receive(bytes.fromhex(step.get("line", "")), now)
        if step.get("accept"):
            assert device.state is State.OPEN
            assert device.sessions > serving
            serving = device.sessions
        if "read" in step:
            expected = bytes.fromhex(step["read"])
            assert device.read_into(buffer[: len(expected)]) == len(expected), step
            assert bytes(buffer[: len(expected)]) == expected
        if "write" in step:
            data = memoryview(bytes.fromhex(step["write"]))
            assert device.send(data) == len(data), step
            device.flush()
        if step.get("ended"):
            assert device.state is not State.OPEN or device.sessions != serving
        out = list(FrameReader(1024).feed(b"~" + device.take_outgoing(now)))
        assert out == as_frames(step["out"]), step
