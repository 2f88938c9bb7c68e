# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed. Each target takes bytes and returns; anything that it raises is a finding.

The first byte or two of an input choose limits and pieces; the rest is the input proper.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rpcflow.errors import ProtocolError, RPCError
from rpcflow.protocol.credentials import CREDENTIALS_NBYTES, TOKEN_NBYTES, CredentialsReader, encode_credentials
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.handshake import HelloReader, KeyText, encode_hello
from rpcflow.protocol.limits import Limits
from rpcflow.protocol.link import DeviceLink, HostLink, Sizes
from rpcflow.protocol.link import FrameReader as LinkReader
from rpcflow.protocol.packets import CopyAck, CopyToRemote, SysCall, alloc_with_scope, encode
from rpcflow.protocol.reader import Bulk, Direction, PacketReader, PayloadEnd
from rpcflow.protocol.sinks import ViewSink
from rpcflow.protocol.tracker import FrameReader, encode_frame
from rpcflow.protocol.values import TensorView, Writer, decode_values, encode_values
from rpcflow.session import client as c
from rpcflow.session import server as s
from rpcflow.session.client import ClientMachine
from rpcflow.session.wire_errors import from_text, to_text
from rpcflow.transports.logs import printable
from tests.session.tiny import CPU, TinyServer, joined
from tests.strategies import same

from . import corpus

SMALL = Limits(packet_nbytes=64, bulk_nbytes=8, value_nbytes=1024, ndim=4, key_nbytes=64, tracker_frame_nbytes=256)
_U8 = DataType(1, 8)


