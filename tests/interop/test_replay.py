"""The client's side of every recorded session, played again to a live server; its answers compared.

Handles and pointers are renamed: a handle is what the server put into an answer, and the client repeats it.
What else may differ is in the tables below, each with its reason; nothing else may. The same is played to a
live stock server, which shows that the player itself is right.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from . import wire
from .peers import HOST, Servers
from .wire import EXCEPTION, RETURN, SHUTDOWN, Packet, Stream, load_recording, read_packet

pytestmark = pytest.mark.interop

#: What these errors must say. All others only have to be errors: their words are the server's own.
MUST_SAY = {
    "file-ops": r"dat\.bin",
    "download-linked-module": r"x\.txt",
    "load-module-missing": r"nofile\.so",
    "multi-hop": r"abc$",  # each hop may put a line before the message
    "multi-hop-second-link": r"^abc$",
    "raw-pipelined-calls": r"^boom$",
    "raw-version-mismatch": r"0\.7\.0",
    "raw-version-mismatch-then-init": r"0\.7\.0",
    "remote-exception": r"^abc$",
    "remote-exception-cpp": r"^msg$",
    "remote-exception-then-call": r"^abc$",
    "session-constructor-arg-kinds": r"rpc\.NonExistingConstructor",
    "session-constructor-missing": r"rpc\.NonExistingConstructor",
    "session-constructor-raises": r"boom",
    "session-timeout-during-call": r"^RPCSessionTimeoutError: .*session_timeout",
    "session-timeout-error": r"^RPCSessionTimeoutError: .*session_timeout",
    "tensor-bad-scope": r"texture",
    "time-evaluator-missing": r"no\.such",
}

#: Functions that a stock server lacks (it answers handle 0) and another may have.
EXTRA_FUNCTIONS = {
    "tvm.rpc.server.listdir": "the stock Python server does not have it; the stock C++ server has",
    "tvm.rpc.server.GetCRTMaxPacketSize": "with it a stock client saves a round trip for each copy",
}

#: Recordings in which a value depends on the machine, and how far it must agree.
MEASURED = {
    "device-attrs": "the memory of the machine",
    "time-evaluator-global": "measured times, 8 bytes each",
    "time-evaluator-module": "measured times, 8 bytes each",
    "tensor-chunked": "a server's own packet limit may come before the one that the recording registered",
}

#: Recordings whose end kills the stock server's worker. Others answer the call with an error, or end.
FATAL = {
    "raw-call-before-init": "CallFunc before InitServer",
    "raw-trailing-bytes": "bytes after the last argument",
    "raw-unknown-code": "a packet of no known code",
    "raw-unknown-type-index": "a value of no known kind",
}

#: A str with a NUL is cut by stock servers; keeping the whole is better, and stock clients read it right.
KEEPS_NUL = "return-str-nul"
#: Stock answers a tensor view, which its own client rejects; a tensor with a handle is what it wants.
MAY_OWN = "echo-tensor"
#: wire.type_name names Python's classes, and stock has subclasses of str and bytes that compare equal.
CLASS_NAMES = {"Bytes:": "bytes:", "String:": "str:", "bytearray:bytearray(b'ba')": "bytes:b'ba'"}
TYPE_NAMES = ("argument-kinds", "raw-string-argument-forms")

#: Servers that register more than the others.
PACKET_LIMITS = {"tensor-chunked": 128, "tensor-max-packet-size": 2**63 - 1}


class Handles:
    """Recorded numbers and the live ones that stand for them. A number may be given out twice."""

    def __init__(self) -> None:
        self._live: dict[int, list[int]] = {}

    def learn(self, recorded: int, live: int) -> None:
        self._live.setdefault(recorded, []).append(live)

    def knows(self, recorded: int) -> bool:
        return bool(self._live.get(recorded))

    def rename(self, packet: Packet) -> bytes:
        data = bytearray(packet.data)
        for offset in packet.slots:
            recorded = struct.unpack_from("<Q", data, offset)[0]
            if recorded and self.knows(recorded):
                struct.pack_into("<Q", data, offset, self._live[recorded][-1])
        if packet.code in (wire.FREE, wire.FREE_DATA) and packet.slots:
            recorded = struct.unpack_from("<Q", packet.data, packet.slots[-1])[0]
            if self.knows(recorded):
                self._live[recorded].pop()
        return bytes(data)


class Line:
    """The connection to the live server."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=10)

    def close(self) -> None:
        self.socket.close()

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise EOFError(f"closed after {len(data)} of {size} bytes")
            data += piece
        return data

    def packet(self) -> Packet:
        while True:
            head = self.read(8)
            if size := struct.unpack("<Q", head)[0]:
                return read_packet(head + self.read(size))

    def handshake(self) -> bytes:
        code = self.read(4)
        if struct.unpack("<i", code)[0] != wire.MAGIC:
            return code
        length = self.read(4)
        return code + length + self.read(struct.unpack("<i", length)[0])


