# SPDX-License-Identifier: Apache-2.0
"""Sessions for trio, and by anyio for asyncio."""

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import anyio

from rpcflow.devices import device_type
from rpcflow.errors import WaitTimeoutError
from rpcflow.protocol.packets import Code
from rpcflow.protocol.values import Value
from rpcflow.session.client import ClientMachine
from rpcflow.transports import AsyncChannel, check_url, find_transport
from rpcflow.transports.greeting import greet_async

from . import operations
from .connection import Connection
from .core import FunctionReference, ModuleReference, ObjectKinds, Operation, RemoteReference, SessionCore, wrap
from .credentials import Credentials
from .launching import Extents, launch_arguments
from .objects import BenchmarkResult, DeviceBase, TensorBase, own_device
from .options import checked_options, constructor_arguments, firmware_path, greets


class Function(FunctionReference):
    """A remote function: ``await function(...)``."""

    __slots__ = ()

    async def __call__(self, *args: Any, grid: Extents | None = None, block: Extents | None = None) -> Any:
        """Call it with values, devices, tensors, functions, modules and objects of the same session.

        Args:
            args: as the function takes them.
            grid: for a kernel: how many blocks to launch, in x, y and z or fewer of them; it does not wait for them.
            block: for a kernel: threads of a block, likewise; None where the kernel says so itself.

        Raises:
            TypeError, ValueError, OverflowError: an argument does not travel; nothing was sent.
            RemoteError: the function raised.
            RPCError: the session ended.
        """
        core: Any = self._core
        if grid is not None or block is not None:
            args += launch_arguments(grid, block)
        value = await core.call(self._number, args, self.name)
        return value if type(value) is int else wrap(core, value, KINDS, self.name)


class TimeEvaluator(FunctionReference):
    """Measures a remote function: ``result = await evaluator(...)``."""

    __slots__ = ()

    async def __call__(self, *args: Any, grid: Extents | None = None, block: Extents | None = None) -> BenchmarkResult:
        """Measure with these arguments; times are in seconds per run. ``grid`` and ``block`` as for the function."""
        if grid is not None or block is not None:
            args += launch_arguments(grid, block)
        return operations.evaluation(await _connection(self).call(self._number, args, self.name))


class ModuleFunction:
    """A function of a module, found at its first call."""

    def __init__(self, module: "Module", name: str) -> None:
        self._module = module
        self._found: Function | None = None
        self.name = name

    async def __call__(self, *args: Any, grid: Extents | None = None, block: Extents | None = None) -> Any:
        """As :meth:`Function.__call__`.

        Raises:
            FunctionNotFoundError: the module has no function of that name.
        """
        if self._found is None:
            self._found = await self._module.get_function(self.name)
        return await self._found(*args, grid=grid, block=block)

    def _rpcflow_argument(self, core: SessionCore, i: int) -> Value:
        if self._found is None:
            raise TypeError(
                f"argument {i}: {self.name!r} has not been looked up yet; pass what module.get_function() gives"
            )
        return self._found._rpcflow_argument(core, i)

    def __repr__(self) -> str:
        return f"<function {self.name!r} of {self._module!r}>"


