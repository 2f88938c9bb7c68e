# SPDX-License-Identifier: Apache-2.0
"""Two ends of TLS joined in memory: whatever pieces the bytes come in, they come out as they went in."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.errors import AuthenticationError, ConnectionLostError, ProtocolError
from rpcflow.protocol.values import FilePayload
from rpcflow.transports.tls_stream import BATCH_NBYTES, RECORD_NBYTES, TlsStream
from tests.certificates import write_pem

Ends = tuple[TlsStream, TlsStream]


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pem(tmp_path_factory.mktemp("tls") / "key.pem")


def server_context(pem: Path, **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.set_alpn_protocols(["rpcflow"])
    for name, value in options.items():
        setattr(context, name, value)
    return context


def client_context(**options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["rpcflow"])
    for name, value in options.items():
        setattr(context, name, value)
    return context


def joined(pem: Path, tickets: int = 2) -> Ends:
    """Two ends whose handshake is done; what the server says behind it is on its way still."""
    near = TlsStream(client_context(), "localhost", "there")
    far = TlsStream(server_context(pem, num_tickets=tickets), None, "here", accepts=True)
    done = [False, False]
    while not all(done):
        done[0] = done[0] or near.handshake()
        pass_on(near, far)
        done[1] = done[1] or far.handshake()
        if not done[0]:
            pass_on(far, near)
    return near, far


def pass_on(source: TlsStream, target: TlsStream) -> None:
    if data := source.outgoing():
        target.feed(memoryview(data))


def sent(stream: TlsStream, parts: list[Any]) -> bytes:
    return b"".join(data for data, _ in stream.encrypt(parts))


def pieces(data: bytes, sizes: list[int]) -> Iterator[memoryview]:
    """The data in pieces of these sizes, again and again."""
    position = number = 0
    while position < len(data):
        step = sizes[number % len(sizes)]
        yield memoryview(data)[position : position + step]
        position += step
        number += 1


def taken(stream: TlsStream, room: int) -> tuple[bytes, bool]:
    """All that can be read by buffers of this size, and whether that was the end."""
    buffer = memoryview(bytearray(room))
    got = bytearray()
    while count := stream.read_into(buffer):
        got += buffer[:count]
    return bytes(got), count == 0


@given(
    messages=st.lists(st.lists(st.integers(0, 40_000), max_size=4), max_size=4),
    sizes=st.lists(st.integers(1, 70_000), min_size=1, max_size=5),
    room=st.integers(1, 300_000),
    tickets=st.integers(0, 3),
    half_closed=st.booleans(),
)
def test_whatever_the_pieces(
    pem: Path, messages: list[list[int]], sizes: list[int], room: int, tickets: int, half_closed: bool
) -> None:
    near, far = joined(pem, tickets)
    if half_closed:
        near.end()
        far.feed(memoryview(near.outgoing()))
    on_line = bytearray(far.outgoing())  # tickets, before any data
    expected = bytearray()
    for number, message in enumerate(messages):
        parts = [bytes([number + 1]) * size for size in message]
        expected += b"".join(parts)
        on_line += sent(far, parts)
    far.end()
    on_line += far.outgoing()
    got = bytearray()
    ended = False
    for piece in pieces(bytes(on_line), sizes):
        near.feed(piece)
        data, ended = taken(near, max(room, len(expected) // 50))
        got += data
    assert got == expected
    assert ended
    assert near.read_into(memoryview(bytearray(1))) == 0


@given(cut=st.integers(0, 5000), room=st.integers(1, 5000))
def test_cut_off_anywhere(pem: Path, cut: int, room: int) -> None:
    """What came whole is given; the rest is a lost line, never an end."""
    near, far = joined(pem)
    on_line = far.outgoing() + sent(far, [b"a" * 900]) + sent(far, [b"b" * 900])
    near.feed(memoryview(on_line[: min(cut, len(on_line))]))
    near.feed(memoryview(b""))
    got = bytearray()
    buffer = memoryview(bytearray(room))
    for _ in range(3):
        with pytest.raises(ConnectionLostError, match="goodbye"):
            while count := near.read_into(buffer):
                got += buffer[:count]
    assert (b"a" * 900 + b"b" * 900).startswith(got)
    assert len(got) in (0, 900, 1800)


@given(at=st.integers(0, 1000), bit=st.integers(0, 7))
def test_changed_on_its_way(pem: Path, at: int, bit: int) -> None:
    near, far = joined(pem, 0)
    data = bytearray(sent(far, [b"a" * 500]))
    good = bytes(data)
    data[at % len(data)] ^= 1 << bit
    near.feed(memoryview(data))
    near.feed(memoryview(sent(far, [b"b" * 20_000])))  # as much as a length that was changed may wait for
    near.feed(memoryview(b""))
    with pytest.raises(ConnectionLostError):
        while count := near.read_into(memoryview(bytearray(1 << 15))):
            assert data == good or not count
    with pytest.raises(ConnectionLostError):
        near.read_into(memoryview(bytearray(1)))


@given(
    st.lists(
        st.tuples(st.sampled_from(["up", "down", "take up", "take down", "end up", "end down"]), st.integers(0, 3))
    ),
)
def test_both_ways_and_goodbyes_at_any_time(pem: Path, steps: list[tuple[str, int]]) -> None:
    """Whoever has said goodbye goes on receiving, what has come by then and what comes after that."""
    near, far = joined(pem)
    ends = {"up": (near, far), "down": (far, near)}
    sent_data: dict[str, bytearray] = {"up": bytearray(), "down": bytearray()}
    got: dict[str, bytearray] = {"up": bytearray(), "down": bytearray()}
    over = {"up": False, "down": False}

    def take(way: str, room: int) -> bool:
        data, ended = taken(ends[way][1], room)
        got[way] += data
        return ended

    pass_on(far, near)
    for number, (step, size) in enumerate(steps):
        way = step.split()[-1]
        source, target = ends[way]
        if step.startswith("take"):
            assert take(way, 1 + 7 * size) is over[way]
        elif step.startswith("end"):
            source.end()
            source.end()
            over[way] = True
            pass_on(source, target)
        elif over[way]:
            with pytest.raises(ConnectionLostError, match="goodbye"):
                source.encrypt_one(b"x")
            with pytest.raises(ConnectionLostError, match="goodbye"):
                sent(source, [b"x"])
        else:
            data = bytes([number % 251]) * (1, 20, 3000, 40_000)[size]
            sent_data[way] += data
            target.feed(memoryview(sent(source, [data])))
    for way in ("up", "down"):
        ends[way][0].end()
        pass_on(*ends[way])
        assert take(way, 1 << 16)
    assert got == sent_data


def test_a_little_is_one_record(pem: Path) -> None:
    near, far = joined(pem, 0)
    data = near.encrypt_one(b"hello")
    assert len(data) == 5 + 5 + 1 + 16
    parts = [b"head", b"", bytearray(b"body"), memoryview(b"tail")]
    ((together, last),) = near.encrypt(parts)
    assert last
    assert len(together) == 5 + 12 + 1 + 16
    far.feed(memoryview(data + together))
    assert taken(far, 100) == (b"helloheadbodytail", False)


def test_batches(pem: Path, tmp_path: Path) -> None:
    """Much goes in batches, and never all at once; the last one is known as that."""
    near, far = joined(pem, 0)
    data = os.urandom(3 * BATCH_NBYTES + 17)
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file:
        parts = [b"head", data, FilePayload(file.fileno(), len(data)), FilePayload(file.fileno(), 5, 3)]
        got = bytearray()
        lasts = []
        for batch, last in near.encrypt(parts):
            assert len(batch) <= 1.1 * BATCH_NBYTES
            lasts.append(last)
            far.feed(memoryview(batch))
            got += taken(far, RECORD_NBYTES)[0]
        assert got == b"head" + data + data + data[3:8]
        assert lasts == [False] * (len(lasts) - 1) + [True]
        assert len(lasts) <= 9
        assert list(near.encrypt([])) == list(near.encrypt([b"", b""])) == []
        with pytest.raises(ConnectionLostError, match="shorter"):
            list(near.encrypt([FilePayload(file.fileno(), len(data) + 1)]))


def test_what_came_with_an_alert_is_given_first(pem: Path) -> None:
    """And the alert is said each time it is asked for: OpenSSL itself calls it the end of the stream from then on."""
    near, far = joined(pem, 0)
    data = bytearray(sent(near, [b"x" * 10]))
    data[-1] ^= 1
    last_words = sent(far, [b"last words"])
    far.feed(memoryview(data))
    with pytest.raises(ConnectionLostError, match="bad record mac"):
        far.read_into(memoryview(bytearray(10)))
    near.feed(memoryview(last_words + far.outgoing()))
    buffer = memoryview(bytearray(100))
    assert near.read_into(buffer) == 10
    for _ in range(2):
        with pytest.raises(ConnectionLostError, match="alert bad record mac"):
            near.read_into(buffer)
    with pytest.raises(ConnectionLostError):
        near.encrypt_one(b"x")
    assert near.refusal() is None


def test_a_certificate_that_is_wanted(pem: Path) -> None:
    """In TLS 1.3 the client is through by then, and may have said something already."""
    context = server_context(pem, verify_mode=ssl.CERT_REQUIRED)
    context.load_verify_locations(pem)
    near, far = TlsStream(client_context(), "localhost", "there"), TlsStream(context, None, "here", accepts=True)
    assert not near.handshake()
    pass_on(near, far)
    assert not far.handshake()
    pass_on(far, near)
    assert near.handshake()
    pass_on(near, far)
    with pytest.raises(ConnectionLostError):
        far.handshake()
    near.encrypt_one(b"hello")
    pass_on(far, near)
    assert isinstance(near.refusal(), AuthenticationError)
    for _ in range(2):
        with pytest.raises(AuthenticationError, match="wants a client certificate"):
            near.read_into(memoryview(bytearray(1)))
    with pytest.raises(AuthenticationError, match="wants a client certificate"):
        near.encrypt_one(b"more")


@pytest.mark.parametrize(
    ("first", "kind", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError, "does not speak TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ProtocolError, "does not speak TLS"),
        (b"\x71\xf2\x0f\x00\x05\x00\x00\x00", ProtocolError, "does not speak TLS"),
        (b"\x15\x03\x03\x00\x02\x02\x46", AuthenticationError, "TLS 1.3"),
        (b"\x15\x03\x03\x00\x02\x02\x28", AuthenticationError, "TLS 1.3"),
        (b"\x15\x03\x03\x00\x02\x02\x78", ProtocolError, "not an rpcflow"),
        (b"\x15\x03\x03\x00\x02\x02\x50", ConnectionLostError, "internal error"),
        (b"", ConnectionLostError, "does it speak TLS"),
    ],
)
def test_others_that_answer(first: bytes, kind: type[Exception], words: str) -> None:
    near = TlsStream(client_context(), "localhost", "there")
    assert not near.handshake()
    near.feed(memoryview(first))
    near.feed(memoryview(b""))
    with pytest.raises(kind, match=words):
        near.handshake()


def test_an_older_tls(pem: Path) -> None:
    near = TlsStream(client_context(), "localhost", "there")
    far = TlsStream(server_context(pem, maximum_version=ssl.TLSVersion.TLSv1_2), None, "here", accepts=True)
    assert not near.handshake()
    pass_on(near, far)
    with pytest.raises(AuthenticationError, match=r"TLS 1\.3"):
        far.handshake()
    pass_on(far, near)
    with pytest.raises(AuthenticationError, match=r"TLS 1\.3"):
        near.handshake()
