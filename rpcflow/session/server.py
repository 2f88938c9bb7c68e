# SPDX-License-Identifier: Apache-2.0
"""The server's end of a session: packets in, actions to carry out, answers out.

How a driver uses it: give bytes to ``machine.reader``, take ``next_action()`` until it gives None, carry each
action out and report with the one call its docstring names, then send what ``take_outgoing()`` holds. An
action that fails is reported with ``reply_error()``, whatever it was. Handles in arguments have been looked
up and checked by then.
"""

from collections.abc import Callable
from typing import Any, Final

from rpcflow.errors import ProtocolError, RPCError
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.limits import DEFAULT_LIMITS, Limits
from rpcflow.protocol.packets import (
    VERSION,
    CallFunc,
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
    encode_return_call_none,
    encode_return_int,
    encode_return_none,
)
from rpcflow.protocol.reader import Bulk, Direction, PacketReader, PayloadEnd
from rpcflow.protocol.shortcut import call_in
from rpcflow.protocol.sinks import DiscardSink, Sink
from rpcflow.protocol.values import (
    I64_MAX,
    I64_MIN,
    SMALL_NBYTES,
    BulkBytes,
    Device,
    FilePayload,
    FunctionRef,
    ModuleRef,
    ObjectBytes,
    ObjectRef,
    ObjectText,
    Part,
    Pointer,
    TensorView,
    TypeIndex,
    Value,
)

from .actions import (
    Action,
    Alloc,
    Arguments,
    BulkArgument,
    Call,
    Closed,
    CopiedIn,
    CopyAmong,
    CopyIn,
    CopyOut,
    DeviceCall,
    FreeData,
    Given,
    GivenTensor,
    Lookup,
    Memory,
    Start,
)
from .handles import Entry, HandleError, HandleTable, Kind
from .table import Automaton, IllegalEventError, Row
from .wire_errors import FEATURE, describe, to_text


class State(Row):
    """Where a session stands, seen from the server."""

    AWAIT_INIT = "await init"
    STARTING = "starting"
    READY = "ready"
    WORKING = "working"
    RECEIVING = "receiving"
    FORWARDING = "forwarding"
    CLOSED = "closed"


class Event(Row):
    """What can happen to it: packets from the client, and reports of the driver."""

    INIT = "InitServer"
    STARTED = "session started"
    REFUSED = "session refused"
    FORWARDED = "session forwarded"
    REQUEST = "request"
    COPY_TO = "CopyToRemote"
    PAYLOAD_END = "payload end"
    REPLIED = "replied"
    SHUTDOWN = "Shutdown"
    FAULT = "fault"
    CLOSE = "close"


TABLE: Final[dict[tuple[State, Event], State]] = {
    (State.AWAIT_INIT, Event.INIT): State.STARTING,
    (State.STARTING, Event.STARTED): State.READY,
    (State.STARTING, Event.REFUSED): State.AWAIT_INIT,
    (State.STARTING, Event.FORWARDED): State.FORWARDING,
    (State.READY, Event.REQUEST): State.WORKING,
    (State.READY, Event.COPY_TO): State.RECEIVING,
    (State.RECEIVING, Event.PAYLOAD_END): State.WORKING,
    (State.WORKING, Event.REPLIED): State.READY,
    (State.AWAIT_INIT, Event.SHUTDOWN): State.CLOSED,
    (State.READY, Event.SHUTDOWN): State.CLOSED,
    **{(state, event): State.CLOSED for state in State for event in (Event.FAULT, Event.CLOSE)},
}


_SIGNATURES: Final[dict[int, tuple[tuple[type, ...], ...]]] = {
    Code.GET_GLOBAL_FUNC: ((str, ObjectText),),
    Code.FREE_HANDLE: ((Pointer,),),
    Code.DEV_SET_DEVICE: ((Device,),),
    Code.DEV_GET_ATTR: ((Device,), (int,)),
    Code.DEV_ALLOC_DATA: ((Device,), (int,), (int,), (DataType,)),
    Code.DEV_FREE_DATA: ((Device,), (Pointer,)),
    Code.DEV_STREAM_SYNC: ((Device,), (Pointer,)),
    Code.COPY_AMONG_REMOTE: ((TensorView,), (TensorView,), (Pointer,)),
    Code.DEV_ALLOC_DATA_WITH_SCOPE: ((TensorView,), (str, ObjectText, type(None))),
    Code.DEV_CREATE_STREAM: ((Device,),),
    Code.DEV_FREE_STREAM: ((Device,), (Pointer,)),
    Code.DEV_SET_STREAM: ((Device,), (Pointer,)),
    Code.DEV_GET_CURRENT_STREAM: ((Device,),),
}


