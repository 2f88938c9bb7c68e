# SPDX-License-Identifier: Apache-2.0
"""Whatever a client sends: it is told what was wrong where it can be, others do not notice, nothing is left behind."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import anyio.from_thread
import pytest

import rpcflow
from rpcflow.protocol.handshake import MAGIC

from .conftest import Host
from .functions import offer
from .support import (
    ALLOC,
    ALLOC_SCOPE,
    CALL,
    COPY_ACK,
    COPY_FROM,
    COPY_TO,
    EXCEPTION,
    FIND,
    FREE_DATA,
    INIT,
    RETURN,
    VERSION,
    Raw,
    Traces,
    call,
    connect,
    find,
    free,
    hello,
    init,
    integer,
    invoke,
    packet,
    pointer,
    tensor,
    text,
    until,
    values,
    view,
    works,
)

CPU = struct.pack("<iii", 6, 1, 0)
FLOAT = struct.pack("<iBBHi", 5, 2, 32, 1, 0)


@contextmanager
def others(server: rpcflow.Server, traces: Traces) -> Iterator[rpcflow.Server]:
    """Another session, which goes on meanwhile; afterwards the next one works, and all is as before."""
    with connect(server) as other:
        until(lambda: len(traces.processes()) == 3, "launcher, worker and the next worker")
        yield server
        assert call(other, "t.echo", 1) == 1
        works(server)
        until(lambda: server._connections == 1, "closing the bad client's connection")
        until(lambda: len(traces.processes()) == 3, "ending its processes")
        assert len(traces.files()) == 1
    works(server)


Shared = Callable[[], AbstractContextManager[rpcflow.Server]]


@pytest.fixture(scope="module", params=["trio", "asyncio"])
def server_and_traces(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[rpcflow.Server, Traces]]:
    """One server for all of them: what one bad client breaks, the next would find broken."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        traces = Traces(folder, patch)
        with anyio.from_thread.start_blocking_portal(request.param) as portal:
            made = rpcflow.Server(port=0, server_init_callback=offer(), max_sessions=2)
            with portal.wrap_async_context_manager(made) as server:
                yield server, traces
        assert traces.none()


@pytest.fixture
def shared(server_and_traces: tuple[rpcflow.Server, Traces]) -> Shared:
    return lambda: others(*server_and_traces)


# ---------------------------------------------------------------------------------------------- no handshake

STRANGERS: dict[str, bytes] = {
    "random bytes": random.Random(1).randbytes(4096),
    "zeros": bytes(4096),
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303"),
    "the tracker's magic": struct.pack("<ii", 0x2F271, 4) + b"ping",
    "a key of 2 GiB": struct.pack("<iI", MAGIC, 2 << 30),
    "a key of 2 GiB less one": struct.pack("<iI", MAGIC, (2 << 30) - 1),
    "a key of negative length": struct.pack("<ii", MAGIC, -5) + b"client:",
    "a key just too long": struct.pack("<ii", MAGIC, 4097) + b"client:" + b"x" * 4090,
    "a key that is not UTF-8": struct.pack("<ii", MAGIC, 9) + b"client:\xff\xfe",
}


@pytest.mark.parametrize("said", STRANGERS)
def test_no_handshake(shared: Shared, said: str) -> None:
    with shared() as server, Raw(server, STRANGERS[said]) as raw:
        assert raw.ended()


@pytest.mark.parametrize("said", [b"", b"nonsense", b" ", b"client", b"x1", b"server:", b"client:other"])
def test_key_texts(shared: Shared, said: bytes) -> None:
    """A handshake by its form, and no key of ours: answered by a refusal."""
    with shared() as server, Raw(server, struct.pack("<ii", MAGIC, len(said)) + said) as raw:
        assert raw.answer() == MAGIC + 2
        assert raw.ended()


# ---------------------------------------------------------------------------------------------- the session ends

