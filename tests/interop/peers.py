"""The clients and servers of the pairings, behind one thin face.

A `Client` is one way to talk: stock TVM, `rpcflow.sync`, or `rpcflow` under trio or asyncio. Scenarios are
written once, as blocking code; the asynchronous clients are reached through a portal into their event loop.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from typing import Any

from .serverside import callback

HOST = "127.0.0.1"
KEY = "interop"


class Through:
    """A value of the asynchronous API as blocking code sees it: every await goes through the portal."""

    def __init__(self, target: Any, portal: Any) -> None:
        self._target = target
        self._portal = portal

    def __getattr__(self, name: str) -> Any:
        return _wrap(getattr(self._target, name), self._portal)

    def __getitem__(self, key: Any) -> Any:
        return _wrap(self._target[key], self._portal)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        target = self._target
        plain = [_unwrap(arg) for arg in args]
        named = {key: _unwrap(value) for key, value in kwargs.items()}

        async def run() -> Any:
            result = target(*plain, **named)
            return await result if inspect.isawaitable(result) else result

        return _wrap(self._portal.call(run), self._portal)


def _wrap(value: Any, portal: Any) -> Any:
    if inspect.ismethod(value) or inspect.isfunction(value):
        return Through(value, portal)
    if isinstance(value, BaseException | bytes | str) or not type(value).__module__.startswith("rpcflow."):
        return value
    if type(value).__module__.startswith("rpcflow.protocol"):  # dtypes and the like are plain values
        return value
    return Through(value, portal)


def _unwrap(value: Any) -> Any:
    return value._target if isinstance(value, Through) else value


class Client:
    """One way to talk to a server."""

    name: str
    #: what the remote raised, and what any failure of RPC is
    RPCError: type[Exception]
    #: the end of the session's budget
    Timeout: type[Exception]

    def connect(self, port: int, key: str = KEY, **options: Any) -> contextlib.AbstractContextManager[Any]:
        raise NotImplementedError

    def tensor(self, device: Any, array: Any) -> Any:
        return device.tensor(array)

    def empty(self, device: Any, *args: Any, **kwargs: Any) -> Any:
        return device.empty(*args, **kwargs)

    def view(self, tensor: Any, shape: tuple[int, ...], dtype: Any = None, byte_offset: int = 0) -> Any:
        return tensor.view(shape, dtype, byte_offset)

    def attr(self, device: Any, name: str) -> Any:
        return getattr(device, name)

    def stream(self, device: Any, action: str, *args: Any) -> Any:
        return getattr(device, f"{action}_stream")(*args)

    def dtype(self, text: str) -> Any:
        from rpcflow.protocol import DataType

        return DataType.parse(text)

    def device_numbers(self, device: Any) -> tuple[int, int]:
        return int(device.dev_type), int(device.dev_id)

    def close(self) -> None:
        """Stop what belongs to this way of talking."""


class StockClient(Client):
    name = "stock"

    def __init__(self) -> None:
        import tvm
        import tvm.rpc

        self.RPCError = tvm.error.RPCError
        self.Timeout = tvm.error.RPCSessionTimeoutError

    @contextlib.contextmanager
    def connect(self, port: int, key: str = KEY, **options: Any) -> Iterator[Any]:
        import tvm.rpc

        session = tvm.rpc.connect(HOST, port, key, **options)
        try:
            yield session
        finally:
            # Tensors and functions that a failed test's traceback holds would keep the session open, and the
            # stock server serves nobody else until it ends.
            with contextlib.suppress(Exception):
                session._sess.get_function("CloseRPCConnection")()

    def tensor(self, device: Any, array: Any) -> Any:
        import tvm

        return tvm.runtime.tensor(array, device)

    def empty(self, device: Any, shape: Any, dtype: Any = "float32", mem_scope: str | None = None) -> Any:
        import tvm

        return tvm.runtime.empty(shape, dtype, device, mem_scope)

    def view(self, tensor: Any, shape: tuple[int, ...], dtype: Any = None, byte_offset: int = 0) -> Any:
        return tensor._create_view(shape, dtype, byte_offset)

    def stream(self, device: Any, action: str, *args: Any) -> Any:
        return getattr(device, f"{action}_raw_stream")(*args)

    def dtype(self, text: str) -> Any:
        import tvm_ffi

        return tvm_ffi.dtype(text)

    def device_numbers(self, device: Any) -> tuple[int, int]:
        return int(device.dlpack_device_type()) % 128, int(device.index)


class SyncClient(Client):
    name = "sync"

    def __init__(self) -> None:
        import rpcflow

        self.RPCError = rpcflow.RPCError
        self.Timeout = rpcflow.RPCSessionTimeoutError

    @contextlib.contextmanager
    def connect(self, port: int, key: str = KEY, **options: Any) -> Iterator[Any]:
        from rpcflow import sync as rpc

        with rpc.connect(HOST, port, key, **options) as session:
            yield session


class AsyncClient(SyncClient):
    """`rpcflow` under an event loop that runs in a thread of its own."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        from anyio.from_thread import start_blocking_portal

        self.name = backend
        self._stack = contextlib.ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal(backend))

    @contextlib.contextmanager
    def connect(self, port: int, key: str = KEY, **options: Any) -> Iterator[Any]:
        import rpcflow

        connection = rpcflow.connect(HOST, port, key, **options)
        with self._portal.wrap_async_context_manager(connection) as session:
            yield Through(session, self._portal)

    def attr(self, device: Any, name: str) -> Any:
        return device.attr(name)

    def close(self) -> None:
        self._stack.close()


def make_client(name: str) -> Client:
    if name == "stock":
        return StockClient()
    if name == "sync":
        return SyncClient()
    return AsyncClient(name)


class Servers:
    """Servers started when first asked for, kept until the end of the run."""

    def __init__(self) -> None:
        self._running: dict[tuple[Any, ...], Any] = {}
        # Runs side by side look for ports in different places.
        self._port = 20000 + os.getpid() * 97 % 20000

    def port(self, kind: str, key: str = KEY, name: str = "", **options: Any) -> int:
        """The port of the server of this kind ('stock' or 'rpcflow') and key; `name` tells equals apart."""
        wanted = (kind, key, name)
        if wanted not in self._running:
            self._running[wanted] = self._start(kind, key, **options)
        return int(self._running[wanted].port)

    def _start(self, kind: str, key: str, max_packet: int | None = None, **options: Any) -> Any:
        make: Any
        if kind == "stock":
            import tvm.rpc

            make = tvm.rpc.Server
        else:
            from rpcflow import sync

            make = sync.Server
        self._port += 1
        return make(
            HOST,
            self._port,
            self._port + 500,
            key=key,
            silent=True,
            server_init_callback=callback(max_packet),
            **options,
        )

    def close(self) -> None:
        for server in self._running.values():
            server.terminate()
        self._running.clear()


class Link:
    """An open session with the helpers that scenarios use."""

    def __init__(self, client: Client, session: Any, server: str) -> None:
        self.client = client
        self.session = session
        self.server = server

    def fn(self, name: str) -> Any:
        return self.session.get_function(name)

    def call(self, name: str, *args: Any) -> Any:
        return self.fn(name)(*args)

    @property
    def cpu(self) -> Any:
        return self.session.cpu(0)

    def tensor(self, array: Any) -> Any:
        return self.client.tensor(self.cpu, array)

    def empty(self, *args: Any, **kwargs: Any) -> Any:
        return self.client.empty(self.cpu, *args, **kwargs)
