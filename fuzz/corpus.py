# SPDX-License-Identifier: Apache-2.0
"""First inputs, out of what stock peers have said."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from rpcflow.errors import STRUCTURED_KINDS
from rpcflow.protocol.credentials import CREDENTIALS_MAGIC, TOKEN_NBYTES, encode_credentials
from tests.transcripts import SERVER_CONNECTS, Case, cases

MAX_NBYTES = 4096
"""Longer inputs are cut: what they add is payload."""


@cache
def _cases() -> tuple[Case, ...]:
    return tuple(cases())


def handshakes() -> Iterator[bytes]:
    """Handshakes, both ways, with what comes behind them."""
    for case in _cases():
        if not case.is_tracker and case.name != "pipe-minrpc":
            yield case.data[:200]


def credentials() -> Iterator[bytes]:
    """Credentials, what is none, and what comes behind them."""
    for token in ("a", "q3X8Yw0m5Vt2ZrK7nJ9bLcQ4sDfGhT6uEiOaWxMzPyB", "~" * TOKEN_NBYTES):
        yield encode_credentials(token)
        yield encode_credentials(token) + b"\x71\xf2\x0f\0"
    yield CREDENTIALS_MAGIC + (TOKEN_NBYTES + 1).to_bytes(4, "little")
    yield CREDENTIALS_MAGIC + b"\x03\0\0\0a b"
    yield from handshakes()


def key_texts() -> Iterator[bytes]:
    """The key texts in handshakes."""
    for data in handshakes():
        if len(data) >= 8:
            yield data[8 : 8 + int.from_bytes(data[4:8], "little")]


def packets(to_server: bool) -> Iterator[bytes]:
    """Packets that flow one way, without the handshake before them."""
    for case in _cases():
        if case.is_tracker or ((case.way == "c2s") != (case.name in SERVER_CONNECTS)) != to_server:
            continue
        data = case.data
        if case.name != "pipe-minrpc":
            data = data[8 + int.from_bytes(data[4:8], "little") :] if len(data) >= 8 else b""
        if data:
            yield data[:MAX_NBYTES]


def sequences() -> Iterator[bytes]:
    """Sequences of values: the rest of a packet, behind its code, of calls and returns."""
    for to_server in (True, False):
        for data in packets(to_server):
            pos = 0
            while pos + 12 <= len(data):
                length, code = int.from_bytes(data[pos : pos + 8], "little"), data[pos + 8]
                start = pos + 12 + (8 if code == 3 else 0)
                if code not in (1, 2, 6, 7, 8) and pos + 8 + length <= len(data):
                    yield data[start : pos + 8 + length]
                pos += 8 + length


def frames() -> Iterator[bytes]:
    """What trackers and their clients say."""
    for case in _cases():
        if case.is_tracker:
            yield case.data[:MAX_NBYTES]


def link_lines() -> Iterator[bytes]:
    """What comes off a serial line: the conversations of the link layer's vectors."""
    vectors = json.loads((Path(__file__).parents[1] / "tests" / "data" / "link.json").read_text())
    for vector in vectors["lines"]:
        yield bytes.fromhex(vector["line"])[:MAX_NBYTES]
    for vector in vectors["conversations"]:
        yield b"".join(bytes.fromhex(step.get("line", "")) for step in vector["steps"])[:MAX_NBYTES]


def error_texts() -> Iterator[bytes]:
    """Texts of Exception packets, and of structured errors."""
    yield b"RPCSessionTimeoutError: Your 1.0s session has expired"
    yield b"ValueError: abc"
    for kind in STRUCTURED_KINDS:
        fields = {"kind": kind, "message": "m", "remote_type": "E", "offset": 1, "signal": 9, "path": "p"}
        yield b"rpcflow-error " + json.dumps(fields).encode()
