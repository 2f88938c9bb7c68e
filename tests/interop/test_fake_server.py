"""A scripted server that plays the recorded answers of stock servers to live clients.

It checks what the client sends against what the stock client sent: each request has to be one of the
recording's, in its order. Requests that a client may add or leave out (frees, synchronisation, lookups
beyond the recording) are answered as a stock server would. The stock client is the control.
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from . import wire
from .conftest import need_tvm
from .fake import FakePeer, exchanges
from .peers import Client, Link

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def fake() -> Iterator[FakePeer]:
    peer = FakePeer()
    yield peer
    peer.close()


Play = Callable[..., None]


@pytest.fixture(params=["stock", "sync", "trio", "asyncio"])
def fake_client(request: pytest.FixtureRequest, clients: Callable[[str], Client]) -> Client:
    if request.param == "stock":
        need_tvm()
    return clients(request.param)


@pytest.fixture
def play(fake: FakePeer, fake_client: Client) -> Play:
    def run(name: str, scenario: Callable[[Link], Any], key: str = "", **options: Any) -> None:
        with fake_client.connect(fake.play(name), key, **options) as session:
            link = Link(fake_client, session, "fake")
            scenario(link)
            del link, session
            gc.collect()
        report = fake.report()
        assert report.strange == []
        assert report.left == [], "the client did not send what the stock client sent"

    return run


ECHOES: dict[str, Any] = {
    "echo-none": None,
    "echo-int": 1,
    "echo-int-max": 2**63 - 1,
    "echo-int-negative": -2,
    "echo-bool-true": True,
    "echo-bool-false": False,
    "echo-float": 1.5,
    "echo-float-negative-inf": float("-inf"),
    "echo-str": "xyz",
    "echo-str-empty": "",
    "echo-bytes": b"123",
    "echo-bytes-empty": b"",
}


@pytest.mark.parametrize("name", ECHOES)
def test_echo(play: Play, name: str) -> None:
    value = ECHOES[name]

    def scenario(link: Link) -> None:
        echoed = link.call("testing.echo", value)
        assert echoed == value
        assert isinstance(echoed, type(value))

    play(name, scenario)


def test_call(play: Play) -> None:
    def scenario(link: Link) -> None:
        assert link.call("rpc.test.addone", 10) == 11
        assert link.call("rpc.test.strcat", "abc", 11) == "abc:11"

    play("call-addone-strcat", scenario)


def test_dtype(play: Play) -> None:
    def scenario(link: Link) -> None:
        dtype = link.client.dtype("bfloat16x4")
        assert str(link.call("testing.echo", dtype)) == "bfloat16x4"

    play("echo-dtype-bfloat16", scenario)


def test_tensor(play: Play) -> None:
    # The data of the recorded copy, so that what the client sends is the same.
    _, script = exchanges("tensor-float32-2x3")
    (data,) = [e.request.parts[2] for e in script if e.request.code == wire.COPY_TO]
    array = np.frombuffer(data, "<f4").reshape(2, 3)

    def scenario(link: Link) -> None:
        tensor = link.tensor(array)
        np.testing.assert_array_equal(tensor.numpy(), array)
        del tensor

    play("tensor-float32-2x3", scenario)


def test_returned_tensor(play: Play) -> None:
    (make,) = [e.request for e in exchanges("return-tensor")[1] if e.request.code == wire.CALL]
    count = make.parts[1][0][1]

    def scenario(link: Link) -> None:
        tensor = link.call("wire.make_tensor", count)
        np.testing.assert_array_equal(tensor.numpy(), np.arange(count, dtype="float32"))
        del tensor

    play("return-tensor", scenario)


def test_returned_function(play: Play) -> None:
    script = exchanges("return-function")[1]
    calls = [e.request for e in script if e.request.code == wire.CALL]
    left, right = (request.parts[1][0][1] for request in calls)

    def scenario(link: Link) -> None:
        add = link.call("rpc.test.add_to_lhs", left)
        assert add(right) == left + right

    play("return-function", scenario)


def test_exception(play: Play) -> None:
    def scenario(link: Link) -> None:
        with pytest.raises(link.client.RPCError, match="abc"):
            link.call("rpc.test.except", "abc")

    play("remote-exception", scenario)


def test_unknown_function(play: Play) -> None:
    (request,) = [e.request for e in exchanges("unknown-function")[1] if e.request.code == wire.FIND]

    def scenario(link: Link) -> None:
        with pytest.raises(AttributeError):
            link.fn(request.parts[0][1].decode())

    play("unknown-function", scenario)


def test_timeout_while_idle(play: Play) -> None:
    """The error waits in the socket before the call is made."""

    def scenario(link: Link) -> None:
        add = link.fn("rpc.test.addone")
        with pytest.raises(link.client.Timeout, match="session_timeout"):
            add(10)

    play("session-timeout-error", scenario, key="x1", session_timeout=1)


def test_timeout_during_call(play: Play) -> None:
    def scenario(link: Link) -> None:
        with pytest.raises(link.client.Timeout, match="session_timeout"):
            link.call("wire.sleep", 2.5)

    play("session-timeout-during-call", scenario, key="x1", session_timeout=1)


def test_key_mismatch(play: Play, fake_client: Client) -> None:
    with pytest.raises(RuntimeError) as caught:
        play("key-mismatch", lambda link: None, key="nope")
    if fake_client.name != "stock":
        assert type(caught.value).__name__ == "KeyMismatchError"


def test_key_text(fake: FakePeer, fake_client: Client) -> None:
    """The key as the server sees it, with the budget as the stock client writes it."""
    for budget, text in ((0, b"client:x1"), (30, b"client:x1 -timeout=30"), (2.5, b"client:x1 -timeout=2.5")):
        name = "connect-with-key" if budget == 0 else "connect-session-timeout"
        options = {"session_timeout": budget} if budget else {}
        with fake_client.connect(fake.play(name), "x1", **options):
            pass
        assert fake.report().key_text == text


def test_packet_size_limit(play: Play) -> None:
    """A server that limits packets to 128 bytes gets its copies in blocks."""
    blocks = [e.request for e in exchanges("tensor-chunked")[1] if e.request.code == wire.COPY_TO]
    data = b"".join(block.parts[2] for block in blocks)
    array = np.frombuffer(data, "uint8")
    assert len(array) == 300
    assert all(struct.unpack_from("<Q", block.data)[0] <= 128 for block in blocks)

    def scenario(link: Link) -> None:
        tensor = link.tensor(array)
        np.testing.assert_array_equal(tensor.numpy(), array)
        del tensor

    play("tensor-chunked", scenario)