class Replay:
    def __init__(self, name: str, port: int, other_port: Callable[[], int]) -> None:
        self.recording = load_recording(name)
        self.name = name
        self.other_port = other_port
        self.line = Line(port)
        self.handles = Handles()
        self.requests: list[Packet] = []

    def run(self) -> None:
        try:
            self._run()
        finally:
            self.line.close()  # else the server would go on with this session, and serve nobody else

    def _run(self) -> None:
        streams = {"c2s": Stream(False), "s2c": Stream(True)}
        for direction, data in self.recording.events:
            fresh = not streams[direction].started
            for number, whole in enumerate(streams[direction].feed(data)):
                if direction == "c2s":
                    self.send(whole, fresh and number == 0)
                elif fresh and number == 0:
                    assert self.line.handshake() == whole
                else:
                    self.expect(read_packet(whole))
        if self.recording.first_close == "s2c":
            self.expect_end()

    def send(self, whole: bytes, is_handshake: bool) -> None:
        data = whole
        if not is_handshake:
            packet = read_packet(whole)
            data = self.handles.rename(packet)
            if len(whole) > 8 and packet.code != SHUTDOWN:
                self.requests.append(packet)
            if packet.code == wire.INIT and b"rpc.Connect" in whole:
                port = packet.parts[1][2][1]
                data = data.replace(wire.integer(port), wire.integer(self.other_port()))
        try:
            self.line.socket.sendall(data)
        except OSError:
            assert self.recording.first_close == "s2c", "the server closed too early"

    def expect_end(self) -> None:
        """The server closes. (A stock worker may still answer a call that comes before its end.)"""
        try:
            while self.line.socket.recv(1 << 16):
                pass
        except ConnectionError:
            pass

    def expect(self, recorded: Packet) -> None:
        live = self.line.packet()
        assert not live.is_malformed, f"malformed answer {live.data[:100]!r}"
        request = self.requests.pop(0) if self.requests else None
        if recorded.code == SHUTDOWN:
            assert self.name in FATAL
            assert live.code in (SHUTDOWN, EXCEPTION)
            return
        assert live.code == recorded.code, f"{live.code} {live.parts} for {recorded.code} {recorded.parts}"
        if recorded.code == EXCEPTION:
            self.expect_error(live)
        elif recorded.code == RETURN:
            self.expect_values(request, recorded.parts, live.parts)
        else:
            assert live.parts == recorded.parts

    def expect_error(self, live: Packet) -> None:
        assert [value[0] for value in live.parts] == ["str"]
        text = live.parts[0][1].decode()
        assert text
        assert re.search(MUST_SAY.get(self.name, "."), text, re.DOTALL), text

    def expect_values(self, request: Packet | None, recorded: list[Any], live: list[Any]) -> None:
        is_call = request is not None and request.code == wire.CALL
        if is_call:
            live, recorded = _leading(live), _leading(recorded)
        if self.name == MAY_OWN and is_call and recorded[0] == ("int", 7) and live[0] == ("int", 70):
            assert live[2][0] == "handle"
            recorded, live = recorded[1:], live[1:2]
        assert len(live) == len(recorded), f"{live} for {recorded}"
        for old, new in zip(recorded, live, strict=True):
            assert new[0] == old[0], f"{live} for {recorded}"
            self.expect_value(request, old, new)

    def expect_value(self, request: Packet | None, old: tuple[Any, ...], new: tuple[Any, ...]) -> None:
        kind = old[0]
        if kind == "handle":
            self.expect_handle(request, old[1], new[1])
        elif kind == "tensor":
            if not self.handles.knows(old[1]):  # else the pointer that its allocation gave stays
                self.expect_handle(request, old[1], new[1])
            assert new[2:] == old[2:]
        elif self.name == KEEPS_NUL and kind == "str":
            assert new[1] in (b"ab", b"ab\0cd")
        elif self.name in TYPE_NAMES and kind == "str":
            assert _plain_names(new[1]) == _plain_names(old[1])
        elif self.name in MEASURED and kind == "bytes":
            assert len(new[1]) == len(old[1])
        elif self.name in MEASURED and kind == "int" and old[1] > 100:
            assert new[1] > 100
        else:
            assert new == old

    def expect_handle(self, request: Packet | None, old: int, new: int) -> None:
        if old == 0 and new != 0:
            assert request is not None
            assert request.code == wire.FIND
            assert request.parts[0][1].decode() in EXTRA_FUNCTIONS
            return
        assert (new == 0) == (old == 0)
        if request is not None and ("handle", old) in _plain_pointers(request) and not self.handles.knows(old):
            assert new == old  # a number of the client's own, echoed
            return
        self.handles.learn(old, new)


def _plain_pointers(request: Packet) -> list[Any]:
    return list(request.parts[1]) if request.code == wire.CALL and request.parts else []


def _leading(values: list[Any]) -> list[Any]:
    """The answer, the forms of its leading type index made one: small and large, any dynamic object."""
    index = values[0][1]
    index = {11: 65, 12: 66}.get(index, 128 if index >= 128 else index)
    return [("int", index), *values[1:]]


def _plain_names(text: bytes) -> str:
    shown = text.decode()
    for stock, plain in CLASS_NAMES.items():
        shown = shown.replace(stock, plain)
    return shown


def _replay(name: str, kind: str, servers: Servers) -> None:
    recording = load_recording(name)
    limit = PACKET_LIMITS.get(name)
    port = servers.port(kind, recording.key, f"replay-{limit}", max_packet=limit)
    Replay(name, port, lambda: servers.port(kind, "x1", "replay-None")).run()


@pytest.mark.parametrize("name", wire.session_recordings())
def test_rpcflow_answers_as_recorded(name: str, servers: Servers) -> None:
    _replay(name, "rpcflow", servers)


@pytest.mark.parametrize("name", [name for name in wire.session_recordings() if name not in FATAL])
def test_stock_answers_as_recorded(name: str, servers: Servers) -> None:
    """The control. What kills the stock listener is left out."""
    from .conftest import need_tvm

    need_tvm()
    _replay(name, "stock", servers)


def test_tables_name_recordings() -> None:
    names = set(wire.session_recordings())
    assert len(names) >= 100
    assert {*MUST_SAY, *MEASURED, *FATAL, *PACKET_LIMITS, *TYPE_NAMES, KEEPS_NUL, MAY_OWN} <= names
