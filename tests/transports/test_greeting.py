# SPDX-License-Identifier: Apache-2.0
"""The handshake from the connecting side, on scripted channels."""

from typing import Any

import anyio
import pytest

from rpcflow.errors import ConnectionLostError, DuplicateKeyError, KeyMismatchError, ProtocolError
from rpcflow.protocol.handshake import Answer, KeyText, Side, encode_answer, encode_hello
from rpcflow.transports.greeting import greet, greet_async
from rpcflow.transports.testing import SILENCE, AsyncScriptedChannel, Faults, FaultyChannel, ScriptedChannel

KEY = KeyText(Side.CLIENT, "board", 60.0)
WELCOME = encode_answer(Answer.OK, "server:board")


@pytest.fixture(params=["blocking", "async"])
def meet(request: pytest.FixtureRequest) -> Any:
    """Greets over a channel that plays a script; the answer, and what was sent."""

    def run(*script: Any) -> tuple[str, bytes]:
        channel: Any
        if request.param == "blocking":
            channel = ScriptedChannel(script)
            return greet(channel, KEY), channel.sent
        channel = AsyncScriptedChannel(script)
        return anyio.run(greet_async, channel, KEY), channel.sent

    return run


def test_welcome(meet: Any) -> None:
    assert meet(WELCOME) == ("server:board", encode_hello(str(KEY)))
    assert meet(*(WELCOME[i : i + 1] for i in range(len(WELCOME))))[0] == "server:board"


def test_takes_not_a_byte_too_many() -> None:
    channel = ScriptedChannel([WELCOME + b"next"])
    greet(channel, KEY)
    buffer = bytearray(10)
    assert buffer[: channel.receive_into(memoryview(buffer))] == b"next"


def test_refusals(meet: Any) -> None:
    with pytest.raises(KeyMismatchError, match="board") as mismatch:
        meet(encode_answer(Answer.MISMATCH))
    assert mismatch.value.key == "board"
    with pytest.raises(DuplicateKeyError) as duplicate:
        meet(encode_answer(Answer.DUPLICATE))
    assert duplicate.value.key == "board"


@pytest.mark.parametrize("count", range(len(WELCOME)))
def test_an_early_end(meet: Any, count: int) -> None:
    with pytest.raises(ConnectionLostError, match="without an answer"):
        meet(WELCOME[:count] or ConnectionLostError("without an answer"))


def test_no_server_of_ours(meet: Any) -> None:
    with pytest.raises(ProtocolError):
        meet(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_flipped_bits_are_refused_or_read_but_nothing_else() -> None:
    for position in range(len(WELCOME)):
        for bit in range(8):
            channel = FaultyChannel(ScriptedChannel([WELCOME]), Faults(receive_flips={position: 1 << bit}))
            try:
                greet(channel, KEY)
            except (ProtocolError, ConnectionLostError, KeyMismatchError, DuplicateKeyError):
                pass


def test_a_deadline() -> None:
    with pytest.raises(TimeoutError):
        greet(ScriptedChannel([WELCOME[:3], SILENCE]), KEY, deadline=0.0)
