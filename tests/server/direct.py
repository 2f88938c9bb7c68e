# SPDX-License-Identifier: Apache-2.0
"""A client made by hand and its server's executor, with no process and no line between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rpcflow.errors import PermissionDeniedError
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.packets import (
    CallFunc,
    ExceptionPacket,
    InitServer,
    Packet,
    alloc_with_scope,
    encode,
    get_global_func,
)
from rpcflow.protocol.reader import Direction, PacketReader
from rpcflow.protocol.values import Device, Value
from rpcflow.security.grant import Grant
from rpcflow.server.executor import Executor
from rpcflow.server.folder import SessionFolder
from rpcflow.session.server import State
from rpcflow.session.wire_errors import FEATURE, from_text
from tests.session.tiny import answers, joined

CPU, CUDA = Device(1, 0), Device(2, 0)
U8 = DataType(1, 8)


class Session:
    """One session.

    Args:
        folder: the session's.
        grant: what it may do.
        constructor: how it begins; None not to begin.
    """

    def __init__(self, folder: Path, grant: Grant, constructor: list[Value] | None = None) -> None:
        self.forwarded: list[tuple[str, list[Value]]] = []
        self.executor = Executor(
            SessionFolder(str(folder)),
            lambda name, args: self.forwarded.append((name, args)),
            files_by_handle=False,
            grant=grant,
        )
        self.machine = self.executor.machine
        self._reader = PacketReader(Direction.TO_CLIENT)
        if constructor is not None:
            assert self.begin(constructor) == [None]

    def begin(self, constructor: list[Value]) -> Any:
        answer = self.ask(InitServer("0.8.0", constructor))
        if self.machine.state is State.READY:
            self.lookup(FEATURE)
        return answer

    def ask(self, packet: Packet, payload: bytes = b"") -> Any:
        """The one answer to a request: the values of a Return, the bytes of a copy, or an error."""
        data = joined(encode(packet)) + payload
        out = bytearray()
        while data:
            room = self.machine.reader.get_buffer()
            step = min(len(room), len(data), 1 << 14)
            room[:step] = data[:step]
            data = data[step:]
            self.machine.reader.received(step)
            while (action := self.machine.next_action()) is not None:
                self.executor.perform(action)
            out += joined(self.machine.take_outgoing())
        (answer,) = answers(self._reader, bytes(out))
        return from_text(answer.message) if isinstance(answer, ExceptionPacket) else answer

    def denied(self, packet: Packet, payload: bytes = b"") -> PermissionDeniedError:
        """The error in answer to a request, which leaves the session as usable as before."""
        error = self.ask(packet, payload)
        assert isinstance(error, PermissionDeniedError), error
        assert str(error).startswith("the server's policy does not let 'ada' ")
        if self.machine.state is State.READY:
            assert self.lookup("tvm.rpc.server.GetCRTMaxPacketSize")
        return error

    def lookup(self, name: str) -> int:
        (number,) = self.ask(get_global_func(name))
        return int(number)

    def call(self, name: str, *args: Value) -> Any:
        return self.ask(CallFunc(self.lookup(name), list(args)))

    def alloc(self, device: Device = CPU) -> Any:
        return self.ask(alloc_with_scope(device, (4,), U8, None))
