# SPDX-License-Identifier: Apache-2.0
"""rpcflow: compile here, run there. TVM's RPC with structured concurrency.

This is the API for trio, and by anyio for asyncio; :mod:`rpcflow.sync` is the blocking one with the names and
parameters of ``tvm.rpc``. Names are loaded when first used, so that a session's process carries only what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    AuthenticationError,
    CallTimeoutError,
    ConnectionLostError,
    DuplicateKeyError,
    FunctionNotFoundError,
    KeyMismatchError,
    PermissionDeniedError,
    ProtocolError,
    RemoteError,
    RPCError,
    RPCSessionTimeoutError,
    SessionCrashedError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from .client.local import LocalSession
    from .client.objects import BenchmarkResult
    from .client.popen import PopenSession
    from .client.session import Device, Function, Module, Session, Tensor, connect
    from .client.tracker import TrackerSession, connect_tracker
    from .minrpc.with_minrpc import with_minrpc
    from .protocol.dtype import DataType
    from .proxy.service import Proxy
    from .registry import register
    from .server.supervisor import Server
    from .tracker.service import Tracker

__version__ = "0.1.0"

_HOMES = {
    "BenchmarkResult": "rpcflow.client.objects",
    "DataType": "rpcflow.protocol.dtype",
    "Device": "rpcflow.client.session",
    "Function": "rpcflow.client.session",
    "LocalSession": "rpcflow.client.local",
    "Module": "rpcflow.client.session",
    "PopenSession": "rpcflow.client.popen",
    "Proxy": "rpcflow.proxy.service",
    "Server": "rpcflow.server.supervisor",
    "Session": "rpcflow.client.session",
    "Tensor": "rpcflow.client.session",
    "Tracker": "rpcflow.tracker.service",
    "TrackerSession": "rpcflow.client.tracker",
    "connect": "rpcflow.client.session",
    "connect_tracker": "rpcflow.client.tracker",
    "register": "rpcflow.registry",
    "with_minrpc": "rpcflow.minrpc.with_minrpc",
}

__all__ = [
    "AuthenticationError",
    "BenchmarkResult",
    "CallTimeoutError",
    "ConnectionLostError",
    "DataType",
    "Device",
    "DuplicateKeyError",
    "Function",
    "FunctionNotFoundError",
    "KeyMismatchError",
    "LocalSession",
    "Module",
    "PermissionDeniedError",
    "PopenSession",
    "ProtocolError",
    "Proxy",
    "RPCError",
    "RPCSessionTimeoutError",
    "RemoteError",
    "Server",
    "Session",
    "SessionCrashedError",
    "Tensor",
    "Tracker",
    "TrackerSession",
    "WaitTimeoutError",
    "connect",
    "connect_tracker",
    "register",
    "with_minrpc",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module 'rpcflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