FATAL: dict[str, bytes] = {
    "random bytes": random.Random(2).randbytes(4096),
    "a packet of 2^63 bytes": struct.pack("<Qi", 1 << 63, CALL),
    "a packet of 2^64 - 1 bytes": struct.pack("<Qi", (1 << 64) - 1, CALL),
    "a call of 2^40 bytes": struct.pack("<Qi", 1 << 40, CALL) + bytes(64),
    "a look-up of 2 MiB": struct.pack("<Qi", 2 << 20, FIND),
    "a packet too short for its code": struct.pack("<Q", 3) + b"abc",
    "an unknown code": packet(22),
    "a negative code": packet(-1),
    "code 0": packet(0),
    "an answer": packet(RETURN, values(integer(1))),
    "an exception": packet(EXCEPTION, values(text("no"))),
    "a CopyAck": packet(COPY_ACK),
    "text that is not UTF-8": packet(FIND, values(struct.pack("<iQ", 8, 2) + b"\xff\xfe")),
    "text that ends behind its packet": packet(FIND, values(struct.pack("<iQ", 8, 100) + b"short")),
    "text of 2^63 bytes": packet(FIND, values(struct.pack("<iQ", 8, 1 << 63))),
    "trailing bytes": packet(FIND, values(text("t.echo")) + b"more"),
    "values without end": packet(FIND, struct.pack("<i", 1 << 30)),
    "a negative number of values": packet(FIND, struct.pack("<i", -1)),
    "an unknown type": packet(FIND, values(struct.pack("<i", 42))),
    "a negative extent": packet(CALL, struct.pack("<Q", 1) + values(tensor(1, (-1,)))),
    "a shape that overflows": packet(CALL, struct.pack("<Q", 1) + values(tensor(1, (1 << 62, 1 << 62)))),
    "a negative number of dimensions": packet(
        COPY_FROM, struct.pack("<QiiiBBHQQ", 1, 1, 0, -1, 2, 32, 1, 0, 0) + struct.pack("<Q", 0)
    ),
    "a thousand dimensions": packet(COPY_FROM, view(1, (1,) * 1000) + struct.pack("<Q", 4)),
    "a copy that is short of its tensor": packet(COPY_TO, b"short"),
    "a copy that says more than it has": packet(COPY_TO, view(1, (4,)) + struct.pack("<Q", 16) + b"few"),
    "a copy that has more than it says": packet(COPY_TO, view(1, (4,)) + struct.pack("<Q", 1) + b"many"),
}


@pytest.mark.parametrize("said", FATAL)
def test_not_the_protocol(shared: Shared, said: str) -> None:
    with shared() as server, Raw(server).open() as raw:
        raw.send(FATAL[said])
        assert raw.error().startswith("ProtocolError: ")
        assert raw.ended()


@pytest.mark.parametrize("said", ["random bytes", "a packet of 2^63 bytes", "an unknown code"])
def test_not_the_protocol_before_init(shared: Shared, said: str) -> None:
    with shared() as server, Raw(server, hello() + FATAL[said]) as raw:
        assert raw.answer() == MAGIC
        assert raw.error().startswith("ProtocolError: ")
        assert raw.ended()


# ---------------------------------------------------------------------------------------------- the request fails


def allocate(raw: Raw, nbytes: int = 64) -> int:
    raw.send(packet(ALLOC, values(CPU, integer(nbytes), integer(64), FLOAT)))
    return raw.handle()


def function(raw: Raw, name: str = "t.echo") -> int:
    raw.send(find(name))
    return raw.handle()


def freed_function(raw: Raw) -> int:
    handle = function(raw)
    raw.send(free(handle))
    assert raw.packet() is not None
    return handle


def freed_memory(raw: Raw) -> int:
    data = allocate(raw)
    raw.send(packet(FREE_DATA, values(CPU, pointer(data))))
    assert raw.packet() is not None
    return data


