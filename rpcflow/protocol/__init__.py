# SPDX-License-Identifier: Apache-2.0
"""Codecs for TVM's RPC protocol 0.8.0: bytes in, messages out, and back.

Nothing here does I/O, keeps time or imports rpcflow beyond its errors. The format
is described in TVM's own sources (``src/runtime/rpc`` and ``python/tvm/rpc``) and was checked against
recordings of stock peers, which the tests replay.
"""

from rpcflow.errors import ProtocolError

from .dtype import DataType, DTypeCode
from .handshake import Answer, Hello, KeyText, encode_answer, encode_hello
from .limits import DEFAULT_LIMITS, Limits
from .packets import (
    VERSION,
    CallFunc,
    Code,
    CopyAck,
    CopyFromRemote,
    CopyToRemote,
    ExceptionPacket,
    InitServer,
    Packet,
    Return,
    Shutdown,
    SysCall,
    encode,
)
from .reader import Bulk, Direction, PacketReader, PayloadEnd
from .sinks import DiscardSink, MemorySink, Sink, ViewSink
from .values import (
    Device,
    FunctionRef,
    ModuleRef,
    ObjectBytes,
    ObjectRef,
    ObjectText,
    Pointer,
    TensorView,
    TypeIndex,
    Value,
    decode_values,
    encode_values,
)

__all__ = [
    "DEFAULT_LIMITS",
    "VERSION",
    "Answer",
    "Bulk",
    "CallFunc",
    "Code",
    "CopyAck",
    "CopyFromRemote",
    "CopyToRemote",
    "DTypeCode",
    "DataType",
    "Device",
    "Direction",
    "DiscardSink",
    "ExceptionPacket",
    "FunctionRef",
    "Hello",
    "InitServer",
    "KeyText",
    "Limits",
    "MemorySink",
    "ModuleRef",
    "ObjectBytes",
    "ObjectRef",
    "ObjectText",
    "Packet",
    "PacketReader",
    "PayloadEnd",
    "Pointer",
    "ProtocolError",
    "Return",
    "Shutdown",
    "Sink",
    "SysCall",
    "TensorView",
    "TypeIndex",
    "Value",
    "ViewSink",
    "decode_values",
    "encode",
    "encode_answer",
    "encode_hello",
    "encode_values",
]
