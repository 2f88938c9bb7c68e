# SPDX-License-Identifier: Apache-2.0
"""A server's end without any devices: functions in a dict, memory in bytearrays. And ways to talk to it in bytes."""

from typing import Any

from rpcflow.errors import ProtocolError
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.limits import DEFAULT_LIMITS, Limits
from rpcflow.protocol.packets import (
    CallFunc,
    Code,
    CopyAck,
    CopyToRemote,
    InitServer,
    Packet,
    SysCall,
    alloc_with_scope,
    encode,
    get_global_func,
)
from rpcflow.protocol.reader import Bulk, Direction, PacketReader, PayloadEnd
from rpcflow.protocol.sinks import ViewSink
from rpcflow.protocol.values import Device, FilePayload, Part, Pointer, TensorView, TypeIndex, Value
from rpcflow.session import server as s
from rpcflow.session.handles import Kind
from rpcflow.session.server import Given, GivenTensor, ServerMachine

CPU = Device(1, 0)


def joined(parts: list[Part]) -> bytes:
    """Outgoing parts as a transport would send them."""
    out = bytearray()
    for part in parts:
        assert not isinstance(part, FilePayload)
        out += part
    return bytes(out)


class Memory:
    """Device memory, as the machine knows it."""

    def __init__(self, nbytes: int, device: Device = CPU, data: bytes = b"") -> None:
        self.device = device
        self.nbytes = nbytes
        self.data = bytearray(data or nbytes)
        self.freed = False


class Tensor:
    """A tensor argument, as a function of this executor sees it."""

    def __init__(self, memory: Memory, view: TensorView) -> None:
        self.memory = memory
        self.view = view

    @property
    def bytes(self) -> bytes:
        start = self.view.byte_offset
        return bytes(self.memory.data[start : start + self.view.nbytes])


class Thing:
    """Some object."""

    def __init__(self, name: str) -> None:
        self.name = name


def echo(*args: Any) -> Any:
    """Its first argument, in the form in which results go back."""
    first = args[0] if args else None
    if isinstance(first, Tensor):
        return GivenTensor(first.memory, first.view.dtype, first.view.shape, first.view.byte_offset)
    if isinstance(first, Thing):
        return Given(TypeIndex.OBJECT, Kind.OBJECT, first)
    if callable(first):
        return Given(TypeIndex.FUNCTION, Kind.FUNCTION, first)
    return first


def fail(text: str = "no") -> None:
    raise ValueError(str(text))


FUNCTIONS: dict[str, Any] = {
    "echo": echo,
    "fail": fail,
    "add": lambda a, b: a + b,
    "make": lambda name: Given(TypeIndex.OBJECT, Kind.OBJECT, Thing(str(name))),
    "module": lambda: Given(TypeIndex.MODULE, Kind.MODULE, Thing("module")),
    "adder": lambda n: Given(TypeIndex.FUNCTION, Kind.FUNCTION, lambda m: n + m),
    "tensor": lambda data: GivenTensor(Memory(len(data), data=bytes(data)), _U8, (len(data),)),
    "bytes of": lambda tensor: tensor.bytes,
    "name of": lambda thing: thing.name,
    "unsendable": lambda: object(),
}
_U8 = DataType(1, 8)
REFUSED = Device(13, 0)
"""A device that this executor does not have."""


