# SPDX-License-Identifier: Apache-2.0
"""What sessions, devices, tensors and modules do, as requests in a row; both APIs run these same generators."""

import io
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rpcflow.arrays import contiguous_bytes, data_type, numpy_dtype, packed, to_numpy, unpacked
from rpcflow.devices import Attribute
from rpcflow.errors import FunctionNotFoundError, ProtocolError, RPCError
from rpcflow.protocol.dtype import DataType, DTypeCode
from rpcflow.protocol.packets import Code, SysCall, alloc_with_scope, copy_among, stream_sync
from rpcflow.protocol.sinks import ViewSink
from rpcflow.protocol.values import Device, ModuleRef, Pointer, TensorView
from rpcflow.session.results import RemoteHandle
from rpcflow.session.wire_errors import not_found

from .core import Operation, SessionCore, bytes_value
from .files import HostFiles
from .launching import loading_arguments
from .objects import BenchmarkResult, checked_shape

_CPU = 1
_PACKET_OVERHEAD = 44
_UPLOAD = "tvm.rpc.server.upload"
_FILE_FUNCTIONS = (_UPLOAD, "tvm.rpc.server.download", "tvm.rpc.server.remove", "tvm.rpc.server.load_module")


# ---------------------------------------------------------------------------------------------- functions


def find_function(core: SessionCore, name: str) -> Operation[int]:
    """The handle of a global function."""
    if not isinstance(name, str):
        raise TypeError(f"a function's name is text, not {name!r}")
    number = yield core.machine.lookup(name)
    if not number:
        raise not_found(name)
    return int(number)


def module_function(core: SessionCore, module: int, name: str, query_imports: bool = True) -> Operation[int]:
    """The handle of a module's function."""
    value = yield from core.call_builtin("tvm.rpc.server.ModuleGetFunction", [ModuleRef(module), name, query_imports])
    if value is None:
        raise not_found(name)
    return _handle(value, "ModuleGetFunction")


def load_module(
    core: SessionCore,
    path: str,
    backend: str | None = None,
    signature: Mapping[str, str | Sequence[str]] | None = None,
    options: Sequence[str] = (),
) -> Operation[int]:
    """The handle of a module loaded from a file of the session."""
    path = _path(path)
    rest = loading_arguments(backend, signature, options)
    files = yield from _kept_here(core, "tvm.rpc.server.load_module")
    if files is not None:
        from .loading import load

        if rest:
            raise ValueError("a device without files loads no kernels: no backend, signature or options")
        return (yield from load(core, path, files.read(path)))
    return _handle((yield from core.call_builtin("tvm.rpc.server.load_module", [path, *rest])), "load_module")


def system_lib(core: SessionCore) -> Operation[int]:
    """The handle of the module of what is linked into the server."""
    return _handle((yield from core.call_builtin("ffi.SystemLib", [])), "SystemLib")


def import_module(core: SessionCore, module: int, other: int) -> Operation[None]:
    """Let a module find the functions of another."""
    yield from core.call_builtin("tvm.rpc.server.ImportModule", [ModuleRef(module), ModuleRef(other)])


def time_evaluator(
    core: SessionCore,
    module: int | None,
    func_name: str,
    device: Device,
    number: int,
    repeat: int,
    min_repeat_ms: int,
    limit_zero_time_iterations: int,
    cooldown_interval_ms: int,
    repeats_to_cooldown: int,
    cache_flush_bytes: int,
    f_preproc: str,
) -> Operation[int]:
    """The handle of a function that measures another."""
    value = yield from core.call_builtin(
        "runtime.RPCTimeEvaluator",
        [
            None if module is None else ModuleRef(module),
            func_name,
            device.dev_type,
            device.dev_id,
            number,
            repeat,
            min_repeat_ms,
            limit_zero_time_iterations,
            cooldown_interval_ms,
            repeats_to_cooldown,
            cache_flush_bytes,
            f_preproc,
        ],
    )
    return _handle(value, "RPCTimeEvaluator")


def evaluation(value: Any) -> BenchmarkResult:
    """What an evaluator's answer says."""
    if not isinstance(value, bytes | bytearray) or len(value) % 8 or not value:
        raise ProtocolError("the time evaluator did not answer with times")
    return BenchmarkResult.from_bytes(value)


def _handle(value: Any, what: str) -> int:
    if type(value) is not RemoteHandle:
        raise ProtocolError(f"{what} answered with a {type(value).__name__}, not with a handle")
    return value.number


# ---------------------------------------------------------------------------------------------- files


