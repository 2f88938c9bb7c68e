# SPDX-License-Identifier: Apache-2.0
"""Who takes part: by name, the server and the client of each side."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """A class an agent can hold, and what it is made with."""

    target: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    server: Part
    client: Part


_OURS = Part("benchmarks.servers.rpcflow:RpcflowServer")
_OURS_NO_POLL = Part("benchmarks.servers.rpcflow:RpcflowServer", {"poll": False})
_STOCK = Part("benchmarks.servers.stock:StockServer")
_RPYC = Part("benchmarks.servers.rpyc:RpycServer")
_GRPC = Part("benchmarks.servers.grpc:GrpcServer")
_RAW = Part("benchmarks.servers.raw:RawServer")

_NOTHING = Part("benchmarks.servers.nothing:Nothing")
_PIPE = "benchmarks.clients.pipes:PipeClient"
_RAW_PIPE = "benchmarks.clients.pipes:RawPipe"

_TLS = Part("benchmarks.servers.tls:TlsServer")
_PROXIED = Part("benchmarks.servers.proxied:ProxiedServer")

_BLOCKING = Part("benchmarks.clients.blocking:RpcflowClient")
_BLOCKING_NO_POLL = Part("benchmarks.clients.blocking:RpcflowClient", {"poll": False})
_TRIO = Part("benchmarks.clients.structured:TrioClient")
_TRIO_NO_POLL = Part("benchmarks.clients.structured:TrioClient", {"poll": False})
_ASYNCIO = Part("benchmarks.clients.structured:AsyncioClient")
_STOCK_CLIENT = Part("benchmarks.clients.blocking:StockClient")

SIDES: Mapping[str, Side] = {
    "rpcflow": Side(_OURS, _BLOCKING),
    "rpcflow, no polling": Side(_OURS_NO_POLL, _BLOCKING_NO_POLL),
    "rpcflow trio": Side(_OURS, _TRIO),
    "rpcflow trio, no polling": Side(_OURS_NO_POLL, _TRIO_NO_POLL),
    "rpcflow asyncio": Side(_OURS, _ASYNCIO),
    "rpcflow to tvm.rpc": Side(_STOCK, _BLOCKING),
    "tvm.rpc to rpcflow": Side(_OURS, _STOCK_CLIENT),
    "tvm.rpc": Side(_STOCK, _STOCK_CLIENT),
    "rpyc": Side(_RPYC, Part("benchmarks.clients.rpyc:RpycClient")),
    "grpcio": Side(_GRPC, Part("benchmarks.clients.grpc:GrpcClient")),
    "raw socket": Side(_RAW, Part("benchmarks.clients.raw:RawClient")),
    "raw socket, spinning": Side(
        Part("benchmarks.servers.raw:RawServer", {"spin": True}),
        Part("benchmarks.clients.raw:RawClient", {"spin": True}),
    ),
    "rpcflow cpu": Side(_OURS, Part("benchmarks.clients.devices:DeviceClient", {"kind": "cpu"})),
    "rpcflow opencl": Side(_OURS, Part("benchmarks.clients.devices:DeviceClient", {"kind": "opencl"})),
    "pyopencl": Side(_NOTHING, Part("benchmarks.clients.devices:LocalOpenCL")),
    "rpcflow sessions": Side(_OURS, Part("benchmarks.clients.sessions:RpcflowSessions")),
    "tvm.rpc sessions": Side(_STOCK, Part("benchmarks.clients.sessions:StockSessions")),
    "rpcflow fleet": Side(
        Part("benchmarks.servers.trackers:Fleet", {"tracker": "rpcflow", "server": "rpcflow"}),
        Part("benchmarks.clients.tracking:RpcflowTracking"),
    ),
    "tvm.rpc fleet": Side(
        Part("benchmarks.servers.trackers:Fleet", {"tracker": "tvm.rpc", "server": "tvm.rpc"}),
        Part("benchmarks.clients.tracking:StockTracking"),
    ),
    "tvm.rpc client, rpcflow tracker": Side(
        Part("benchmarks.servers.trackers:Fleet", {"tracker": "rpcflow", "server": "rpcflow"}),
        Part("benchmarks.clients.tracking:StockTracking"),
    ),
    "rpcflow crowd": Side(
        Part("benchmarks.servers.trackers:Fleet", {"tracker": "rpcflow"}),
        Part("benchmarks.clients.tracking:Crowd"),
    ),
    "rpcflow on a pipe": Side(_NOTHING, Part(_PIPE)),
    "rpcflow on a pipe, no polling": Side(_NOTHING, Part(_PIPE, {"poll": False})),
    "raw pipe": Side(_NOTHING, Part(_RAW_PIPE)),
    "raw pipe of 1 MiB": Side(_NOTHING, Part(_RAW_PIPE, {"nbytes": 1 << 20})),
    "rpcflow by TLS": Side(_TLS, _BLOCKING),
    "rpcflow by TLS, no polling": Side(Part(_TLS.target, {"poll": False}), _BLOCKING_NO_POLL),
    "rpcflow trio by TLS": Side(_TLS, _TRIO),
    "rpcflow sessions by TLS": Side(_TLS, Part("benchmarks.clients.sessions:RpcflowSessions")),
    "raw TLS": Side(Part("benchmarks.servers.tls:RawTlsServer"), Part("benchmarks.clients.tls:RawTlsClient")),
    "rpcflow by proxy": Side(_PROXIED, Part(_BLOCKING.target, {"key": "bench"})),
    "rpcflow by proxy, no polling": Side(
        Part(_PROXIED.target, {"poll": False}), Part(_BLOCKING.target, {"key": "bench", "poll": False})
    ),
    "rpcflow by tvm.rpc's proxy, no polling": Side(
        Part(_PROXIED.target, {"proxy": "tvm.rpc", "poll": False}),
        Part(_BLOCKING.target, {"key": "bench", "poll": False}),
    ),
    "tvm.rpc by tvm.rpc's proxy": Side(
        Part(_PROXIED.target, {"proxy": "tvm.rpc", "server": "tvm.rpc"}), Part(_STOCK_CLIENT.target, {"key": "bench"})
    ),
}