class Module(ModuleReference):
    """A remote module: ``await module["name"](...)``."""

    __slots__ = ("_functions",)

    entry_name = "main"

    def __init__(self, core: SessionCore, number: int) -> None:
        super().__init__(core, number)
        self._functions: dict[str, ModuleFunction] = {}

    def __getitem__(self, name: str) -> ModuleFunction:
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = ModuleFunction(self, name)
        return function

    @property
    def entry_func(self) -> ModuleFunction:
        """The function called :attr:`entry_name`."""
        return self[self.entry_name]

    async def __call__(self, *args: Any, grid: Extents | None = None, block: Extents | None = None) -> Any:
        """Call the entry function."""
        return await self.entry_func(*args, grid=grid, block=block)

    async def get_function(self, name: str, query_imports: bool = True) -> Function:
        """Find a function.

        Raises:
            FunctionNotFoundError: there is none of that name.
        """
        core = _connection(self)
        number = await core.run(operations.module_function(core, self._number, name, query_imports))
        return Function(core, number, name)

    async def import_module(self, module: "Module") -> None:
        """Let this module find the functions of ``module``."""
        core = _connection(self)
        await core.run(operations.import_module(core, self._number, module._own(core, 0)))

    async def time_evaluator(
        self,
        func_name: str,
        dev: "Device",
        number: int = 10,
        repeat: int = 1,
        min_repeat_ms: int = 0,
        limit_zero_time_iterations: int = 100,
        cooldown_interval_ms: int = 0,
        repeats_to_cooldown: int = 1,
        cache_flush_bytes: int = 0,
        f_preproc: str = "",
    ) -> TimeEvaluator:
        """A function that measures ``func_name``: one uncounted run, then ``repeat`` times ``number`` runs.

        Args:
            func_name: of this module, or of the server.
            dev: waited for before each reading of the clock.
            number: runs in one repeat.
            repeat: how many times are measured.
            min_repeat_ms: ``number`` grows until a repeat takes this many milliseconds.
            limit_zero_time_iterations: give up growing after so many readings of zero.
            cooldown_interval_ms: milliseconds to rest after every ``repeats_to_cooldown`` repeats.
            repeats_to_cooldown: see above.
            cache_flush_bytes: bytes to write before each repeat, to push data out of the caches.
            f_preproc: name of a function of the server to call, with the same arguments, before each repeat.
        """
        core = _connection(self)
        handle = await core.run(
            operations.time_evaluator(
                core,
                self._number,
                func_name,
                own_device(core, dev),
                number,
                repeat,
                min_repeat_ms,
                limit_zero_time_iterations,
                cooldown_interval_ms,
                repeats_to_cooldown,
                cache_flush_bytes,
                f_preproc,
            )
        )
        return TimeEvaluator(core, handle, f"time_evaluator({func_name})")


class Device(DeviceBase):
    """A device of the server."""

    __slots__ = ()

    async def tensor(self, array: Any) -> "Tensor":
        """A tensor with the contents of a host array (buffer protocol, DLPack or nested list; any strides)."""
        host, dtype = operations.host_array(array)
        made = await self.empty(host.shape, dtype)
        core = _connection(self)
        await core.run(operations.write(core, made._view, host))
        return made

    async def empty(self, shape: Sequence[int] | int, dtype: Any = "float32", mem_scope: str | None = None) -> "Tensor":
        """A tensor of undefined contents.

        Args:
            shape: extents.
            dtype: of the elements: a name, or a dtype of NumPy, ml_dtypes or tvm-ffi.
            mem_scope: kind of memory; None for the default.
        """
        core = _connection(self)
        view = await core.run(operations.empty(core, self._raw, shape, dtype, mem_scope))
        return Tensor(core, view, None)

    async def sync(self, stream: int = 0) -> None:
        """Wait until the device has done all it was given."""
        core = _connection(self)
        await core.run(operations.synchronize(core, self._raw, stream))

    async def attr(self, name: str) -> Any:
        """What the device says of itself: ``"exist"``, ``"max_threads_per_block"`` ...; None for what it does not know.

        Raises:
            AttributeError: there is no such attribute.
        """
        core = _connection(self)
        return await core.run(operations.attribute(core, self._raw, name))

    async def create_stream(self) -> int:
        """A new stream; 0 where the device has none."""
        core = _connection(self)
        return await core.run(operations.create_stream(core, self._raw))

    async def set_stream(self, stream: int) -> None:
        """Make a stream current."""
        core = _connection(self)
        await core.run(operations.stream_call(core, Code.DEV_SET_STREAM, self._raw, stream))

    async def free_stream(self, stream: int) -> None:
        """Let go of a stream."""
        core = _connection(self)
        await core.run(operations.stream_call(core, Code.DEV_FREE_STREAM, self._raw, stream))


class Tensor(TensorBase):
    """A tensor in the server's memory."""

    __slots__ = ()

    @property
    def device(self) -> Device:
        """Where it lies."""
        return Device(self._core, *self._view.device)

    async def numpy(self) -> Any:
        """Its contents as a new NumPy array; lanes become a last dimension.

        Raises:
            TypeError: NumPy has no such dtype.
        """
        core = _connection(self)
        return await core.run(operations.read(core, self._view))

    async def copyfrom(self, array: Any) -> "Tensor":
        """Take the contents of a host array of the same shape, converted to this dtype."""
        core = _connection(self)
        await core.run(operations.write(core, self._view, array))
        return self

    async def copyto(self, target: "Tensor | Device") -> "Tensor":
        """Copy to another tensor, or into a new one on a device; across sessions by way of the host."""
        if isinstance(target, DeviceBase):
            made = await Device(target._core, target.dev_type, target.dev_id).empty(self.shape, self.dtype)
        elif isinstance(target, Tensor):
            made = target
        else:
            raise TypeError(f"a tensor is copied to a tensor or a device, not to a {type(target).__name__}")
        core = _connection(self)
        if made._core is core:
            await core.run(operations.copy(core, self._view, made._view))
        else:
            await made.copyfrom(await self.numpy())
        return made