def copy_to(data: int, shape: tuple[int, ...], payload: bytes, offset: int = 0) -> bytes:
    return packet(COPY_TO, view(data, shape, offset) + struct.pack("<Q", len(payload)) + payload)


def copy_from(data: int, shape: tuple[int, ...], nbytes: int, offset: int = 0) -> bytes:
    return packet(COPY_FROM, view(data, shape, offset) + struct.pack("<Q", nbytes))


REFUSED: dict[str, Callable[[Raw], bytes]] = {
    "a forged handle": lambda raw: invoke(0x1234567, integer(1)),
    "an address": lambda raw: invoke(0x7FFF_DEAD_BEEF),
    "handle 0": lambda raw: invoke(0),
    "the largest handle": lambda raw: invoke((1 << 64) - 1),
    "a forged handle freed": lambda raw: free(0xDEAD),
    "forged memory freed": lambda raw: packet(FREE_DATA, values(CPU, pointer(0xDEAD))),
    "a forged tensor": lambda raw: invoke(function(raw), tensor(0xDEAD, (4,))),
    "a function freed twice": lambda raw: free(freed_function(raw)),
    "a function called after it was freed": lambda raw: invoke(freed_function(raw), integer(1)),
    "memory freed twice": lambda raw: packet(FREE_DATA, values(CPU, pointer(freed_memory(raw)))),
    "memory read after it was freed": lambda raw: copy_from(freed_memory(raw), (4,), 16),
    "memory written after it was freed": lambda raw: copy_to(freed_memory(raw), (4,), bytes(16)),
    "memory called": lambda raw: invoke(allocate(raw)),
    "memory freed as a function": lambda raw: free(allocate(raw)),
    "a function freed as memory": lambda raw: packet(FREE_DATA, values(CPU, pointer(function(raw)))),
    "a function as a tensor": lambda raw: invoke(function(raw), tensor(function(raw), (4,))),
    "a function as a module": lambda raw: invoke(function(raw), struct.pack("<iQ", 73, function(raw))),
    "a copy longer than the tensor": lambda raw: copy_to(allocate(raw), (4,), bytes(20)),
    "a copy longer than the memory": lambda raw: copy_to(allocate(raw), (1000,), bytes(4000)),
    "more read than the tensor": lambda raw: copy_from(allocate(raw), (4,), 20),
    "more read than the memory": lambda raw: copy_from(allocate(raw), (1000,), 4000),
    "an offset past the end": lambda raw: copy_from(allocate(raw), (4,), 16, 60),
    "an offset far past the end": lambda raw: copy_to(allocate(raw), (4,), bytes(16), (1 << 64) - 8),
    "an argument past the end": lambda raw: invoke(function(raw), tensor(allocate(raw), (1000,))),
    "a copy to another device": lambda raw: packet(
        COPY_FROM,
        struct.pack("<QiiiBBHqQQ", allocate(raw), 2, 0, 1, 2, 32, 1, 4, 0, 16),
    ),
    "a huge allocation": lambda raw: packet(ALLOC, values(CPU, integer(1 << 60), integer(64), FLOAT)),
    "a negative allocation": lambda raw: packet(ALLOC, values(CPU, integer(-1), integer(64), FLOAT)),
    "an odd alignment": lambda raw: packet(ALLOC, values(CPU, integer(64), integer(1 << 50), FLOAT)),
    "a huge tensor": lambda raw: packet(ALLOC_SCOPE, values(tensor(0, (1 << 57,)), struct.pack("<i", 0))),
    "too few arguments": lambda raw: packet(ALLOC, values(CPU)),
    "arguments of the wrong kind": lambda raw: packet(FIND, values(integer(1))),
    "a device that is not there": lambda raw: packet(
        ALLOC, values(struct.pack("<iii", 6, 99, 0), integer(64), integer(64), FLOAT)
    ),
    "a second init": lambda raw: init(),
}


