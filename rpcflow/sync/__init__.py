# SPDX-License-Identifier: Apache-2.0
"""The blocking API, for programs written against ``tvm.rpc``: ``from rpcflow import sync as rpc``."""

from .connecting import connect
from .local import LocalSession
from .server import Server
from .session import Device, Function, Module, RPCSession, Tensor, empty, tensor

__all__ = [
    "Device",
    "Function",
    "LocalSession",
    "Module",
    "RPCSession",
    "Server",
    "Tensor",
    "connect",
    "empty",
    "tensor",
]