KINDS = ObjectKinds(Function, Module, Tensor, Device)


def _connection(reference: RemoteReference | DeviceBase | TensorBase) -> Connection:
    core = reference._core
    assert isinstance(core, Connection)
    return core


class Session:
    """A session with a server; made by :func:`connect`."""

    def __init__(self, core: Connection) -> None:
        self._core = core

    def __repr__(self) -> str:
        machine = self._core.machine
        return f"<rpcflow session with {self._core.where}: {machine.state.value}, {machine.pending} pending>"

    async def get_function(self, name: str) -> Function:
        """Find a function of the server.

        Raises:
            FunctionNotFoundError: there is none of that name.
        """
        return Function(self._core, await self._core.run(operations.find_function(self._core, name)), name)

    async def system_lib(self) -> Module:
        """The module of what is linked into the server's program."""
        return Module(self._core, await self._core.run(operations.system_lib(self._core)))

    async def load_module(
        self,
        path: str,
        *,
        backend: str | None = None,
        signature: Mapping[str, str | Sequence[str]] | None = None,
        options: Sequence[str] = (),
    ) -> Module:
        """Load an uploaded module: ``.so``, or ``.o`` and ``.tar``, which the server links; or kernels for one of the
        server's backends: ``.cl``, ``.spv``, ``.wgsl``, ``.cu``, ``.ptx``, ``.cubin``, ``.hip``, ``.hsaco`` or
        ``.metal``. For a device without files libraries are linked here, with the firmware named to :func:`connect`,
        and freed there when nothing refers to them.

        Args:
            path: its name in the session's folder.
            backend: for kernels: which backend loads them; None for the first that takes them and has a device.
            signature: for kernels that do not say themselves what they take: for each the types of its parameters,
                such as ``"float32*, float32*, int32"``: a dtype, with a ``*`` for tensors of it, or ``local`` for
                memory that a block shares, whose bytes are then the argument.
            options: for the compiler of the kernels.

        Raises:
            RPCError: there is no such file, compiling or linking failed, the device is another one, or it has no room.
        """
        operation = operations.load_module(self._core, path, backend, signature, options)
        return Module(self._core, await self._core.run(operation))

    async def upload(self, data: Any, target: str | None = None) -> None:
        """Put a file into the session's folder. For a device without files it is kept here, in memory.

        Args:
            data: a path, bytes, or a file opened in binary mode.
            target: its name there; None takes the name of the file at the path.
        """
        await self._core.run(operations.upload(self._core, data, target))

    async def download(self, path: str) -> bytearray:
        """The contents of a file of the session."""
        return await self._core.run(operations.download(self._core, path))

    async def download_linked_module(self, path: str) -> bytearray:
        """A module of the session as a shared library."""
        return await self._core.run(operations.download_linked_module(self._core, path))

    async def remove(self, path: str) -> None:
        """Remove a file of the session."""
        await self._core.run(operations.remove(self._core, path))

    async def listdir(self, path: str) -> str:
        """The names in a folder of the session, joined by commas."""
        return await self._core.run(operations.listdir(self._core, path))

    def device(self, dev_type: int | str, dev_id: int = 0) -> Device:
        """A device by the name or number of its kind. Nothing is sent: whether it exists, ``attr("exist")`` tells."""
        return Device(self._core, device_type(dev_type), dev_id)

    def cpu(self, dev_id: int = 0) -> Device:
        """A CPU."""
        return self.device("cpu", dev_id)

    def cuda(self, dev_id: int = 0) -> Device:
        """A CUDA device."""
        return self.device("cuda", dev_id)

    def cl(self, dev_id: int = 0) -> Device:
        """An OpenCL device."""
        return self.device("opencl", dev_id)

    def vulkan(self, dev_id: int = 0) -> Device:
        """A Vulkan device."""
        return self.device("vulkan", dev_id)

    def metal(self, dev_id: int = 0) -> Device:
        """A Metal device."""
        return self.device("metal", dev_id)

    def rocm(self, dev_id: int = 0) -> Device:
        """A ROCm device."""
        return self.device("rocm", dev_id)

    def ext_dev(self, dev_id: int = 0) -> Device:
        """An extension device."""
        return self.device("ext_dev", dev_id)

    def hexagon(self, dev_id: int = 0) -> Device:
        """A Hexagon device."""
        return self.device("hexagon", dev_id)

    def webgpu(self, dev_id: int = 0) -> Device:
        """A WebGPU device."""
        return self.device("webgpu", dev_id)

    async def aclose(self) -> None:
        """End the session now; leaving its block does the same."""
        await self._core.aclose()


