"""A scripted server that plays the recorded answers of stock servers to live clients.

It checks what the client sends against what the stock client sent: each request has to be one of the recording's,
in its order. Requests that a client may add or leave out (frees, synchronisation, lookups beyond the recording) are
answered as a stock server would. The stock client is the control.
"""

from __future__ import annotations

import gc
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from . import wire
from .conftest import need_tvm
from .peers import Client, Link
from .wire import Packet, Stream, load_recording, read_packet

pytestmark = pytest.mark.interop


@dataclass
class Exchange:
    request: Packet
    #: the answer, and what the server sent after it without being asked
    answers: list[bytes] = field(default_factory=list)


def exchanges(name: str) -> tuple[bytes, list[Exchange]]:
    """The server's handshake, and each request with its answers."""
    streams = {"c2s": Stream(False), "s2c": Stream(True)}
    welcome = b""
    played: list[Exchange] = []
    unanswered: list[Exchange] = []
    for direction, data in load_recording(name).events:
        fresh = not streams[direction].started
        for number, whole in enumerate(streams[direction].feed(data)):
            if fresh and number == 0:
                welcome = whole if direction == "s2c" else welcome
            elif direction == "c2s":
                exchange = Exchange(read_packet(whole))
                if exchange.request.code != wire.SHUTDOWN:
                    played.append(exchange)
                    unanswered.append(exchange)
            else:
                target = unanswered.pop(0) if unanswered else played[-1]
                target.answers.append(whole)
    return welcome, played


class FakeServer:
    """Plays one recording to one client."""

    def __init__(self, name: str) -> None:
        self.welcome, self.script = exchanges(name)
        self.strange: list[str] = []
        self.key_text = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._listener.settimeout(10)
        peer, _ = self._listener.accept()
        peer.settimeout(10)
        stream = Stream(False)
        with peer:
            while data := self._receive(peer):
                fresh = not stream.started
                for number, whole in enumerate(stream.feed(data)):
                    if fresh and number == 0:
                        self.key_text = whole[8:]
                        peer.sendall(self.welcome)
                        if len(self.welcome) == 4:  # refused
                            return
                    elif not self._answer(peer, read_packet(whole)):
                        return

    @staticmethod
    def _receive(peer: socket.socket) -> bytes:
        try:
            return peer.recv(1 << 16)
        except OSError:
            return b""

    def _answer(self, peer: socket.socket, request: Packet) -> bool:
        if request.code == wire.SHUTDOWN:
            return False
        for number, exchange in enumerate(self.script):
            if (exchange.request.code, exchange.request.parts) == (request.code, request.parts):
                del self.script[: number + 1]
                peer.sendall(b"".join(exchange.answers))
                # A budget that has passed: the server closes.
                return not any(b"RPCSessionTimeoutError" in answer for answer in exchange.answers)
        if request.code in (wire.FREE, wire.FREE_DATA, wire.SYNC):
            peer.sendall(wire.RETURN_NONE)
        elif request.code == wire.FIND:
            peer.sendall(wire.packet(wire.RETURN, wire.sequence(wire.pointer(0))))
            name = request.parts[0][1].decode()
            if not name.startswith(("rpcflow.", "tvm.rpc.server.GetCRTMaxPacketSize")):
                self.strange.append(f"lookup of {name}")
        else:
            self.strange.append(f"code {request.code} {str(request.parts)[:200]}")
            text = wire.string("not in the recording")
            peer.sendall(wire.packet(wire.EXCEPTION, wire.sequence(text)))
        return True

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()
        assert self.strange == []
        needed = [e.request for e in self.script if e.request.code not in (wire.FREE, wire.FREE_DATA, wire.SYNC)]
        left = [request for request in needed if not _is_size_lookup(request)]
        assert left == [], "the client did not send what the stock client sent"


def _is_size_lookup(request: Packet) -> bool:
    return request.code == wire.FIND and request.parts[0][1] == b"tvm.rpc.server.GetCRTMaxPacketSize"


@pytest.fixture(params=["stock", "sync", "trio", "asyncio"])
def fake_client(request: pytest.FixtureRequest, clients: Callable[[str], Client]) -> Client:
    if request.param == "stock":
        need_tvm()
    return clients(request.param)


@pytest.fixture
def play(fake_client: Client) -> Iterator[Callable[..., None]]:
    def run(name: str, scenario: Callable[[Link], Any], key: str = "", **options: Any) -> None:
        server = FakeServer(name)
        with fake_client.connect(server.port, key, **options) as session:
            link = Link(fake_client, session, "fake")
            scenario(link)
            del link, session
            gc.collect()
        server.close()

    yield run


Play = Callable[..., None]

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

    _play_to_the_end(play, "session-timeout-error", scenario)


def test_timeout_during_call(play: Play) -> None:
    def scenario(link: Link) -> None:
        with pytest.raises(link.client.Timeout, match="session_timeout"):
            link.call("wire.sleep", 2.5)

    _play_to_the_end(play, "session-timeout-during-call", scenario)


def _play_to_the_end(play: Play, name: str, scenario: Callable[[Link], Any]) -> None:
    play(name, scenario, key="x1", session_timeout=1)


def test_key_mismatch(play: Play, fake_client: Client) -> None:
    with pytest.raises(RuntimeError) as caught:
        play("key-mismatch", lambda link: None, key="nope")
    if fake_client.name != "stock":
        assert type(caught.value).__name__ == "KeyMismatchError"


def test_key_text(fake_client: Client) -> None:
    """The key as the server sees it, with the budget as the stock client writes it."""
    for budget, text in ((0, b"client:x1"), (30, b"client:x1 -timeout=30"), (2.5, b"client:x1 -timeout=2.5")):
        name = "connect-with-key" if budget == 0 else "connect-session-timeout"
        server = FakeServer(name)
        with fake_client.connect(server.port, "x1", **({"session_timeout": budget} if budget else {})):
            pass
        server._thread.join(10)
        assert server.key_text == text


def test_packet_size_limit(play: Play) -> None:
    """A server that limits packets to 128 bytes gets its copies in blocks."""
    (blocks,) = ([e.request for e in exchanges("tensor-chunked")[1] if e.request.code == wire.COPY_TO],)
    data = b"".join(block.parts[2] for block in blocks)
    array = np.frombuffer(data, "uint8")
    assert len(array) == 300
    assert all(struct.unpack_from("<Q", block.data)[0] <= 128 for block in blocks)

    def scenario(link: Link) -> None:
        tensor = link.tensor(array)
        np.testing.assert_array_equal(tensor.numpy(), array)
        del tensor

    play("tensor-chunked", scenario)
