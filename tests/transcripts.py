# SPDX-License-Identifier: Apache-2.0
"""The recorded transcripts of ``tests/data/wire``, and a replay that feeds them to the codecs as a driver would."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rpcflow.protocol.handshake import Answer, Hello, HelloReader, encode_answer, encode_hello
from rpcflow.protocol.limits import DEFAULT_LIMITS, Limits
from rpcflow.protocol.packets import CopyAck, CopyToRemote, encode
from rpcflow.protocol.reader import Bulk, Direction, PacketReader, PayloadEnd
from rpcflow.protocol.sinks import ViewSink
from rpcflow.protocol.tracker import MAGIC_BYTES, FrameReader, encode_frame

DATA = Path(__file__).parent / "data"

HTTP = frozenset({"proxy-websocket-server"})
"""Links that speak HTTP and websocket: tests/proxy/test_web.py replays them."""

TO_TRACKER = frozenset({"proxy-tracker-link", "proxy-tracker-regenerate"})
"""Links of a proxy on which it is the tracker's client; besides those, all ``tracker-*``."""

SERVER_CONNECTS = frozenset({"proxy-server-link", "proxy-tracker-server-link", "proxy-pair-by-hand-server"})
"""Links on which the server has connected: packets flow the other way than usual."""

HANDSHAKE_ONLY = frozenset({"proxy-pair-by-hand-client", "proxy-pair-by-hand-server"})
"""Behind the handshake these carry any bytes, to show that a proxy does not look at them."""


class Case(NamedTuple):
    """One direction of one transcript."""

    name: str
    way: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.name}-{self.way}"

    @property
    def is_tracker(self) -> bool:
        """Whether these are frames to or from a tracker."""
        return self.name.startswith("tracker-") or self.name in TO_TRACKER


def load(name: str) -> dict[str, Any]:
    """One transcript as recorded."""
    loaded: dict[str, Any] = json.loads((DATA / "wire" / f"{name}.json").read_text())
    return loaded


def names() -> list[str]:
    """All transcripts."""
    return sorted(path.stem for path in (DATA / "wire").glob("*.json"))


def cases() -> Iterator[Case]:
    """Both directions of all transcripts but those of HTTP, where there are any bytes."""
    for name in names():
        if name in HTTP:
            continue
        events = load(name)["events"]
        for way in ("c2s", "s2c"):
            data = b"".join(bytes.fromhex(event["hex"]) for event in events if event["dir"] == way)
            if name in HANDSHAKE_ONLY:
                data = data[: 8 + int.from_bytes(data[4:8], "little")]
            if data:
                yield Case(name, way, data)


def malformed() -> dict[str, int]:
    """Directions that are no protocol on purpose, and after how many bytes that must be said."""
    listed = json.loads((DATA / "malformed.json").read_text())["cases"]
    return {f"{entry['name']}-{entry['way']}": entry["offset"] for entry in listed}


class Replay:
    """Feeds one direction to the codec it belongs to and keeps what comes out.

    Args:
        case: which direction of which transcript; its own bytes are not fed by this.
    """

    def __init__(self, case: Case, limits: Limits = DEFAULT_LIMITS) -> None:
        opens = case.way == "c2s"
        self.events: list[Any] = []
        self.payloads: list[bytes] = []
        self.frames: FrameReader | None = None
        self.hello: HelloReader | None = None
        self._taken = 0
        self._fault: Exception | None = None
        if case.is_tracker:
            self.frames = FrameReader(limits=limits)
            return
        if case.name != "pipe-minrpc":
            self.hello = HelloReader.for_server(limits) if opens else HelloReader.for_client(limits)
        to_server = opens != (case.name in SERVER_CONNECTS)
        self.packets = PacketReader(Direction.TO_SERVER if to_server else Direction.TO_CLIENT, limits)

    def feed(self, data: bytes) -> None:
        """Take in any number of bytes."""
        if self.frames is not None:
            self.events += self.frames.feed(data)
            return
        pos = 0
        while self.hello is not None and self.hello.wanted and pos < len(data):
            step = min(self.hello.wanted, len(data) - pos)
            self.hello.feed(data[pos : pos + step])
            pos += step
            if self.hello.hello is not None:
                self.events.append(self.hello.hello)
        if self.refused:
            self._taken += len(data) - pos
            return
        while pos < len(data):
            room = self.packets.get_buffer()
            step = min(len(room), len(data) - pos)
            room[:step] = data[pos : pos + step]
            self.packets.received(step)
            pos += step
            self._take_events()

    def _take_events(self) -> None:
        while (event := self.packets.next_event()) is not None:
            if isinstance(event, CopyToRemote | CopyAck):
                memory = memoryview(bytearray(event.nbytes))
                self.packets.receive_payload(ViewSink(memory))
            if isinstance(event, PayloadEnd):
                assert isinstance(event.value, memoryview)
                self.payloads.append(bytes(event.value))
            elif not isinstance(event, Bulk):
                self.events.append(event)

    @property
    def refused(self) -> bool:
        """Whether the handshake was answered with a refusal, behind which nothing comes."""
        return self.hello is not None and self.hello.hello is not None and self.hello.hello.text is None

    @property
    def settled(self) -> bool:
        """Whether all that was fed has become events."""
        if self.frames is not None:
            return self.frames.between_frames
        if self.hello is not None and self.hello.wanted:
            return False
        return self.packets.between_packets and not self._taken

    def encoded(self) -> bytes:
        """The events put back into bytes."""
        out = bytearray()
        payloads = iter(self.payloads)
        if self.frames is not None:
            return MAGIC_BYTES + b"".join(encode_frame(message) for message in self.events)
        for event in self.events:
            if isinstance(event, Hello):
                text = event.text
                out += encode_answer(Answer(event.code)) if text is None else encode_hello(text, event.code)
                continue
            for part in encode(event):
                assert not isinstance(part, tuple)
                out += part
            if isinstance(event, CopyToRemote | CopyAck):
                out += next(payloads)
        return bytes(out)


def without_empty_packets(case: Case) -> bytes:
    """The bytes of a case less its packets of length 0, which are passed over and so not written again."""
    data, out, pos = case.data, bytearray(), 0
    if case.name != "pipe-minrpc":
        key = int.from_bytes(data[4:8], "little")
        pos = 8 + key
        out += data[:pos]
    while pos < len(data):
        size = 8 + int.from_bytes(data[pos : pos + 8], "little")
        if size > 8:
            out += data[pos : pos + size]
        pos += size
    return bytes(out)
