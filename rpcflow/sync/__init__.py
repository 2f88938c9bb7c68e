# SPDX-License-Identifier: Apache-2.0
"""The blocking API, for programs written against ``tvm.rpc``: ``from rpcflow import sync as rpc``.

Names are loaded when first used, so that a service's process carries only what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpcflow.minrpc.with_minrpc import with_minrpc

    from .connecting import connect
    from .local import LocalSession
    from .popen import PopenSession
    from .proxy import Proxy
    from .server import Server
    from .session import Device, Function, Module, RPCSession, Tensor, empty, tensor
    from .tracker import Tracker
    from .tracker_session import TrackerSession, connect_tracker

_HOMES = {
    "Device": "rpcflow.sync.session",
    "Function": "rpcflow.sync.session",
    "LocalSession": "rpcflow.sync.local",
    "Module": "rpcflow.sync.session",
    "PopenSession": "rpcflow.sync.popen",
    "Proxy": "rpcflow.sync.proxy",
    "RPCSession": "rpcflow.sync.session",
    "Server": "rpcflow.sync.server",
    "Tensor": "rpcflow.sync.session",
    "Tracker": "rpcflow.sync.tracker",
    "TrackerSession": "rpcflow.sync.tracker_session",
    "connect": "rpcflow.sync.connecting",
    "connect_tracker": "rpcflow.sync.tracker_session",
    "empty": "rpcflow.sync.session",
    "tensor": "rpcflow.sync.session",
    "with_minrpc": "rpcflow.minrpc.with_minrpc",
}

__all__ = [
    "Device",
    "Function",
    "LocalSession",
    "Module",
    "PopenSession",
    "Proxy",
    "RPCSession",
    "Server",
    "Tensor",
    "Tracker",
    "TrackerSession",
    "connect",
    "connect_tracker",
    "empty",
    "tensor",
    "with_minrpc",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module 'rpcflow.sync' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