class SessionContext:
    """An ``async with`` block around a session. Not awaitable; used once."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self._core: Connection | None = None

    async def __aenter__(self) -> Session:
        if self._make is None:
            raise RuntimeError("a session's block can be entered once")
        make, self._make = self._make, None
        self._core = await make()
        return Session(self._core)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._core is not None
        await self._core.aclose()


def connect(
    url: str,
    port: int | None = None,
    key: str = "",
    session_timeout: float = 0,
    session_constructor_args: Sequence[Any] | None = None,
    enable_logging: bool = False,
    *,
    wait_timeout: float | None = None,
    call_timeout: float | None = None,
    poll: bool | None = None,
    firmware: str | os.PathLike[str] | None = None,
    token: str | None = None,
    pin: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    identity: str | os.PathLike[str] | None = None,
) -> SessionContext:
    """A session with a server, for ``async with``.

    Args:
        url: host or address, or a whole URL (``tcp://host:port``, ``tls://host:port``, ``unix:///path`` ...).
        port: where ``url`` has none; 9091 by default.
        key: what the server answers to.
        session_timeout: seconds from when the server starts serving until it ends the session; 0 for none.
        session_constructor_args: where the session shall run: name of a constructor of the server
            (``"rpc.LocalSession"``, ``"rpc.Connect"``, ``"rpc.PopenSession"``, ``"rpc.CreatePipeClient"``) and its
            arguments.
        enable_logging: log each request to the logger ``rpcflow.session``.
        wait_timeout: seconds to wait for a server that is busy; None for ever.
        call_timeout: seconds for one operation; None for ever.
        poll: None polls adaptively before sleeping; False never does.
        firmware: path of the ELF file of what a device without Python runs; it lets
            :meth:`Session.load_module` link modules for it. In a ``serial:`` address, ``?firmware=`` says the same.
        token: bearer token, sent first, inside TLS or on lines that do not leave this machine.
        pin, ca: whom to trust, for ``tls:`` and ``wss:``: the pin of the other end's key, or a file with authorities
            (or the name of one of ours). By default the pin known from pairing, or else the system's authorities.
        identity: name or file of the key and certificate to show if asked; "" for none. By default the identity
            ``default``, if there is one.

    Raises:
        ValueError: an argument that cannot be.
        FileNotFoundError: there is no file ``firmware``.
        ConnectionLostError: nobody answers (on entering the block, as the next ones).
        WaitTimeoutError: the server stayed busy.
        KeyMismatchError: it answers to another key.
        AuthenticationError: the other end is not who it should be, or does not know us.
        PermissionDeniedError: it knows us, and does not let us do that.
        RemoteError: it refused the session constructor.
    """
    address, key_text = checked_options(url, port, key, session_timeout, wait_timeout, call_timeout)
    address = check_url(Credentials(token, pin, ca, identity).on(address, key))
    elf = firmware_path(address, firmware)
    transport = find_transport(address.scheme)

    async def make() -> Connection:
        channel: AsyncChannel | None = None
        try:
            with anyio.move_on_after(wait_timeout):
                channel = await transport.connect(address, poll=poll)
                if greets(transport):
                    await greet_async(channel, key_text)
                core = Connection(
                    channel, ClientMachine(), str(address), session_timeout or None, call_timeout, enable_logging
                )
                core.firmware = elf
                core.timed_here = not greets(transport)
                await initialize(core, session_constructor_args)
                return core
            raise WaitTimeoutError(f"{address} had no time for us within {wait_timeout:g} s", wait_timeout=wait_timeout)
        except BaseException:
            if channel is not None:
                channel.close()
            raise

    return SessionContext(make)


async def initialize(core: Connection, constructor: Sequence[Any] | None) -> None:
    """Begin the session on a line whose handshake is done."""
    values = core.arguments(constructor_arguments(constructor))

    def operation() -> Operation[None]:
        yield core.machine.init(values)

    await core.run(operation())
