# SPDX-License-Identifier: Apache-2.0
"""Packets: ``u64`` length of the rest, ``i32`` code, payload.

There is no request number: answers come in the order of the requests. A packet of length 0 is skipped.
"""

import enum
import struct
from typing import Final, NamedTuple

from .dtype import DataType
from .values import (
    U64,
    Device,
    Part,
    Pointer,
    TensorView,
    Value,
    Writer,
    encode_tensor,
    encode_values,
)

VERSION: Final = "0.8.0"
"""What InitServer must say; compared as text."""


class Code(enum.IntEnum):
    """Packet codes of TVM's RPC protocol."""

    NONE = 0
    SHUTDOWN = 1
    INIT_SERVER = 2
    CALL_FUNC = 3
    RETURN = 4
    EXCEPTION = 5
    COPY_FROM_REMOTE = 6
    COPY_TO_REMOTE = 7
    COPY_ACK = 8
    GET_GLOBAL_FUNC = 9
    FREE_HANDLE = 10
    DEV_SET_DEVICE = 11
    DEV_GET_ATTR = 12
    DEV_ALLOC_DATA = 13
    DEV_FREE_DATA = 14
    DEV_STREAM_SYNC = 15
    COPY_AMONG_REMOTE = 16
    DEV_ALLOC_DATA_WITH_SCOPE = 17
    DEV_CREATE_STREAM = 18
    DEV_FREE_STREAM = 19
    DEV_SET_STREAM = 20
    DEV_GET_CURRENT_STREAM = 21


FIRST_SYSCALL: Final = Code.GET_GLOBAL_FUNC
LAST_SYSCALL: Final = Code.DEV_GET_CURRENT_STREAM


class Shutdown(NamedTuple):
    """The sender is done; no answer."""


class InitServer(NamedTuple):
    """First request of a session. ``args``: session constructor and its arguments; none for a local
    session."""

    version: str
    args: list[Value]


class CallFunc(NamedTuple):
    """Call the function that ``handle`` stands for."""

    handle: int
    args: list[Value]


class Return(NamedTuple):
    """A good answer. To CallFunc: the type index of the result first; to system calls: exactly one value."""

    values: list[Value]


class ExceptionPacket(NamedTuple):
    """A bad answer, in words."""

    message: str


class CopyFromRemote(NamedTuple):
    """Ask for ``nbytes`` of a tensor from its byte offset on."""

    tensor: TensorView
    nbytes: int


class CopyToRemote(NamedTuple):
    """Announces ``nbytes`` for a tensor from its byte offset on; the data follow as payload."""

    tensor: TensorView
    nbytes: int


class CopyAck(NamedTuple):
    """Announces the ``nbytes`` asked for by CopyFromRemote; the data follow as payload."""

    nbytes: int


class SysCall(NamedTuple):
    """Any of the codes from GET_GLOBAL_FUNC on."""

    code: Code
    args: list[Value]


Packet = Shutdown | InitServer | CallFunc | Return | ExceptionPacket | CopyFromRemote | CopyToRemote | CopyAck | SysCall

_CALL_FUNC: Final = int(Code.CALL_FUNC)
_RETURN: Final = int(Code.RETURN)
_HEAD: Final = struct.Struct("<Qi")
_CALL_HEAD: Final = struct.Struct("<QiQ")
_RETURN_INT: Final = struct.Struct("<Qiiiqiq")
_RETURN_NONE: Final = struct.pack("<Qiii", 12, Code.RETURN, 1, 0)
_RETURN_CALL_NONE: Final = struct.pack("<Qiiiqi", 24, Code.RETURN, 2, 1, 0, 0)
_CALL_1_INT: Final = struct.Struct("<QiQiiq")
_SYSCALL_POINTER: Final = struct.Struct("<QiiiQ")