class TinyServer:
    """A server machine and its executor."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.machine = ServerMachine(self._tensor, limits)
        self.actions: list[s.Action] = []
        self.memories: list[Memory] = []
        self._view = memoryview(b"")

    @staticmethod
    def _tensor(memory: Memory, view: TensorView) -> Tensor:
        if view.dtype.code == 5:
            raise NotImplementedError("no complex numbers here")
        return Tensor(memory, view)

    def feed(self, data: bytes | bytearray) -> bytes:
        """Take bytes in as a driver does; return what is to be sent."""
        reader, pos = self.machine.reader, 0
        while True:
            self.run()
            if pos == len(data) or self.machine.state is s.State.CLOSED:
                return joined(self.machine.take_outgoing())
            room = reader.get_buffer()
            step = min(len(room), len(data) - pos)
            room[:step] = data[pos : pos + step]
            reader.received(step)
            pos += step

    def run(self) -> None:
        """Carry out all that can be done now."""
        while True:
            try:
                action = self.machine.next_action()
            except ProtocolError as error:
                self.machine.fault(error)
                return
            if action is None:
                return
            self.actions.append(action)
            try:
                self.perform(action)
            except Exception as error:  # as drivers do: the client is told
                self.machine.reply_error(error)

    def perform(self, action: s.Action) -> None:
        """Carry out one action and report it."""
        machine = self.machine
        match action:
            case s.Start(args):
                if args and args[0] == "elsewhere":
                    machine.forwarded()
                elif args:
                    raise ValueError(f"no constructor {args[0]!r}")
                else:
                    machine.started()
            case s.Lookup(name):
                machine.found(FUNCTIONS.get(name))
            case s.Call(function, args, _):
                machine.reply_call(function(*args))
            case s.Alloc(device, nbytes, _, _, scope):
                if device == REFUSED or scope not in (None, "global"):
                    raise RuntimeError("no such memory")
                if nbytes > 1 << 20:
                    raise MemoryError(f"{nbytes} bytes")
                self.memories.append(Memory(nbytes, device))
                machine.reply_memory(self.memories[-1])
            case s.FreeData(memory):
                memory.freed = True
                machine.reply_none()
            case s.CopyIn(memory, offset, nbytes):
                if memory.device.dev_type == 12:
                    raise RuntimeError("this device takes no data")
                self._view = memoryview(memory.data)[offset : offset + nbytes]
                machine.accept(ViewSink(self._view))
            case s.CopiedIn():
                machine.reply_none()
            case s.CopyOut(memory, offset, nbytes):
                machine.reply_data(nbytes, bytes(memory.data[offset : offset + nbytes]))
            case s.CopyAmong(source, source_offset, target, target_offset, nbytes, _):
                target.data[target_offset : target_offset + nbytes] = source.data[
                    source_offset : source_offset + nbytes
                ]
                machine.reply_none()
            case s.DeviceCall(code, _, _):
                machine.reply_value(code.name)
            case s.BulkArgument() | s.Closed():
                pass


class Scripted:
    """A client made by hand: packets out, packets back."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS, begin: bool = True) -> None:
        self.server = TinyServer(limits)
        self.machine = self.server.machine
        self._reader = PacketReader(Direction.TO_CLIENT)
        if begin:
            assert self.ask(InitServer("0.8.0", [])) == [None]

    def send(self, packet: Packet, payload: bytes = b"") -> list[Any]:
        """All packets that come back: Returns as their lists of values, CopyAcks as bytes, others as they are."""
        return self.send_bytes(joined(encode(packet)) + payload)

    def send_bytes(self, data: bytes) -> list[Any]:
        """As :meth:`send`, for bytes of any kind."""
        return answers(self._reader, self.server.feed(data))

    def ask(self, packet: Packet, payload: bytes = b"") -> Any:
        """The one answer to a request."""
        (answer,) = self.send(packet, payload)
        return answer

    def lookup(self, name: str) -> int:
        (number,) = self.ask(get_global_func(name))
        return int(number)

    def call(self, name: str, *args: Value) -> Any:
        """Call a function by its name; its handle is given back."""
        number = self.lookup(name)
        answer = self.ask(CallFunc(number, list(args)))
        assert self.ask(SysCall(Code.FREE_HANDLE, [Pointer(number)])) == [None]
        return answer

    def alloc(self, nbytes: int, device: Device = CPU) -> int:
        (number,) = self.ask(alloc_with_scope(device, (nbytes,), _U8, None))
        return int(number)


def answers(reader: PacketReader, data: bytes) -> list[Any]:
    """What a server sent, taken apart."""
    out: list[Any] = []
    memory = memoryview(bytearray())
    pos = 0
    while True:
        while (event := reader.next_event()) is not None:
            if isinstance(event, CopyAck):
                memory = memoryview(bytearray(event.nbytes))
                reader.receive_payload(ViewSink(memory))
            elif isinstance(event, PayloadEnd):
                out.append(bytes(memory))
            elif hasattr(event, "values") and not isinstance(event, Bulk):
                out.append(event.values)
            elif not isinstance(event, Bulk | CopyToRemote):
                out.append(event)
        if pos == len(data):
            return out
        room = reader.get_buffer()
        step = min(len(room), len(data) - pos)
        room[:step] = data[pos : pos + step]
        reader.received(step)
        pos += step