class Target(NamedTuple):
    """One thing to fuzz; ``run`` has the invariant for its docstring."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    prefix_nbytes: int


TARGETS: dict[str, Target] = {}


def target(
    name: str, seeds: Callable[[], Iterable[bytes]], prefix_nbytes: int = 0
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Enter a function into the list. ``prefix_nbytes``: how many bytes before the input proper choose how."""

    def enter(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[name] = Target(name, run, seeds, prefix_nbytes)
        return run

    return enter


def corpus_of(name: str) -> Iterator[bytes]:
    """The first inputs of a target."""
    yield b""
    for data in TARGETS[name].seeds():
        yield bytes(TARGETS[name].prefix_nbytes) + data


# ---- driving readers


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for pos in range(0, len(data), size):
        yield data[pos : pos + size]


def _fill(reader: PacketReader, data: bytes, after: Callable[[], None]) -> None:
    """Put bytes into a reader's buffers, and call ``after`` behind each piece."""
    pos = 0
    while pos < len(data):
        room = reader.get_buffer()
        assert len(room) > 0
        step = min(len(room), len(data) - pos)
        room[:step] = data[pos : pos + step]
        reader.received(step)
        pos += step
        after()


def _events(direction: Direction, limits: Limits, pieces: Iterable[bytes]) -> tuple[list[Any], str, PacketReader]:
    """All events with the payloads that small copies carry, and the words of the fault if there was one."""
    reader, events = PacketReader(direction, limits), []

    def take() -> None:
        while (event := reader.next_event()) is not None:
            if isinstance(event, CopyToRemote | CopyAck) and event.nbytes <= 1 << 16:
                reader.receive_payload(ViewSink(memoryview(bytearray(event.nbytes))))
            if isinstance(event, PayloadEnd) and event.value is not None:
                assert isinstance(event.value, memoryview)
                event = PayloadEnd(bytes(event.value))
            elif isinstance(event, Bulk):
                event = event._replace(values=list(event.values))
            events.append(event)
        assert len(reader._view) <= max(1 << 16, 2 * reader.total)  # memory is taken for bytes, not for claims

    try:
        for piece in pieces:
            _fill(reader, piece, take)
    except ProtocolError as error:
        return events, str(error), reader
    return events, "", reader


def _packets(data: bytes, direction: Direction) -> None:
    if len(data) < 2:
        return
    limits, size, data = (SMALL if data[0] & 1 else Limits()), 32 - data[1] % 32, data[2:]
    whole, fault, reader = _events(direction, limits, [data])
    cut, cut_fault, _ = _events(direction, limits, _pieces(data, size))
    assert same(whole, cut)
    assert fault == cut_fault
    if fault or limits is SMALL:
        return
    again = bytearray()
    for event in whole:
        if isinstance(event, PayloadEnd):
            if event.value is None:
                return
            assert isinstance(event.value, bytes)
            again += event.value
        elif isinstance(event, Bulk):
            return  # long values come out without their form
        else:
            again += joined(encode(event))
    if reader.between_packets:
        assert same(_events(direction, limits, [bytes(again)])[0], whole)


@target("packets-to-server", lambda: corpus.packets(to_server=True), 2)
def packets_to_server(data: bytes) -> None:
    """Bytes become the same events whatever the pieces they come in; events written and read again are the same;
    the buffer grows with what has come and not with what is claimed. Proper refusal: ProtocolError."""
    _packets(data, Direction.TO_SERVER)


@target("packets-to-client", lambda: corpus.packets(to_server=False), 2)
def packets_to_client(data: bytes) -> None:
    """As packets-to-server, the other way."""
    _packets(data, Direction.TO_CLIENT)


@target("values", corpus.sequences)
def values(data: bytes) -> None:
    """A sequence read, written and read again is the same, and is written to the same bytes but for the padding of
    dtypes. Proper refusal: ProtocolError."""
    try:
        read = decode_values(memoryview(data))
    except ProtocolError:
        return
    writer = Writer()
    encode_values(writer, read)
    again = joined(writer.finish())
    assert len(again) == len(data) == writer.nbytes
    assert same(decode_values(memoryview(again)), read)
    assert again == data or any(type(value) in (DataType, float) for value in read)


@target("handshake", corpus.handshakes, 1)
def handshake(data: bytes) -> None:
    """A reader never wants more than the handshake has, and gives the text that was sent. Proper refusal:
    ProtocolError, after at most 8 bytes or at the end of the key."""
    if not data:
        return
    limits = SMALL if data[0] & 1 else Limits()
    reader = HelloReader.for_server(limits) if data[0] & 2 else HelloReader.for_client(limits)
    size, pos = data[0] // 4 % 8 + 1, 1
    try:
        while reader.wanted and pos < len(data):
            step = min(reader.wanted, size, len(data) - pos)
            reader.feed(data[pos : pos + step])
            pos += step
            assert reader.wanted <= limits.key_nbytes
    except ProtocolError:
        assert pos <= 9 + limits.key_nbytes
        return
    assert (reader.wanted == 0) == (reader.hello is not None)
    if reader.hello is not None and reader.hello.text is not None:
        assert encode_hello(reader.hello.text, reader.hello.code) == data[1:pos]


@target("credentials", corpus.credentials, 1)
def credentials(data: bytes) -> None:
    """A reader never wants more than credentials have, gives the token that was sent and holds nothing afterwards;
    what it lets pass is written to the same bytes. Proper refusal: ProtocolError."""
    if not data:
        return
    reader, size, pos = CredentialsReader(), data[0] + 1, 1
    try:
        while not reader.done and pos < len(data):
            step = min(reader.wanted, size, len(data) - pos)
            reader.feed(data[pos : pos + step])
            pos += step
            assert 0 < reader.wanted <= TOKEN_NBYTES or reader.done
    except ProtocolError:
        assert pos <= 1 + CREDENTIALS_NBYTES + TOKEN_NBYTES
        assert not reader.done
        assert not reader.token
        return
    assert reader.done == bool(reader.token)
    if reader.done:
        assert not reader.wanted
        assert not reader._buffer
        assert CredentialsReader.begins(data[1:])
        assert encode_credentials(reader.token) == data[1:pos]


@target("key-text", corpus.key_texts)
def key_text(data: bytes) -> None:
    """A key text read, written and read again is the same. Proper refusal: ProtocolError."""
    try:
        key = KeyText.parse(data.decode("utf-8", "replace"))
    except ProtocolError:
        return
    assert KeyText.parse(str(key)) == key
    assert key.timeout is None or 0 < key.timeout < float("inf")
    assert not key.key.split() or key.key.split() == [key.key]


@target("tracker-frames", corpus.frames, 1)
def tracker_frames(data: bytes) -> None:
    """Bytes become the same messages whatever the pieces they come in; messages written and read again are the same.
    Proper refusal: ProtocolError, and from then on for ever."""
    if not data:
        return
    limits, magic, size, data = (SMALL if data[0] & 1 else Limits()), bool(data[0] & 2), data[0] // 4 + 1, data[1:]
    outcomes = []
    for pieces in ([data], _pieces(data, size)):
        reader, messages = FrameReader(magic, limits), []
        fault = ""
        try:
            for piece in pieces:
                messages += reader.feed(piece)
        except ProtocolError as error:
            fault = str(error)
            assert not reader._buffer
        outcomes.append((messages, fault))
    (whole, fault), (cut, cut_fault) = outcomes
    assert fault == cut_fault
    if not fault:
        assert json.dumps(whole) == json.dumps(cut)  # NaN is not equal to itself
        for message in whole:
            frame = encode_frame(message)  # ASCII, so it may be longer than it came
            assert json.dumps(FrameReader(magic=False).feed(frame)) == json.dumps([message])


@target("server-machine", lambda: corpus.packets(to_server=True), 2)
def server_machine(data: bytes) -> None:
    """Whatever a client sends, a server answers each whole request, or says once what was wrong and closes. What it
    sends is the protocol. Nothing is raised out of it."""
    if len(data) < 2:
        return
    server = TinyServer(Limits(packet_nbytes=512, bulk_nbytes=64) if data[0] & 1 else Limits())
    out = bytearray()
    for piece in _pieces(data[2:], 256 - data[1]):
        out += server.feed(piece)
        state = server.machine.state
        assert state not in (s.State.STARTING, s.State.WORKING)
        if state is s.State.CLOSED:
            assert len(server.machine.handles) == 0 or isinstance(server.actions[-1], s.Closed)
    _, fault, reader = _events(Direction.TO_CLIENT, Limits(), [bytes(out)])
    assert not fault
    assert reader.between_packets
    server.machine.close()
    assert len(server.machine.handles) == 0


@target("client-machine", lambda: corpus.packets(to_server=False), 2)
def client_machine(data: bytes) -> None:
    """Whatever a server sends, requests are answered in order, or the session ends and every one of them has
    failed. What the client sends is the protocol. Proper refusals: ProtocolError, ConnectionLostError, and the
    server's last words."""
    if len(data) < 2:
        return
    client = ClientMachine(Limits(packet_nbytes=512, bulk_nbytes=64) if data[0] & 1 else Limits())
    view = TensorView(1, CPU, _U8, (4,))
    requests = [client.init()]
    makers: list[Callable[[], Any]] = [
        lambda: client.call(1, [1, "a"]),
        lambda: client.copy_from(view, 4, ViewSink(memoryview(bytearray(4)))),
        lambda: client.lookup("f"),
        lambda: client.alloc(alloc_with_scope(CPU, (4,), _U8, None)),
        lambda: client.copy_to(view, memoryview(b"abcd")),
        lambda: client.syscall(SysCall(s.Code.DEV_GET_ATTR, [CPU, 5])),
        lambda: client.abandon(requests[-1]),
        lambda: client.drop(7),
    ]
    try:
        for step, piece in enumerate(_pieces(data[2:], 256 - data[1])):
            made = makers[(step + data[0]) % len(makers)]() if step < 64 else None
            if made is not None:
                requests.append(made)
            if client.state is not c.State.CLOSED:
                _fill(client.reader, piece, client.process)
        client.connection_lost()
    except RPCError:
        assert client.lost is not None or client.state is not c.State.CLOSED
    sent = joined(client.take_outgoing())
    if client.state is c.State.CLOSED:
        assert all(request.done for request in requests)
        assert client.pending == client.dropped == 0
    _, fault, _ = _events(Direction.TO_SERVER, Limits(), [sent])
    assert not fault


@target("link", corpus.link_lines, 2)
def link(data: bytes) -> None:
    """Whatever comes off a line, in whatever pieces, it becomes the same frames, and a link of either end goes on: it
    says nothing but frames, holds no more than its room, and has something to do at a time that is not long past.
    No refusal is proper."""
    if len(data) < 2:
        return
    payload, size, data = 32 + data[0] % 64, 1 + data[1] % 64, data[2:]
    frames = list(LinkReader(payload).feed(data))
    cut = LinkReader(payload)
    assert [frame for piece in _pieces(data, size) for frame in cut.feed(piece)] == frames
    sizes = Sizes(payload=payload, room=3, window=3)
    for end in (HostLink(lambda: 0x1234, 0.0, sizes=sizes), DeviceLink(sizes)):
        for step, piece in enumerate(_pieces(data, size)):
            now = step * 0.05
            end.receive(piece, now)
            end.tick(now)
            end.send(memoryview(bytes(100)))
            end.flush()
            if step % 3 == 0:
                end.read_into(memoryview(bytearray(64)))
            said = list(LinkReader(1024).feed(b"~" + end.take_outgoing(now)))
            assert None not in said
            assert all(frame.credit <= 64 for frame in said if frame)
            assert len(end._receiver._frames) <= 3
            assert len(end._sender._frames) <= 3
            due = end.deadline()
            assert due is None or due >= now - 0.06


@target("wire-errors", corpus.error_texts)
def wire_errors(data: bytes) -> None:
    """Any text becomes an RPCError that can be shown and passed on, in either form, in a packet within the limit.
    No refusal is proper."""
    error = from_text(data.decode("utf-8", "replace"))
    assert isinstance(error, RPCError)
    assert isinstance(str(error), str)
    for structured in (False, True):
        text = to_text(error, structured)
        assert len(text.encode()) < 1 << 20
        again = from_text(text)
        assert not structured or type(again) is type(error)


@target("log-texts", lambda: [*corpus.error_texts(), b"\x1b[2J\n\r\xe2\x80\xae\xed\xa0\x80"], 1)
def log_texts(data: bytes) -> None:
    """Any text, halves of surrogate pairs too, becomes one that prints on one line and is no longer than it may be.
    No refusal is proper."""
    if not data:
        return
    text = data[1:].decode("utf-8", "surrogateescape")
    shown = printable(text, data[0])
    assert len(shown) <= data[0]
    assert shown.isprintable()
    shown.encode()


@target("dtype-names", lambda: [b"float32x4", b"float8_e4m3b11fnuz", b"bool", b"handle", b"bfloat16", b"int4x2"])
def dtype_names(data: bytes) -> None:
    """A name becomes a dtype whose name is read as the same dtype. Proper refusal: ValueError."""
    try:
        made = DataType.parse(data.decode("utf-8", "replace"))
    except ValueError:
        return
    assert DataType.parse(str(made)) == made
    writer = Writer()
    encode_values(writer, [made])
    assert decode_values(memoryview(joined(writer.finish()))) == [made]
    assert struct.calcsize("<iBBHi") + 4 == writer.nbytes
