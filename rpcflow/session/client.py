# SPDX-License-Identifier: Apache-2.0
"""The client's end of a session: requests in, bytes out, answers in.

How a driver uses it: make requests with the methods below, send what ``take_outgoing()`` holds, give what
arrives to ``machine.reader`` and call ``process()``, until the request it waits for is ``done``. Requests may
be made ahead of answers; answers come in order. Handles that the program has let go of are queued with
``drop()``, from any thread and from finalizers, and travel with the next request.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from operator import is_
from typing import Any, Final, NoReturn

from rpcflow.errors import (
    ConnectionLostError,
    ProtocolError,
    RemoteError,
    RPCError,
    RPCSessionTimeoutError,
    SessionCrashedError,
)
from rpcflow.protocol.limits import DEFAULT_LIMITS, Limits
from rpcflow.protocol.packets import (
    VERSION,
    Code,
    CopyAck,
    CopyFromRemote,
    CopyToRemote,
    ExceptionPacket,
    InitServer,
    Return,
    Shutdown,
    SysCall,
    encode,
    encode_call,
    encode_free,
    free_data,
    get_global_func,
)
from rpcflow.protocol.reader import Bulk, Direction, PacketReader, PayloadEnd
from rpcflow.protocol.shortcut import MISS, result_in
from rpcflow.protocol.sinks import DiscardSink, Sink
from rpcflow.protocol.values import (
    Device,
    Part,
    Pointer,
    TensorView,
    Value,
)

from .results import RemoteHandle, RemoteTensor, read_none, read_one, read_pointer, read_result, swallow
from .table import Automaton, IllegalEventError, Row
from .wire_errors import FEATURE, from_text

MAX_FREES: Final = 256
"""Frees that travel ahead of one request. Their answers (24 bytes each) must fit into the socket buffers,
because nobody reads while the request is being sent."""


class State(Row):
    """Where a session stands, seen from the client."""

    NEW = "new"
    OPENING = "opening"
    OPEN = "open"
    RECEIVING = "receiving"
    CLOSED = "closed"


class Event(Row):
    """What can happen to it: requests of the program, and packets from the server."""

    INIT = "InitServer"
    REQUEST = "request"
    ANSWER = "answer"
    REFUSAL = "InitServer refused"
    COPY_ACK = "CopyAck"
    PAYLOAD_END = "payload end"
    FAULT = "fault"
    LOST = "connection lost"
    CLOSE = "close"


TABLE: Final[dict[tuple[State, Event], State]] = {
    (State.NEW, Event.INIT): State.OPENING,
    (State.OPENING, Event.REQUEST): State.OPENING,
    (State.OPENING, Event.ANSWER): State.OPEN,
    (State.OPENING, Event.REFUSAL): State.CLOSED,
    (State.OPEN, Event.REQUEST): State.OPEN,
    (State.OPEN, Event.ANSWER): State.OPEN,
    (State.OPEN, Event.COPY_ACK): State.RECEIVING,
    (State.RECEIVING, Event.REQUEST): State.RECEIVING,
    (State.RECEIVING, Event.PAYLOAD_END): State.OPEN,
    **{(state, event): State.CLOSED for state in State for event in (Event.FAULT, Event.LOST, Event.CLOSE)},
}


class Request:
    """One request and, once ``done``, its ``value`` or ``error``.

    ``label`` says what it is, for messages. An abandoned request is answered all the same; what its answer
    gives is given back at once.
    """

    __slots__ = ("abandoned", "done", "error", "give_back", "label", "read", "sink", "value")

    def __init__(
        self,
        label: str,
        read: "Callable[[list[Value]], Any] | None",
        give_back: "Callable[[Any], None] | None" = None,
    ) -> None:
        self.label = label
        self.read = read
        self.give_back = give_back
        self.sink: Sink | None = None
        self.done = False
        self.abandoned = False
        self.value: Any = None
        self.error: RPCError | None = None

    def result(self) -> Any:
        """The value, or the error raised.

        Raises:
            RPCError: the request failed.
        """
        if self.error is not None:
            raise self.error
        return self.value


class ClientMachine:
    """One session at the client.

    Args:
        limits: how large things may be.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.reader = PacketReader(Direction.TO_CLIENT, limits)
        self.structured = False
        self.lost: RPCError | None = None
        self._automaton: Automaton[State, Event] = Automaton(TABLE, State.NEW)
        self._outgoing: list[Part] = []
        self._pending: deque[Request] = deque()
        self._dropped: deque[bytes | tuple[Device, int]] = deque()
        self._last_call: tuple[int, list[Value], bytes] | None = None

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._automaton.state

    @property
    def pending(self) -> int:
        """Requests whose answers are still to come."""
        return len(self._pending)

    # ---- requests

    def init(self, constructor: list[Value] | None = None, *, ask: bool = True) -> Request:
        """Begin the session, and ask in the same flight whether the server is one of ours.

        ``ask`` is False for whoever passes the session on: what is spoken in it is then for its client to ask.
        """
        parts = encode(InitServer(VERSION, constructor or []))
        self._follow(Event.INIT)
        self._outgoing += parts
        request = Request("InitServer", read_none)
        self._pending.append(request)
        if ask:
            self._pending.append(Request(FEATURE, self._read_feature))
            self._outgoing += encode(get_global_func(FEATURE))
        return request

    def call(self, handle: int, args: list[Value], label: str = "") -> Request:
        """Call a function; the value is plain, a RemoteHandle or a RemoteTensor."""
        parts = encode_call(handle, args)
        self._follow(Event.REQUEST)
        if self._dropped:
            self._send_frees()
        self._outgoing += parts
        request = Request(label, read_result, self._give_back_result)
        self._pending.append(request)
        return request

    def lone_call(self, handle: int, args: list[Value]) -> bytes | None:
        """The packet of a call that the driver may send by itself, because nothing else is under way; None where it
        must use :meth:`call`. Its answer goes to :meth:`lone_answer`; whatever else happens, to :meth:`resume`."""
        if (
            self._pending
            or self._dropped
            or self._outgoing
            or self._automaton.state is not State.OPEN
            or self.lost is not None
            or not self.reader.between_packets  # it has said something that nobody asked, or the beginning of it
        ):
            return None
        last = self._last_call
        if last is not None and last[0] == handle and len(last[1]) == len(args) and all(map(is_, args, last[1])):
            return last[2]  # no value can change, so the same objects make the same packet
        parts = encode_call(handle, args)
        first = parts[0]
        if len(parts) > 1 or type(first) is not bytes:
            return None
        if len(args) > 2:
            self._last_call = (handle, args, first)
        return first

    def lone_answer(self, room: memoryview, nbytes: int) -> Any:
        """The result of a lone call, whose answer was put into the reader's fresh buffer, ``room``; MISS if that is
        not simply a small result: then :meth:`resume`, and give the bytes to the reader."""
        value = result_in(room, nbytes)
        if value is not MISS:
            self.reader.consumed(nbytes)
        return value

    def resume(self, label: str) -> Request:
        """A lone call becomes a request like any other, and has been sent."""
        request = Request(label, read_result, self._give_back_result)
        if self._automaton.state is State.CLOSED:
            request.error = self.lost
            request.done = True
        else:
            self._pending.append(request)
        return request

    def lookup(self, name: str) -> Request:
        """Find a global function; the value is its handle, 0 for none."""
        return self._request(get_global_func(name), name, read_pointer, self.drop)

    def syscall(self, packet: SysCall) -> Request:
        """Any system call; the value is the one in the answer."""
        give_back = None
        if packet.code == Code.DEV_CREATE_STREAM:
            give_back = partial(self._drop_stream, packet.args[0])
        return self._request(packet, packet.code.name, read_one, give_back)

    def alloc(self, packet: SysCall) -> Request:
        """An allocation; the value is the number of the memory."""
        first: Any = packet.args[0]
        device = first.device if type(first) is TensorView else first
        return self._request(packet, packet.code.name, read_pointer, partial(self.drop_data, device))

    def copy_to(self, view: TensorView, data: memoryview) -> Request:
        """Copy ``data`` (bytes) to where ``view`` points; they are sent from where they lie."""
        request = self._request(CopyToRemote(view, data.nbytes), "CopyToRemote", read_none)
        if data.nbytes:
            self._outgoing.append(data)
        return request

    def copy_from(self, view: TensorView, nbytes: int, sink: Sink) -> Request:
        """Copy ``nbytes`` from where ``view`` points into ``sink``."""
        request = self._request(CopyFromRemote(view, nbytes), "CopyFromRemote", None)
        request.sink = sink
        return request

    def shutdown(self) -> None:
        """Say good-bye; nothing is answered."""
        if self._automaton.state in (State.OPEN, State.OPENING):
            self._outgoing += encode(Shutdown())

    def drop(self, number: int) -> None:
        """Give a handle back with the next request. Safe in finalizers and other threads."""
        if self._automaton.state is not State.CLOSED and number:
            self._dropped.append(encode_free(number))

    def drop_data(self, device: Device, number: int) -> None:
        """As :meth:`drop`, for memory that an allocation gave."""
        if self._automaton.state is not State.CLOSED and number:
            self._dropped.append((device, number))

    @property
    def dropped(self) -> int:
        """Handles that wait to be given back."""
        return len(self._dropped)

    def give_back(self) -> Request | None:
        """Send as many frees as travel at once, and no other request; the value of the last one's request.

        For drivers: while more than :data:`MAX_FREES` wait, send and await these before the next request.
        """
        if not self._dropped:
            return None
        self._follow(Event.REQUEST)
        return self._send_frees()

    def take_outgoing(self) -> list[Part]:
        """What is to be sent, in order; the caller has it from now on."""
        parts = self._outgoing
        self._outgoing = []
        return parts

    # ---- answers

    def process(self) -> None:
        """Work through what the reader holds.

        Raises:
            ProtocolError, ConnectionLostError: the session is over. All pending requests have failed with the
                same error, or with the server's last words if it left any; those answered before are good.
        """
        reader = self.reader
        while self._automaton.state is not State.CLOSED:
            try:
                event = reader.next_event()
                if event is None:
                    return
                self._answer(event)
                if reader.between_packets:
                    return
            except IllegalEventError as error:
                fault = ProtocolError(f"the server sent an answer that nobody waits for: {error}")
                self._end(Event.FAULT, fault)
                raise fault from None
            except ProtocolError as error:
                self._end(Event.FAULT, error)
                raise

    def _answer(self, event: Any) -> None:
        kind = type(event)
        pending = self._pending
        if kind is Return:
            if not pending or pending[0].read is None:
                raise IllegalEventError(self._automaton.state, Event.ANSWER)
            self._automaton.on(Event.ANSWER)
            request = pending[0]
            assert request.read is not None
            try:
                request.value = request.read(event.values)
            except RemoteError as unusable:
                request.error = unusable
            pending.popleft()
            request.done = True
            if request.abandoned:
                self._forget(request)
        elif kind is ExceptionPacket:
            error = from_text(event.message)
            if not pending:
                # Unasked words come before the line is closed: they answer whatever is asked next.
                self.lost = error
                return
            if isinstance(error, _LAST_WORDS):
                # Nothing more will be answered. This one may have been a free, whose answer nobody reads.
                self.lost = error
            request = pending.popleft()
            request.error = error
            request.done = True
            if self._automaton.state is State.OPENING:
                self._end(Event.REFUSAL, error)
        elif kind is CopyAck:
            sink = pending[0].sink if pending else None
            if sink is None:
                raise IllegalEventError(self._automaton.state, Event.COPY_ACK)
            self._automaton.on(Event.COPY_ACK)
            expected = pending[0].value
            if expected is not None and event.nbytes != expected:
                raise ProtocolError(f"the server sent {event.nbytes} bytes where {expected} were asked for")
            self.reader.receive_payload(sink)
        elif kind is PayloadEnd:
            self._automaton.on(Event.PAYLOAD_END)
            request = pending.popleft()
            request.value = event.value
            request.done = True
        elif kind is Bulk:  # into memory that grows
            if not pending or pending[0].read is None:
                raise IllegalEventError(self._automaton.state, Event.ANSWER)
        else:
            assert kind is Shutdown
            if pending:
                self.connection_lost("the server ended the session")
            # Nobody waits: whatever is asked next fails. What came before it in the same bytes stays good.
            self._end(Event.LOST, ConnectionLostError("the server ended the session"))

    def connection_lost(self, reason: str = "the connection was lost") -> NoReturn:
        """The line is gone.

        Raises:
            RPCError: the server's last words if it left any, else ConnectionLostError.
        """
        error = self.lost or ConnectionLostError(reason)
        self._end(Event.LOST, error)
        raise error

    def close(self, reason: str = "the session is closed") -> None:
        """We are done; nothing more is asked or answered."""
        self._end(Event.CLOSE, ConnectionLostError(reason))

    def abandon(self, request: Request) -> None:
        """Nobody waits for ``request`` any more: its answer is dropped, and the handles in it given back."""
        request.abandoned = True
        if request.done:
            self._forget(request)
        elif request.sink is not None:
            # The memory is its owner's again: what is still to come of the data is thrown away.
            request.sink = DiscardSink()
            if self._automaton.state is State.RECEIVING and self._pending[0] is request:
                self.reader.receive_payload(request.sink)

    # ---- inside

    def _follow(self, event: Event) -> None:
        if self._automaton.state is State.CLOSED:
            raise self.lost or ConnectionLostError("the session is closed")
        if self.lost is not None:
            error = self.lost
            self._end(Event.LOST, error)
            raise error
        self._automaton.on(event)

    def _request(
        self,
        packet: Any,
        label: str,
        read: Callable[[list[Value]], Any] | None,
        give_back: Callable[[Any], None] | None = None,
    ) -> Request:
        parts = encode(packet)
        self._follow(Event.REQUEST)
        if self._dropped:
            self._send_frees()
        self._outgoing += parts
        request = Request(label, read, give_back)
        if read is None:
            request.value = packet.nbytes
        self._pending.append(request)
        return request

    def _send_frees(self) -> Request:
        out = bytearray()
        count = min(len(self._dropped), MAX_FREES)
        request: Request
        for _ in range(count):
            dropped = self._dropped.popleft()
            if isinstance(dropped, tuple):
                for part in encode(free_data(*dropped)):
                    assert not isinstance(part, tuple)
                    out += part
            else:
                out += dropped
            request = Request("free", swallow)
            self._pending.append(request)
        self._outgoing.append(out)
        return request

    def _forget(self, request: Request) -> None:
        value, request.value = request.value, None
        if value is not None and request.give_back is not None:
            request.give_back(value)

    def _drop_stream(self, device: Any, stream: Any) -> None:
        if self._automaton.state is not State.CLOSED and type(stream) is Pointer and stream:
            for part in encode(SysCall(Code.DEV_FREE_STREAM, [device, stream])):
                assert isinstance(part, bytes)
                self._dropped.append(part)

    def _give_back_result(self, value: Any) -> None:
        if isinstance(value, RemoteHandle | RemoteTensor):
            self.drop(value.number)

    def _end(self, event: Event, error: RPCError) -> None:
        self.lost = self.lost or error
        if self._automaton.state is not State.CLOSED:
            self._automaton.on(event)
        self.reader.close()
        self._outgoing.clear()
        self._dropped.clear()
        while self._pending:
            request = self._pending.popleft()
            request.error = self.lost
            request.done = True

    def _read_feature(self, values: list[Value]) -> None:
        self.structured = bool(read_pointer(values))


_LAST_WORDS: Final = (RPCSessionTimeoutError, SessionCrashedError, ProtocolError)
