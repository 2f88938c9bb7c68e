# SPDX-License-Identifier: Apache-2.0
"""A tracker's peer that says exactly what a test wants it to say."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, Self

from rpcflow.protocol.tracker import MAGIC_BYTES, encode_frame

HOST = "127.0.0.1"
PATIENCE = 30.0
PING, STOP, PUT, REQUEST, UPDATE_INFO, SUMMARY, PENDING = range(1, 8)


class Raw:
    """A connection. ``greet`` False: not even the magic is said."""

    def __init__(self, where: Any, greet: bool = True) -> None:
        port = where if isinstance(where, int) else where.port
        self.socket = socket.create_connection((HOST, port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if greet:
            self.send(MAGIC_BYTES)
            assert self.take(4) == MAGIC_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    @property
    def name(self) -> str:
        """Our address, as the tracker sees it."""
        return "{}:{}".format(*self.socket.getsockname())

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def say(self, *message: Any) -> None:
        self.send(encode_frame(list(message)))

    def take(self, size: int) -> bytes:
        """So many bytes, or fewer at the end of the line."""
        data = b""
        while len(data) < size:
            try:
                more = self.socket.recv(size - len(data))
            except ConnectionError:
                break
            if not more:
                break
            data += more
        return data

    def answer(self) -> Any:
        head = self.take(4)
        assert len(head) == 4, "the line ended"
        return json.loads(self.take(struct.unpack("<i", head)[0]))

    def ask(self, *message: Any) -> Any:
        self.say(*message)
        return self.answer()

    def ended(self) -> bool:
        """Whether the other side has closed, and said nothing more before."""
        return self.take(1) == b""

    # ---- as servers and clients do

    def register(self, key: str, match_key: str, port: int = 5000, info: bool = True, host: str | None = None) -> None:
        if info:
            assert self.ask(UPDATE_INFO, {"key": f"server:{key}", "addr": [None, port]}) == 0
        assert self.ask(PUT, key, [port, match_key], host) == 0

    def request(self, key: str, priority: float = 1, user: str = "") -> None:
        """Ask, and do not wait for the answer."""
        self.say(REQUEST, key, user, priority)

    def summary(self) -> Any:
        code, summary = self.ask(SUMMARY)
        assert code == 0
        return summary

    def queue(self, key: str) -> tuple[int, int]:
        """Free and pending."""
        info = self.summary()["queue_info"].get(key, {"free": 0, "pending": 0})
        return info["free"], info["pending"]

    def devices(self) -> list[tuple[str, str, str | None]]:
        """Address, state and for whom, of each."""
        return [
            ("{}:{}".format(*device["addr"]), device["state"], device["for"]) for device in self.summary()["devices"]
        ]