class RequestError(RPCError):
    """The client asked for something that cannot be: the request fails, the session goes on."""


class ServerMachine:
    """One session at the server.

    Args:
        tensor_argument: makes what a function takes for a tensor out of its memory and its view.
        limits: how large things may be.
        same_again: whether a function may get for a tensor the object that one got before.
    """

    def __init__(
        self,
        tensor_argument: Callable[[Any, TensorView], Any],
        limits: Limits = DEFAULT_LIMITS,
        same_again: bool = True,
    ) -> None:
        self.reader = PacketReader(Direction.TO_SERVER, limits)
        self.handles = HandleTable()
        self.structured = False
        self._tensor_argument = tensor_argument
        self._automaton: Automaton[State, Event] = Automaton(TABLE, State.AWAIT_INIT)
        self._outgoing: list[Part] = []
        self._copy: CopyIn | None = None
        self._copy_error: BaseException | None = None
        self._functions: dict[str, int] = {}
        self._lookup = ""
        self._repeat: tuple[bytes, Call] | None = None
        self._same_again = same_again

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._automaton.state

    # ---- actions out

    def next_action(self) -> Action | None:
        """What to do next, or None when more bytes are needed.

        Raises:
            ProtocolError: the client sent what is not the protocol; the session is over. Its words should go
            to
                the client before the line is closed: :meth:`fault` puts them into the outgoing.
        """
        while True:
            state = self._automaton.state
            if state is State.CLOSED or state is State.FORWARDING:
                return None
            event = self.reader.next_event()
            if event is None:
                return None
            try:
                action = self._handle(event)
            except IllegalEventError as error:
                action = None
                self._refuse_illegal(error)
            except RPCError as error:
                if isinstance(error, ProtocolError):
                    raise
                action = None
                self._fail_request(error)
            if action is not None:
                return action

    def whole_call(self, room: memoryview, nbytes: int) -> Call | None:
        """What ``next_action`` would give if the reader had received the ``nbytes`` that were put into its fresh
        buffer, ``room``; None (and nothing has happened) if that is not simply one good call."""
        if self._automaton.state is not State.READY:
            return None
        repeat = self._repeat
        if repeat is not None and len(repeat[0]) == nbytes and repeat[0] == bytes(room[:nbytes]):
            self.reader.consumed(nbytes)
            self._automaton.on(Event.REQUEST)
            return repeat[1]
        try:
            found = call_in(room, nbytes, self.reader.limits)
            if found is None:
                return None
            handle, args = found
            entry = self.handles.get(handle)
            if entry.kind is not Kind.FUNCTION:
                return None
            again = False
            for i, arg in enumerate(args):
                if type(arg) in _RESOLVED:
                    args[i] = self._resolve(arg)
                    again = self._same_again
        except RPCError:
            return None  # next_action says what is wrong with it
        call = Call(entry.obj, Arguments(args) if again else args, entry.label)
        # A kernel is launched again and again on the same tensors. Nothing of this holds once a handle is given back.
        self._repeat = (bytes(room[:nbytes]), call) if again else None
        self.reader.consumed(nbytes)
        self._automaton.on(Event.REQUEST)
        return call

    def _handle(self, event: Any) -> Action | None:
        kind = type(event)
        if kind is CallFunc:
            self._automaton.on(Event.REQUEST)
            entry = self.handles.get_kind(event.handle, Kind.FUNCTION)
            args = event.args
            for i, arg in enumerate(args):
                if type(arg) in _RESOLVED:
                    args[i] = self._resolve(arg)
            return Call(entry.obj, args, entry.label)
        if kind is SysCall:
            self._automaton.on(Event.REQUEST)
            return self._syscall(event.code, event.args)
        if kind is CopyToRemote:
            return self._begin_copy(event)
        if kind is PayloadEnd:
            self._automaton.on(Event.PAYLOAD_END)
            copy, error = self._copy, self._copy_error
            self._copy = self._copy_error = None
            if error is not None:
                self.reply_error(error)
                return None
            assert copy is not None
            return CopiedIn(*copy)
        if kind is CopyFromRemote:
            self._automaton.on(Event.REQUEST)
            memory = self._memory(event.tensor, event.nbytes)
            return CopyOut(memory, event.tensor.byte_offset, event.nbytes)
        if kind is InitServer:
            if self._automaton.state is not State.AWAIT_INIT:
                self._send_error(RequestError("the session has already been initialized"))
                return None
            self._automaton.on(Event.INIT)
            if event.version != VERSION:
                self.reply_error(
                    RequestError(
                        f"Client protocol version mismatch with the server  server protocol={VERSION}, "
                        f"client protocol={event.version}"
                    )
                )
                return None
            return Start(event.args)
        if kind is Bulk:
            return self._bulk(event)
        assert kind is Shutdown
        self._automaton.on(Event.SHUTDOWN)
        return Closed()

    def _bulk(self, event: Bulk) -> Action | None:
        function = None
        if event.handle is not None:
            try:
                if self._automaton.can(Event.REQUEST):
                    function = self.handles.get_kind(event.handle, Kind.FUNCTION).obj
            except HandleError:
                pass
            if function is None:  # the call will be refused: nothing is kept for it
                self.reader.receive_payload(DiscardSink())
                return None
        return BulkArgument(function, event.values, event.nbytes, event.is_text)

    def _begin_copy(self, event: CopyToRemote) -> Action | None:
        """A copy is refused only once its payload is out of the way: until then the line belongs to it."""
        if not self._automaton.can(Event.COPY_TO):
            # PAYLOAD_END will not be legal either, and sends this.
            self._copy_error = RequestError("a copy came before the session was initialized")
            return None
        self._automaton.on(Event.COPY_TO)
        try:
            memory = self._memory(event.tensor, event.nbytes)
        except RPCError as error:
            self._copy_error = error
            return None
        self._copy = CopyIn(memory, event.tensor.byte_offset, event.nbytes)
        return self._copy

    def _syscall(self, code: Code, args: list[Value]) -> Action | None:
        signature = _SIGNATURES[code]
        if len(args) != len(signature):
            raise RequestError(f"{code.name} takes {len(signature)} arguments, not {len(args)}")
        for i, (arg, kinds) in enumerate(zip(args, signature, strict=True)):
            if type(arg) not in kinds:
                names = " or ".join(k.__name__ for k in kinds)
                raise RequestError(f"{code.name}: argument {i} is a {type(arg).__name__}, not a {names}")
        first: Any = args[0]
        if code == Code.GET_GLOBAL_FUNC:
            return self._find(str(first))
        if code == Code.FREE_HANDLE:
            if first:
                self._repeat = None
                entry = self.handles.release(first, Kind.FUNCTION, Kind.MODULE, Kind.TENSOR, Kind.OBJECT)
                if entry.references == 0 and self._functions.get(entry.label) == first:
                    del self._functions[entry.label]
            self._send_none()
            return None
        if code == Code.DEV_FREE_DATA:
            data: Any = args[1]
            if not data:
                self._send_none()
                return None
            self._repeat = None
            return FreeData(self.handles.release(data, Kind.MEMORY).obj)
        if code == Code.COPY_AMONG_REMOTE:
            source: Any = first
            target: Any = args[1]
            stream: Any = args[2]
            nbytes = source.nbytes
            if nbytes != target.nbytes:
                raise RequestError(f"a copy of {nbytes} bytes into a tensor of {target.nbytes}")
            return CopyAmong(
                self._memory(source, nbytes),
                source.byte_offset,
                self._memory(target, nbytes),
                target.byte_offset,
                nbytes,
                stream,
            )
        if code == Code.DEV_ALLOC_DATA:
            _, nbytes, alignment, dtype = args
            return _alloc(first, nbytes, alignment, dtype, None)
        if code == Code.DEV_ALLOC_DATA_WITH_SCOPE:
            scope: Any = args[1]
            return _alloc(first.device, first.nbytes, 0, first.dtype, str(scope) if scope else None)
        return DeviceCall(code, first, list(args[1:]))

    def _find(self, name: str) -> Action | None:
        number = self._functions.get(name)
        if number is not None:  # asked for again while it is out: one more reference on the same number
            self.handles.get(number).references += 1
            self.reply_value(Pointer(number))
            return None
        self._lookup = name
        if name == FEATURE:
            self.structured = True
            self.found(_structured_errors)
            return None
        return Lookup(name)

    # ---- arguments

    def _resolve(self, arg: Any) -> Any:
        if type(arg) is TensorView:
            memory = self._memory(arg, arg.nbytes)
            if not arg.dtype.itembits:
                raise RequestError(f"a tensor argument of the dtype {arg.dtype} has elements of no size")
            try:
                return self._tensor_argument(memory, arg)
            except Exception as error:  # the driver's: a dtype that its functions do not know, say
                raise RequestError(f"a tensor argument cannot be passed on: {describe(error)}") from error
        if type(arg) is ModuleRef:
            return self.handles.get_kind(arg, Kind.MODULE).obj
        if type(arg) is FunctionRef:
            return self.handles.get_kind(arg, Kind.FUNCTION).obj
        return self.handles.get_kind(arg, Kind.OBJECT, Kind.MODULE, Kind.FUNCTION).obj

    def memory(self, view: TensorView) -> Any:
        """What a tensor of this session lies in.

        Raises:
            RequestError: it is none of this session, or has been freed.
        """
        return self._memory(view, view.nbytes)

    def _memory(self, view: TensorView, nbytes: int) -> Any:
        entry: Entry = self.handles.get_kind(view.data, Kind.MEMORY, Kind.TENSOR)
        memory: Memory = entry.obj
        if memory.device != view.device:
            raise RequestError(f"the tensor lies on {memory.device}, not on {view.device}")
        if nbytes > view.nbytes:
            raise RequestError(f"a copy of {nbytes} bytes is longer than the tensor, which has {view.nbytes}")
        if view.byte_offset + nbytes > memory.nbytes:
            raise RequestError(
                f"{nbytes} bytes from byte {view.byte_offset} on are more than the memory's {memory.nbytes}"
            )
        return memory

    # ---- reports in

    def accept(self, sink: Sink) -> None:
        """The bulk data just announced go into ``sink``."""
        self.reader.receive_payload(sink)

    def started(self) -> None:
        """The session runs here."""
        self._automaton.on(Event.STARTED)
        self._send_none()

    def forwarded(self) -> None:
        """The session runs elsewhere: from here on the driver moves bytes, and this machine has no say."""
        self._automaton.on(Event.FORWARDED)
        self._send_none()

    def found(self, function: Any) -> None:
        """The function looked up, or None when there is none of that name."""
        if function is None:
            self.reply_value(Pointer(0))
            return
        number = self.handles.add(Kind.FUNCTION, function, self._lookup)
        self._functions[self._lookup] = number
        self.reply_value(Pointer(number))

    def reply_none(self) -> None:
        """Done; nothing to say. Not for calls."""
        self._automaton.on(Event.REPLIED)
        self._send_none()

    def reply_value(self, value: Value) -> None:
        """The answer to a system call."""
        parts = encode(_syscall_answer(value))
        self._automaton.on(Event.REPLIED)
        self._outgoing += parts

    def reply_memory(self, memory: Memory) -> None:
        """The memory asked for is there."""
        self.reply_value(Pointer(self.handles.add(Kind.MEMORY, memory)))

    def reply_data(self, nbytes: int, data: Part) -> None:
        """The bytes asked for by CopyOut; ``data`` must stay as it is until it has been sent."""
        self._automaton.on(Event.REPLIED)
        self._outgoing += encode(CopyAck(nbytes))
        if nbytes:
            self._outgoing.append(data)

    def reply_call(self, result: Any) -> None:
        """The result of a call: a plain value, Given or GivenTensor.

        Raises:
            TypeError, OverflowError, UnicodeEncodeError: it does not travel; report that instead.
        """
        kind = type(result)
        if kind is int and I64_MIN <= result <= I64_MAX:
            self._outgoing.append(encode_return_int(result))
        elif result is None:
            self._outgoing.append(encode_return_call_none())
        else:
            values = self._result(result)
            try:
                self._outgoing += encode(Return(values))
            except BaseException:
                if kind is Given or kind is GivenTensor:  # it has not left
                    self.handles.release(values[-1], *Kind)  # type: ignore[arg-type]
                raise
        self._automaton.on(Event.REPLIED)

    def reply_error(self, error: BaseException) -> None:
        """Whatever was being done has failed."""
        state = self._automaton.state
        if state is State.RECEIVING:
            self._copy_error = error  # the payload is still to come; PayloadEnd sends this
            return
        self._automaton.on(Event.REFUSED if state is State.STARTING else Event.REPLIED)
        self._send_error(error)

    def fault(self, error: ProtocolError) -> None:
        """The client does not keep to the protocol: tell it so, for the last time."""
        self._send_error(error)
        self._automaton.on(Event.FAULT)
        self.close()

    def close(self) -> None:
        """The line is gone, or about to be: let go of everything given out."""
        self._automaton.on(Event.CLOSE)
        self.reader.close()
        self._repeat = None
        self.handles.clear()
        self._functions.clear()
        self._copy = self._copy_error = None

    def take_outgoing(self) -> list[Part]:
        """What is to be sent, in order; the caller has it from now on."""
        parts = self._outgoing
        self._outgoing = []
        return parts

    # ---- inside

    def _send_none(self) -> None:
        if self._automaton.state is State.WORKING:
            self._automaton.on(Event.REPLIED)
        self._outgoing.append(encode_return_none())

    def _send_error(self, error: BaseException) -> None:
        self._outgoing += encode(ExceptionPacket(to_text(error, self.structured)))

    def _fail_request(self, error: RPCError) -> None:
        if self._automaton.state is State.WORKING:
            self._automaton.on(Event.REPLIED)
        self._send_error(error)

    def _refuse_illegal(self, error: IllegalEventError) -> None:
        if error.event is Event.PAYLOAD_END:  # of a copy before the session began
            failed, self._copy_error = self._copy_error, None
            self._send_error(failed or error)
            return
        self._send_error(
            RequestError(f"{error.event.value}: the session has not been initialized")
            if error.state is State.AWAIT_INIT
            else RequestError(str(error))
        )

    def _result(self, result: Any) -> list[Value]:
        kind = type(result)
        if kind is GivenTensor:
            view = TensorView(0, result.memory.device, result.dtype, result.shape, result.byte_offset)
            number = self.handles.add(Kind.TENSOR, result.memory)
            return [TypeIndex.TENSOR.value, view._replace(data=number), Pointer(number)]
        if kind is Given:
            return [
                int(result.type_index),
                Pointer(self.handles.add(result.kind, result.obj, _label(result))),
            ]
        if kind is ObjectText:
            kind, result = str, str(result)
        elif kind is ObjectBytes:
            kind, result = bytes, bytes(result)
        if kind is str:
            nbytes = len(result.encode())
            small = TypeIndex.SMALL_STR if nbytes <= SMALL_NBYTES else TypeIndex.STR
            # The raw form loses what stands behind a NUL in stock clients; the object form does not.
            return [small.value, ObjectText(result) if "\0" in result else result]
        if kind in (bytes, bytearray, BulkBytes, FilePayload):
            if kind is bytearray:
                result = BulkBytes(memoryview(result), None)
            if kind is FilePayload:
                size = result.nbytes
            else:
                size = len(result) if kind is bytes else result.data.nbytes
            small = TypeIndex.SMALL_BYTES if size <= SMALL_NBYTES else TypeIndex.BYTES
            return [small.value, result]
        index = _PLAIN.get(kind)
        if index is None:
            raise TypeError(f"a {kind.__name__} does not travel over RPC")
        return [index.value, result]


_RESOLVED: Final = frozenset({TensorView, ModuleRef, FunctionRef, ObjectRef})
_PLAIN: Final[dict[type, TypeIndex]] = {
    int: TypeIndex.INT,
    bool: TypeIndex.BOOL,
    float: TypeIndex.FLOAT,
    DataType: TypeIndex.DTYPE,
    Device: TypeIndex.DEVICE,
    Pointer: TypeIndex.POINTER,
}


def _structured_errors() -> int:
    return 1


def _label(result: Given) -> str:
    return str(getattr(result.obj, "__name__", "") or result.kind.value)


def _alloc(device: Device, nbytes: Any, alignment: Any, dtype: Any, scope: str | None) -> Alloc:
    if nbytes < 0 or alignment < 0:
        raise RequestError(f"an allocation of {nbytes} bytes aligned to {alignment} cannot be")
    return Alloc(device, nbytes, alignment, dtype, scope)


def _syscall_answer(value: Value) -> Return:
    if type(value) is str:
        value = ObjectText.of(value)
    return Return([value])