def encode(packet: Packet) -> list[Part]:
    """The parts a packet is made of, in order. For CopyToRemote and CopyAck the payload is not among them:
    the caller sends it behind, from wherever it lies.

    Raises:
        TypeError, OverflowError, UnicodeEncodeError: as :func:`~rpcflow.protocol.encode_values`.
    """
    writer = Writer()
    payload = 0
    if isinstance(packet, CallFunc):
        code = Code.CALL_FUNC
        writer.tail += U64.pack(packet.handle)
        encode_values(writer, packet.args)
    elif isinstance(packet, Return):
        code = Code.RETURN
        encode_values(writer, packet.values)
    elif isinstance(packet, SysCall):
        code = packet.code
        encode_values(writer, packet.args)
    elif isinstance(packet, ExceptionPacket):
        code = Code.EXCEPTION
        encode_values(writer, [packet.message])
    elif isinstance(packet, CopyToRemote | CopyFromRemote):
        to = isinstance(packet, CopyToRemote)
        code = Code.COPY_TO_REMOTE if to else Code.COPY_FROM_REMOTE
        encode_tensor(writer.tail, packet.tensor)
        writer.tail += U64.pack(packet.nbytes)
        payload = packet.nbytes if to else 0
    elif isinstance(packet, CopyAck):
        code = Code.COPY_ACK
        payload = packet.nbytes
    elif isinstance(packet, InitServer):
        code = Code.INIT_SERVER
        version = packet.version.encode()
        writer.tail += U64.pack(len(version)) + version
        encode_values(writer, packet.args)
    else:
        code = Code.SHUTDOWN
    parts = writer.finish()
    head = _HEAD.pack(4 + writer.nbytes + payload, code)
    if len(parts) == 1 and isinstance(parts[0], bytearray):
        return [head + parts[0]]
    return [head, *parts]


def encode_call(handle: int, args: list[Value]) -> list[Part]:
    """:func:`encode` of a CallFunc, quicker for the commonest shapes of arguments."""
    if len(args) == 1 and type(args[0]) is int:
        try:
            return [_CALL_1_INT.pack(28, _CALL_FUNC, handle, 1, 1, args[0])]
        except struct.error:
            pass  # too large: the general way says so in words
    writer = Writer()
    encode_values(writer, args)
    parts = writer.finish()
    head = _CALL_HEAD.pack(12 + writer.nbytes, Code.CALL_FUNC, handle)
    if len(parts) == 1 and isinstance(parts[0], bytearray):
        return [head + parts[0]]
    return [head, *parts]


def encode_return_int(value: int) -> bytes:
    """The answer to a CallFunc whose result is an int of 64 bits."""
    return _RETURN_INT.pack(32, _RETURN, 2, 1, 1, 1, value)


def encode_return_none() -> bytes:
    """The answer ``[None]`` to a system call or InitServer."""
    return _RETURN_NONE


def encode_return_call_none() -> bytes:
    """The answer to a CallFunc whose result is None."""
    return _RETURN_CALL_NONE


def encode_free(handle: int) -> bytes:
    """FreeHandle."""
    return _SYSCALL_POINTER.pack(20, Code.FREE_HANDLE, 1, 4, handle)


def get_global_func(name: str) -> SysCall:
    """The look-up of a global function."""
    return SysCall(Code.GET_GLOBAL_FUNC, [name])


def free_data(device: Device, data: int) -> SysCall:
    """Free memory that DEV_ALLOC_DATA or DEV_ALLOC_DATA_WITH_SCOPE gave."""
    return SysCall(Code.DEV_FREE_DATA, [device, Pointer(data)])


def stream_sync(device: Device, stream: int = 0) -> SysCall:
    """Wait for a stream."""
    return SysCall(Code.DEV_STREAM_SYNC, [device, Pointer(stream)])


def copy_among(source: TensorView, target: TensorView, stream: int = 0) -> SysCall:
    """Copy between two tensors of the server."""
    return SysCall(Code.COPY_AMONG_REMOTE, [source, target, Pointer(stream)])


def alloc_with_scope(device: Device, shape: tuple[int, ...], dtype: DataType, scope: str | None) -> SysCall:
    """Allocate a tensor's memory."""
    return SysCall(Code.DEV_ALLOC_DATA_WITH_SCOPE, [TensorView(0, device, dtype, shape, 0), scope])