def _kept_here(core: SessionCore, name: str) -> Operation[HostFiles | None]:
    """The session's files where the device keeps none, that is, has no function for uploads; else None, and the server
    has the function ``name``.

    Raises:
        FunctionNotFoundError: it has files, but no such function.
    """
    if core.files is None:
        try:
            yield from core.builtin(name)
            return None
        except FunctionNotFoundError:
            if not core.builtins.keys().isdisjoint(_FILE_FUNCTIONS):
                raise
            if name != _UPLOAD and (number := (yield core.machine.lookup(_UPLOAD))):
                core.builtins[_UPLOAD] = number
                raise
            core.files = HostFiles()
    return core.files


def upload(core: SessionCore, data: Any, target: str | None) -> Operation[None]:
    """Put a file into the session's folder."""
    name, view, mapped = _source(data, target)
    try:
        files = yield from _kept_here(core, _UPLOAD)
        if files is not None:
            files.write(name, view)
        else:
            yield from core.call_builtin(_UPLOAD, [name, bytes_value(view)])
    finally:
        view.release()
        if mapped is not None:
            try:
                mapped.close()
            except BufferError:
                pass  # a request that was cut short still looks into it; it is unmapped when that is collected


def _source(data: Any, target: str | None) -> tuple[str, memoryview, mmap.mmap | None]:
    if isinstance(data, str | os.PathLike):
        path = os.fspath(data)
        if "\n" in str(path):
            raise ValueError("upload takes a path, or bytes: text that is no path is uploaded as text.encode()")
        name = target if target is not None else os.path.basename(path)
        with open(path, "rb") as file:
            view, mapped = _contents(file)
        return _path(name), view, mapped
    if target is None:
        raise ValueError("data that has no name of its own is uploaded under a target: upload(data, target=...)")
    if isinstance(data, bytes | bytearray | memoryview):
        return _path(target), memoryview(data).cast("B"), None
    if hasattr(data, "read"):
        view, mapped = _contents(data)
        return _path(target), view, mapped
    raise TypeError(f"upload takes a path, bytes or a binary file, not a {type(data).__name__}")


def _contents(file: Any) -> tuple[memoryview, mmap.mmap | None]:
    """The rest of a file, mapped where that is possible."""
    if isinstance(file, io.TextIOBase):
        raise TypeError("upload takes a file opened in binary mode")
    plain = getattr(file, "file", file)  # what tempfile gives is wrapped
    if isinstance(getattr(plain, "raw", plain), io.FileIO):  # others may read other bytes than the disk's: gzip's do
        try:
            fd, position = file.fileno(), file.tell()
            size = os.fstat(fd).st_size
            if size > position:
                mapped = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
                return memoryview(mapped)[position:], mapped
        except (OSError, ValueError):
            pass  # a pipe, say
    data = file.read()
    if isinstance(data, str):
        raise TypeError("upload takes a file opened in binary mode")
    return memoryview(data), None


def _path(path: Any) -> str:
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise TypeError(f"a path is text, not {path!r}")
    return text


def download(core: SessionCore, path: str) -> Operation[bytearray]:
    """A file of the session."""
    path = _path(path)
    files = yield from _kept_here(core, "tvm.rpc.server.download")
    if files is not None:
        return bytearray(files.read(path))
    return _file((yield from core.call_builtin("tvm.rpc.server.download", [path])))


def download_linked_module(core: SessionCore, path: str) -> Operation[bytearray]:
    """A module of the session as a shared library."""
    path = _path(path)
    files = yield from _kept_here(core, "tvm.rpc.server.download_linked_module")
    if files is not None:
        from .loading import linked

        return (yield from linked(core, path, files.read(path)))
    return _file((yield from core.call_builtin("tvm.rpc.server.download_linked_module", [path])))


def _file(value: Any) -> bytearray:
    if isinstance(value, bytearray):
        return value
    if not isinstance(value, bytes):
        raise ProtocolError(f"the server answered with a {type(value).__name__}, not with a file")
    return bytearray(value)


def remove(core: SessionCore, path: str) -> Operation[None]:
    """Remove a file of the session."""
    path = _path(path)
    files = yield from _kept_here(core, "tvm.rpc.server.remove")
    if files is not None:
        files.remove(path)
    else:
        yield from core.call_builtin("tvm.rpc.server.remove", [path])


def listdir(core: SessionCore, path: str) -> Operation[str]:
    """The names in a folder of the session, joined by commas."""
    path = _path(path)
    files = yield from _kept_here(core, "tvm.rpc.server.listdir")
    if files is not None:
        return ",".join(files.listdir(path))
    return str((yield from core.call_builtin("tvm.rpc.server.listdir", [path]))).removesuffix(",")


# ---------------------------------------------------------------------------------------------- tensors


def empty(
    core: SessionCore, device: Device, shape: Sequence[int] | int, dtype: Any, mem_scope: str | None
) -> Operation[TensorView]:
    """Memory for a tensor."""
    kind, extents = data_type(dtype), checked_shape(shape)
    number = yield core.machine.alloc(alloc_with_scope(device, extents, kind, mem_scope))
    return TensorView(number, device, kind, extents)


