# SPDX-License-Identifier: Apache-2.0
"""Blocking sessions, with the names of ``tvm.rpc``."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from rpcflow.arrays import data_type, numpy_dtype
from rpcflow.client import operations
from rpcflow.client.core import (
    FunctionReference,
    ModuleReference,
    ObjectKinds,
    RemoteReference,
    SessionCore,
    wrap,
)
from rpcflow.client.launching import Extents, launch_arguments
from rpcflow.client.objects import BenchmarkResult, DeviceBase, TensorBase, own_device
from rpcflow.devices import Attribute, device_type
from rpcflow.protocol.packets import Code
from rpcflow.registry import tvm_ffi

from .connection import Connection

_Self = TypeVar("_Self", bound="RPCSession")


class Function(FunctionReference):
    """A remote function: ``function(...)``."""

    __slots__ = ()

    def __call__(self, *args: Any, grid: Extents | None = None, block: Extents | None = None) -> Any:
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
        value = core.call(self._number, args, self.name)
        return value if type(value) is int else wrap(core, value, KINDS, self.name)


class TimeEvaluator(FunctionReference):
    """Measures a remote function: ``result = evaluator(...)``."""

    __slots__ = ()

    def __call__(self, *args: Any, grid: Extents | None = None, block: Extents | None = None) -> BenchmarkResult:
        """Measure with these arguments; times are in seconds per run. ``grid`` and ``block`` as for the function."""
        if grid is not None or block is not None:
            args += launch_arguments(grid, block)
        return operations.evaluation(_connection(self).call(self._number, args, self.name))


class Module(ModuleReference):
    """A remote module: ``module["name"](...)``."""

    __slots__ = ("_functions",)

    entry_name = "main"

    def __init__(self, core: SessionCore, number: int) -> None:
        super().__init__(core, number)
        self._functions: dict[str, Function] = {}

    def __getitem__(self, name: str) -> Function:
        """Find a function, once.

        Raises:
            FunctionNotFoundError: there is none of that name.
        """
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self.get_function(name)
        return function

    @property
    def entry_func(self) -> Function:
        """The function called :attr:`entry_name`."""
        return self[self.entry_name]

    def __call__(self, *args: Any, grid: Extents | None = None, block: Extents | None = None) -> Any:
        """Call the entry function."""
        return self.entry_func(*args, grid=grid, block=block)

    def get_function(self, name: str, query_imports: bool = True) -> Function:
        """Find a function.

        Raises:
            FunctionNotFoundError: there is none of that name.
        """
        core = _connection(self)
        number = core.run(operations.module_function(core, self._number, name, query_imports))
        return Function(core, number, name)

    def import_module(self, module: "Module") -> None:
        """Let this module find the functions of ``module``."""
        core = _connection(self)
        core.run(operations.import_module(core, self._number, module._own(core, 0)))

    def time_evaluator(
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
        handle = core.run(
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

    def tensor(self, array: Any) -> "Tensor":
        """A tensor with the contents of a host array (buffer protocol, DLPack or nested list; any strides)."""
        host, dtype = operations.host_array(array)
        made = self.empty(host.shape, dtype)
        core = _connection(self)
        core.run(operations.write(core, made._view, host))
        return made

    def empty(self, shape: Sequence[int] | int, dtype: Any = "float32", mem_scope: str | None = None) -> "Tensor":
        """A tensor of undefined contents.

        Args:
            shape: extents.
            dtype: of the elements: a name, or a dtype of NumPy, ml_dtypes or tvm-ffi.
            mem_scope: kind of memory; None for the default.
        """
        core = _connection(self)
        view = core.run(operations.empty(core, self._raw, shape, dtype, mem_scope))
        return Tensor(core, view, None)

    def sync(self, stream: int = 0) -> None:
        """Wait until the device has done all it was given."""
        core = _connection(self)
        core.run(operations.synchronize(core, self._raw, stream))

    def attr(self, name: str) -> Any:
        """What the device says of itself; each attribute is a property of its own name as well. None for what it does
        not know.

        Raises:
            AttributeError: there is no such attribute.
        """
        core = _connection(self)
        return core.run(operations.attribute(core, self._raw, name))

    def __getattr__(self, name: str) -> Any:
        if name in Attribute.__members__:
            return self.attr(name)
        raise AttributeError(f"a device has no attribute {name!r}")

    def create_stream(self) -> int:
        """A new stream; 0 where the device has none."""
        core = _connection(self)
        return core.run(operations.create_stream(core, self._raw))

    def set_stream(self, stream: int) -> None:
        """Make a stream current."""
        core = _connection(self)
        core.run(operations.stream_call(core, Code.DEV_SET_STREAM, self._raw, stream))

    def free_stream(self, stream: int) -> None:
        """Let go of a stream."""
        core = _connection(self)
        core.run(operations.stream_call(core, Code.DEV_FREE_STREAM, self._raw, stream))


class Tensor(TensorBase):
    """A tensor in the server's memory."""

    __slots__ = ()

    @property
    def device(self) -> Device:
        """Where it lies."""
        return Device(self._core, *self._view.device)

    def numpy(self) -> Any:
        """Its contents as a new NumPy array; lanes become a last dimension.

        Raises:
            TypeError: NumPy has no such dtype.
        """
        core = _connection(self)
        return core.run(operations.read(core, self._view))

    def copyfrom(self, array: Any) -> "Tensor":
        """Take the contents of a host array of the same shape, converted to this dtype."""
        core = _connection(self)
        core.run(operations.write(core, self._view, array))
        return self

    def copyto(self, target: "Tensor | Device") -> "Tensor":
        """Copy to another tensor, or into a new one on a device; across sessions by way of the host."""
        if isinstance(target, DeviceBase):
            made = Device(target._core, target.dev_type, target.dev_id).empty(self.shape, self.dtype)
        elif isinstance(target, Tensor):
            made = target
        else:
            raise TypeError(f"a tensor is copied to a tensor or a device, not to a {type(target).__name__}")
        core = _connection(self)
        if made._core is core:
            core.run(operations.copy(core, self._view, made._view))
        else:
            made.copyfrom(self.numpy())
        return made