@pytest.mark.parametrize("said", REFUSED)
def test_refused_request(shared: Shared, said: str) -> None:
    """It fails in words, and the session goes on."""
    with shared() as server, Raw(server).open() as raw:
        raw.send(REFUSED[said](raw))
        assert raw.error()
        raw.send(invoke(function(raw), integer(7)))
        got = raw.packet()
        assert got is not None
        assert got == (RETURN, values(integer(1), integer(7)))


BEFORE_INIT: dict[str, bytes] = {
    "a look-up": find("t.echo"),
    "a call": invoke(1, integer(1)),
    "a free": free(1),
    "a copy": copy_to(1, (4,), bytes(16)),
    "an allocation": packet(ALLOC, values(CPU, integer(64), integer(64), FLOAT)),
    "another version": packet(INIT, struct.pack("<Q", 5) + b"9.9.9" + values()),
    "another constructor": packet(INIT, struct.pack("<Q", 5) + VERSION + values(text("rpc.NoSuch"))),
}


@pytest.mark.parametrize("said", BEFORE_INIT)
def test_before_init(shared: Shared, said: str) -> None:
    with shared() as server, Raw(server, hello() + BEFORE_INIT[said]) as raw:
        assert raw.answer() == MAGIC
        assert raw.error()
        raw.send(init())
        got = raw.packet()
        assert got is not None
        assert got[0] == RETURN


# ---------------------------------------------------------------------------------------------- half-way

HALVES: dict[str, bytes] = {
    "a length": find("t.echo")[:4],
    "a head": find("t.echo")[:12],
    "a look-up": find("t.echo")[:-1],
    "a large call": struct.pack("<QiQii", 3 << 20, CALL, 1, 1, 8) + struct.pack("<Q", 2 << 20) + bytes(1000),
    "a copy": struct.pack("<Qi", 4 + 48 + 1000, COPY_TO) + view(1, (250,)) + struct.pack("<Q", 1000) + bytes(10),
}


def test_silent_in_the_middle(host: Host, traces: Traces) -> None:
    with host(timeout=0.4, max_sessions=2) as made, others(made, traces) as server:
        for said in HALVES.values():
            with Raw(server).open() as raw:
                raw.send(said)
                words = raw.error()
                assert words.startswith("ProtocolError: ")
                assert "0.4 s" in words
                assert raw.ended()


@pytest.mark.parametrize("said", HALVES)
def test_gone_in_the_middle(shared: Shared, said: str) -> None:
    with shared() as server:
        with Raw(server).open() as raw:
            raw.send(HALVES[said])
        with Raw(server).open() as raw:
            raw.send(HALVES[said])
            raw.socket.setsockopt(1, 13, struct.pack("ii", 1, 0))  # closing resets the line


def test_half_a_copy_into_memory_that_is_there(host: Host, traces: Traces) -> None:
    with host(timeout=0.4, max_sessions=2) as made, others(made, traces) as server, Raw(server).open() as raw:
        raw.send(copy_to(allocate(raw), (16,), bytes(64))[:-10])
        assert "0.4 s" in raw.error()
        assert raw.ended()


def test_half_a_handshake(host: Host, traces: Traces) -> None:
    with host(timeout=0.4, max_sessions=2) as made, others(made, traces) as server, ExitStack() as stack:
        raws = [stack.enter_context(Raw(server, hello()[:size])) for size in range(len(hello()))]
        assert all(raw.ended() for raw in raws)


def test_many_kinds_at_once(shared: Shared) -> None:
    """Strangers in a heap, some seeded random: the server neither stalls nor dies."""
    source = random.Random(3)
    with shared() as server:
        raws = []
        for _ in range(60):
            said = source.choice(
                [*STRANGERS.values(), hello() + source.randbytes(200), hello()[: source.randrange(15)]]
            )
            raws.append(Raw(server, said))
        for raw in raws:
            raw.socket.close()
