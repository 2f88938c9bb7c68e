"""Requests sent ahead of the first answer, by a client made by hand, to live servers."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from . import wire
from .peers import KEY, Servers
from .test_replay import Line
from .wire import COPY_ACK, COPY_FROM, COPY_TO, EXCEPTION, RETURN

pytestmark = pytest.mark.interop


@pytest.fixture(params=["stock", "rpcflow"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "stock":
        from .conftest import need_tvm

        need_tvm()
    return name


@pytest.fixture
def line(kind: str, servers: Servers) -> Iterator[Line]:
    opened = Line(servers.port(kind))
    yield opened
    opened.close()


def found(line: Line) -> int:
    answer = line.packet()
    assert answer.code == RETURN
    ((form, handle),) = answer.parts
    assert form == "handle"
    assert handle
    return int(handle)


def begin(line: Line, *names: str) -> list[int]:
    """Handshake, InitServer and lookups in one send; the handles."""
    lookups = b"".join(wire.find(name) for name in names)
    line.socket.sendall(wire.handshake(KEY) + wire.init() + lookups)
    assert line.handshake() == wire.handshake(KEY, "server")
    assert line.packet().data == wire.RETURN_NONE
    return [found(line) for _ in names]


def end(line: Line) -> None:
    line.socket.sendall(wire.packet(wire.SHUTDOWN))
    line.socket.settimeout(10)
    assert line.socket.recv(100) == b""
    line.socket.close()


def test_from_the_start(line: Line) -> None:
    echo, nop = begin(line, "testing.echo", "testing.nop")
    line.socket.sendall(wire.call(echo, wire.integer(1)) + wire.call(nop))
    assert line.packet().parts == [("int", 1), ("int", 1)]
    assert line.packet().parts[0] == ("int", 0)
    end(line)


def test_two_thousand_calls_in_one_send(line: Line) -> None:
    (echo,) = begin(line, "testing.echo")
    line.socket.sendall(b"".join(wire.call(echo, wire.integer(n)) for n in range(2000)))
    for n in range(2000):
        assert line.packet().parts == [("int", 1), ("int", n)]
    end(line)


def test_everything_one_byte_at_a_time(line: Line) -> None:
    line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in wire.handshake(KEY) + wire.init() + wire.find("testing.echo"):
        line.socket.sendall(bytes([byte]))
    assert line.handshake() == wire.handshake(KEY, "server")
    assert line.packet().data == wire.RETURN_NONE
    for byte in wire.call(found(line), wire.string("xyz")):
        line.socket.sendall(bytes([byte]))
    assert line.packet().parts[1] == ("str", b"xyz")
    end(line)


def test_torn_at_random_places(line: Line) -> None:
    (echo,) = begin(line, "testing.echo")
    data = b"".join(wire.call(echo, wire.string("x" * n)) for n in range(300))
    dice = random.Random(1)
    while data:
        size = dice.randrange(1, 4000)
        line.socket.sendall(data[:size])
        data = data[size:]
    for n in range(300):
        assert line.packet().parts[1] == ("str", b"x" * n)
    end(line)


def test_exceptions_do_not_cancel_what_is_queued(line: Line) -> None:
    echo, fail = begin(line, "testing.echo", "rpc.test.except")
    line.socket.sendall(
        b"".join(
            wire.call(echo, wire.integer(n)) if n % 3 else wire.call(fail, wire.string(f"no {n}")) for n in range(60)
        )
    )
    for n in range(60):
        answer = line.packet()
        if n % 3:
            assert answer.parts == [("int", 1), ("int", n)]
        else:
            assert answer.code == EXCEPTION
            assert answer.parts[0][1] == f"no {n}".encode()
    end(line)


def test_zero_length_packets_between(line: Line) -> None:
    (echo,) = begin(line, "testing.echo")
    line.socket.sendall(b"".join(bytes(8) * (n % 3) + wire.call(echo, wire.integer(n)) for n in range(9)))
    for n in range(9):
        assert line.packet().parts == [("int", 1), ("int", n)]
    end(line)


def test_calls_with_lookups_and_frees_between(line: Line) -> None:
    (echo,) = begin(line, "testing.echo")
    line.socket.sendall(
        b"".join(wire.find("testing.nop") + wire.call(echo, wire.integer(n)) + wire.free(0) for n in range(50))
    )
    handles = []
    for n in range(50):
        handles.append(found(line))
        assert line.packet().parts == [("int", 1), ("int", n)]
        assert line.packet().data == wire.RETURN_NONE
    line.socket.sendall(b"".join(wire.free(handle) for handle in handles) + wire.call(echo, wire.integer(7)))
    for _ in handles:
        assert line.packet().data == wire.RETURN_NONE
    assert line.packet().parts == [("int", 1), ("int", 7)]
    end(line)


def test_much_in_flight_both_ways(line: Line) -> None:
    """50 MB of requests ahead of the reader: a writer beside it, as both directions fill their buffers."""
    (echo,) = begin(line, "testing.echo")
    text = "y" * 500_000
    requests = [wire.call(echo, wire.string(f"{n:03}{text}")) for n in range(100)]

    def write() -> None:
        for request in requests:
            line.socket.sendall(request)

    writer = threading.Thread(target=write)
    writer.start()
    for n in range(100):
        assert line.packet().parts[1] == ("str", f"{n:03}{text}".encode())
    writer.join()
    end(line)


def test_copies_in_flight(line: Line) -> None:
    """Writes and reads of parts of one tensor, all sent before the first answer is read."""
    begin(line)
    size, part = 64_000, 4_000
    head = struct.pack("<ii", 1, 0) + struct.pack("<iBBH", 1, 1, 8, 1) + struct.pack("<q", size)
    blank = struct.pack("<iQ", 7, 0) + head + struct.pack("<Q", 0)
    line.socket.sendall(wire.packet(17, wire.sequence(blank, struct.pack("<i", 0))))
    pointer = found(line)
    data = np.random.default_rng(1).bytes(size)

    def tensor(offset: int) -> bytes:
        return struct.pack("<Q", pointer) + head + struct.pack("<QQ", offset, part)

    offsets = range(0, size, part)
    writes = [wire.packet(COPY_TO, tensor(at) + data[at : at + part]) for at in offsets]
    reads = [wire.packet(COPY_FROM, tensor(at)) for at in offsets]
    sync = wire.packet(wire.SYNC, wire.sequence(struct.pack("<iii", 6, 1, 0), wire.pointer(0)))
    line.socket.sendall(b"".join(writes) + sync + b"".join(reads))
    for _ in range(len(writes) + 1):
        assert line.packet().data == wire.RETURN_NONE
    for at in offsets:
        answer = line.packet()
        assert answer.code == COPY_ACK
        assert answer.parts == data[at : at + part]
    device = struct.pack("<iii", 6, 1, 0)
    line.socket.sendall(wire.packet(wire.FREE_DATA, wire.sequence(device, wire.pointer(pointer))))
    assert line.packet().data == wire.RETURN_NONE
    end(line)


def test_closed_between_packets(kind: str, servers: Servers) -> None:
    """Ending without Shutdown is a clean end too; the next client is served."""
    for _ in range(3):
        line = Line(servers.port(kind))
        begin(line, "testing.echo")
        line.close()
    line = Line(servers.port(kind))
    begin(line, "testing.nop")
    end(line)
