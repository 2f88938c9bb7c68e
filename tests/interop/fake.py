"""A scripted server that plays the recorded answers of a stock server to one client after another.

It runs in a process of its own: the stock client frees handles from destructors, which wait for the answer
while they hold the interpreter's lock, so that a server in the same process would never get to answer.
"""

from __future__ import annotations

import multiprocessing
import socket
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from . import wire
from .wire import Packet, Stream, load_recording, read_packet

SIZE_LOOKUP = "tvm.rpc.server.GetCRTMaxPacketSize"
#: what a client may do at another time, or not at all
OPTIONAL = (wire.FREE, wire.FREE_DATA, wire.SYNC)


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


@dataclass
class Report:
    """What happened while a recording was played."""

    key_text: bytes
    #: requests that the stock client did not make
    strange: list[str]
    #: requests of the stock client that did not come
    left: list[str]


class FakeServer:
    """Plays one recording to one client."""

    def __init__(self, name: str) -> None:
        self.welcome, self.script = exchanges(name)
        self.strange: list[str] = []
        self.key_text = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

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
            if (exchange.request.code, exchange.request.parts) != (request.code, request.parts):
                continue
            skipped = [] if _is_optional(request) else self.script[:number]
            self.strange += [f"before {_show(e.request)}" for e in skipped if not _is_optional(e.request)]
            del self.script[number]
            for late in skipped:
                if late.request.code not in OPTIONAL:  # a free may still come
                    self.script.remove(late)
            peer.sendall(b"".join(exchange.answers))
            if any(b"RPCSessionTimeoutError" in answer for answer in exchange.answers):
                self.script.clear()  # the budget has passed: the server closes
                return False
            return True
        if request.code in OPTIONAL:
            peer.sendall(wire.RETURN_NONE)
        elif request.code == wire.FIND:
            peer.sendall(wire.packet(wire.RETURN, wire.sequence(wire.pointer(0))))
            name = request.parts[0][1].decode()
            if not name.startswith(("rpcflow.", SIZE_LOOKUP)):
                self.strange.append(f"lookup of {name}")
        else:
            self.strange.append(_show(request))
            text = wire.string("not in the recording")
            peer.sendall(wire.packet(wire.EXCEPTION, wire.sequence(text)))
        return True

    def serve(self) -> Report:
        with self._listener:
            try:
                self._serve()
            except OSError as error:
                self.strange.append(repr(error))
        left = [_show(e.request) for e in self.script if not _is_optional(e.request)]
        return Report(self.key_text, self.strange, left)


def _is_optional(request: Packet) -> bool:
    return request.code in OPTIONAL or (request.code == wire.FIND and request.parts[0][1].decode() == SIZE_LOOKUP)


def _show(request: Packet) -> str:
    return f"code {request.code} {str(request.parts)[:200]}"


def _main(orders: Connection) -> None:
    while (name := orders.recv()) is not None:
        server = FakeServer(name)
        orders.send(server.port)
        orders.send(server.serve())


class FakePeer:
    """The process that plays; `play` a recording, connect to the port, then ask for the `report`."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def play(self, name: str) -> int:
        while self._orders.poll(0):  # the report of a test that failed
            self._orders.recv()
        self._orders.send(name)
        port = self._orders.recv()
        while isinstance(port, Report):
            port = self._orders.recv()
        return int(port)

    def report(self) -> Report:
        assert self._orders.poll(15), "the client did not leave"
        report = self._orders.recv()
        assert isinstance(report, Report)
        return report

    def close(self) -> None:
        self._orders.send(None)
        self._process.join(15)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self._orders.close()