KINDS = ObjectKinds(Function, Module, Tensor, Device)


def _connection(reference: RemoteReference | DeviceBase | TensorBase) -> Connection:
    core = reference._core
    assert isinstance(core, Connection)
    return core


class RPCSession:
    """A session with a server; made by :func:`connect`.

    It lives until it is closed, or until it and everything it gave out is collected.
    """

    def __init__(self, core: Connection) -> None:
        self._core = core

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        machine = self._core.machine
        return f"<rpcflow.sync session with {self._core.where}: {machine.state.value}, {machine.pending} pending>"

    def get_function(self, name: str) -> Function:
        """Find a function of the server.

        Raises:
            FunctionNotFoundError: there is none of that name.
        """
        return Function(self._core, self._core.run(operations.find_function(self._core, name)), name)

    def system_lib(self) -> Module:
        """The module of what is linked into the server's program."""
        return Module(self._core, self._core.run(operations.system_lib(self._core)))

    def load_module(
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
        return Module(self._core, self._core.run(operation))

    def upload(self, data: Any, target: str | None = None) -> None:
        """Put a file into the session's folder. For a device without files it is kept here, in memory.

        Args:
            data: a path, bytes, or a file opened in binary mode.
            target: its name there; None takes the name of the file at the path.
        """
        self._core.run(operations.upload(self._core, data, target))

    def download(self, path: str) -> bytearray:
        """The contents of a file of the session."""
        return self._core.run(operations.download(self._core, path))

    def download_linked_module(self, path: str) -> bytearray:
        """A module of the session as a shared library."""
        return self._core.run(operations.download_linked_module(self._core, path))

    def remove(self, path: str) -> None:
        """Remove a file of the session."""
        self._core.run(operations.remove(self._core, path))

    def listdir(self, path: str) -> str:
        """The names in a folder of the session, joined by commas."""
        return self._core.run(operations.listdir(self._core, path))

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

    def close(self) -> None:
        """End the session now."""
        self._core.close()


def tensor(array: Any, device: Any) -> Any:
    """A tensor on ``device`` with the contents of a host array: on a remote device as :meth:`Device.tensor`, on a
    local TVM-FFI device (cpu) a ``tvm_ffi.Tensor``."""
    if isinstance(device, Device):
        return device.tensor(array)
    host, _ = operations.host_array(array)
    return _local(device).from_dlpack(np.array(host, copy=True))


def empty(shape: Sequence[int] | int, dtype: Any, device: Any) -> Any:
    """As :func:`tensor`, of undefined contents."""
    if isinstance(device, Device):
        return device.empty(shape, dtype)
    return _local(device).from_dlpack(np.empty(shape, numpy_dtype(data_type(dtype))))


def _local(device: Any) -> Any:
    """tvm_ffi, for a device of this process.

    Raises:
        TypeError: that is no device.
        ValueError: it is one whose memory NumPy cannot make.
    """
    ffi = tvm_ffi()
    if ffi is None or not isinstance(device, ffi.Device):
        raise TypeError(f"{device!r} is not a device")
    if device.dlpack_device_type() != 1:
        raise ValueError("of the local devices only a cpu is supported")
    return ffi