def host_array(array: Any) -> tuple[npt.NDArray[Any], DataType]:
    """A host array, and the dtype of a tensor that holds it."""
    host = to_numpy(array)
    return host, data_type(host.dtype)


def write(core: SessionCore, view: TensorView, array: Any) -> Operation[None]:
    """Copy a host array to a tensor of the same shape, converted to its dtype."""
    host = to_numpy(array)
    lanes = () if view.dtype.lanes == 1 else (view.dtype.lanes,)
    if tuple(host.shape) not in (view.shape + lanes, view.shape):
        raise ValueError(f"an array of shape {host.shape} does not fit into a tensor of shape {view.shape + lanes}")
    dtype = numpy_dtype(view.dtype)
    if host.dtype != dtype:
        host = host.astype(dtype)
    data = contiguous_bytes(host)
    if view.dtype.bits < 8 and data.nbytes:
        data = packed(data, view.dtype.bits)
    if data.nbytes != view.nbytes:
        raise ValueError(f"an array of {data.nbytes} bytes does not fit into a tensor of {view.nbytes} bytes")
    limit = yield from core.packet_limit()
    block = _block(limit, view, data.nbytes)
    position = 0
    while position < data.nbytes:
        step = min(block, data.nbytes - position)
        yield core.machine.copy_to(
            view._replace(byte_offset=view.byte_offset + position), data[position : position + step]
        )
        position += step
    if view.device.dev_type != _CPU:
        yield core.machine.syscall(stream_sync(view.device))


def read(core: SessionCore, view: TensorView, target: npt.NDArray[Any] | None = None) -> Operation[npt.NDArray[Any]]:
    """A tensor as a host array."""
    lanes = () if view.dtype.lanes == 1 else (view.dtype.lanes,)
    if target is None:
        target = np.empty(view.shape + lanes, numpy_dtype(view.dtype))
    nbytes = view.nbytes
    whole = target.reshape(-1).view(np.uint8).data if nbytes else memoryview(b"")
    buffer = whole if view.dtype.bits >= 8 else memoryview(bytearray(nbytes))
    assert buffer.nbytes == nbytes
    limit = yield from core.packet_limit()
    if view.device.dev_type != _CPU:
        yield core.machine.syscall(stream_sync(view.device))
    block = _block(limit, view, nbytes)
    position = 0
    while position < nbytes:
        step = min(block, nbytes - position)
        yield core.machine.copy_from(
            view._replace(byte_offset=view.byte_offset + position),
            step,
            ViewSink(buffer[position : position + step]),
        )
        position += step
    if nbytes and buffer is not whole:
        unpacked(buffer, view.dtype.bits, whole, view.dtype.code == DTypeCode.INT)
    return target


def _block(limit: int, view: TensorView, nbytes: int) -> int:
    if not limit:
        return max(nbytes, 1)
    block = limit - _PACKET_OVERHEAD - 8 * len(view.shape)
    if block <= 0:
        raise RPCError(
            f"the server takes packets of {limit} bytes, too few for a tensor of {len(view.shape)} dimensions"
        )
    return block


def copy(core: SessionCore, source: TensorView, target: TensorView) -> Operation[None]:
    """Copy between two tensors of the server."""
    if source.nbytes != target.nbytes:
        raise ValueError(f"a tensor of {source.nbytes} bytes does not fit into one of {target.nbytes}")
    yield core.machine.syscall(copy_among(source, target))
    if _CPU not in (source.device.dev_type, target.device.dev_type):
        yield core.machine.syscall(stream_sync(target.device))


# ---------------------------------------------------------------------------------------------- devices


def attribute(core: SessionCore, device: Device, name: str) -> Operation[Any]:
    """What a device says of itself."""
    try:
        kind = Attribute[name]
    except KeyError:
        known = ", ".join(a.name for a in Attribute)
        raise AttributeError(f"a device has no attribute {name!r}; known are: {known}") from None
    value = yield core.machine.syscall(SysCall(Code.DEV_GET_ATTR, [device, int(kind)]))
    if kind is Attribute.exist:
        return bool(value)
    if kind is Attribute.max_thread_dimensions and isinstance(value, str):
        import json

        return json.loads(value)
    return value


def synchronize(core: SessionCore, device: Device, stream: int) -> Operation[None]:
    """Wait for a device."""
    yield core.machine.syscall(stream_sync(device, stream))


def create_stream(core: SessionCore, device: Device) -> Operation[int]:
    """A new stream."""
    return int((yield core.machine.syscall(SysCall(Code.DEV_CREATE_STREAM, [device]))))


def stream_call(core: SessionCore, code: Code, device: Device, stream: int) -> Operation[None]:
    """Free a stream, or make it current."""
    yield core.machine.syscall(SysCall(code, [device, Pointer(stream)]))
