# SPDX-License-Identifier: Apache-2.0
"""Feeding a packet reader in pieces, as a driver does."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rpcflow.protocol.packets import CopyAck, CopyToRemote, encode
from rpcflow.protocol.reader import Bulk, PacketReader, PayloadEnd
from rpcflow.protocol.sinks import ViewSink


def packet_bytes(packet: Any, payload: bytes = b"") -> bytes:
    """A packet with its payload, as one run of bytes."""
    out = bytearray()
    for part in encode(packet):
        assert not isinstance(part, tuple)
        out += part
    return bytes(out + payload)


def pieces(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """``data`` cut at the given places."""
    last = 0
    for cut in sorted({min(cut, len(data)) for cut in cuts}):
        yield data[last:cut]
        last = cut
    yield data[last:]


class Feeder:
    """Takes every event as soon as it is there; payloads go into memory by ViewSink.

    Args:
        reader: the reader to feed.
        on_bulk: called with each Bulk, to name a sink or not.
    """

    def __init__(self, reader: PacketReader, on_bulk: Callable[[Bulk], None] = lambda bulk: None) -> None:
        self.reader = reader
        self.on_bulk = on_bulk
        self.events: list[Any] = []

    def feed(self, data: bytes) -> None:
        """Take in all of ``data``."""
        reader, pos = self.reader, 0
        while True:
            while (event := reader.next_event()) is not None:
                self._take(event)
            if pos == len(data):
                return
            room = reader.get_buffer()
            step = min(len(room), len(data) - pos)
            assert step > 0
            room[:step] = data[pos : pos + step]
            reader.received(step)
            pos += step

    def _take(self, event: Any) -> None:
        if isinstance(event, CopyToRemote | CopyAck):
            self.reader.receive_payload(ViewSink(memoryview(bytearray(event.nbytes))))
            self.events.append((event, None))
        elif isinstance(event, PayloadEnd):
            packet, _ = self.events.pop()
            assert isinstance(event.value, memoryview)
            self.events.append((packet, bytes(event.value)))
        elif isinstance(event, Bulk):
            self.on_bulk(event)
        else:
            self.events.append((event, b""))
