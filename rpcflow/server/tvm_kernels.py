# SPDX-License-Identifier: Apache-2.0
"""Device code inside modules that TVM compiled, run by our backends.

A module's library names for each import the loader ``ffi.Module.load_from_bytes.KIND``, which has to give a module.
tvm-ffi has no way to make one in Python, but for one by which programs offer what is linked into them: symbols
registered with ``TVMFFIEnvModRegisterSystemLibSymbol`` and gathered by ``ffi.SystemLib`` under a prefix. So a kernel
becomes such a symbol, of a C function that calls us back. What is registered so stays until the process ends.

The compiled host function launches what it finds in its imports, and looks for ``__tvm_set_device`` there before it
takes TVM's, which knows nothing of our devices.

The bytes are as TVM 0.25 to 0.27 write them: ``SaveToBytes`` of the modules for OpenCL and WebGPU, numbers in
little-endian, texts and lists with their length as a u64 before them.
"""

import ctypes
import struct
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final

import attrs

from rpcflow import registry
from rpcflow.backends import Backend, BackendTable, KernelError
from rpcflow.backends.base import KernelSource
from rpcflow.backends.kernels import KernelFunction, Location
from rpcflow.devices import DEVICE_TYPES
from rpcflow.protocol.dtype import DataType, DTypeCode

from .guard import Guard

KINDS: Final = {"opencl": ".cl", "webgpu": ".wgsl"}
"""Kinds of device whose code TVM writes as source, and the suffix of that."""
_SET_DEVICE: Final = "__tvm_set_device"
_AXES: Final = {
    f"{what}Idx.{axis}": 3 * i + j for i, what in enumerate(("block", "thread")) for j, axis in enumerate("xyz")
}
_NO_LAUNCH: Final = "paramWriteAccess:"
"""Begins a tag that tells a WebGPU runtime something and stands for no argument."""
_MOST: Final = 1 << 16
"""Functions of a module, or arguments of a function."""
_PREFIX: Final = "rpcflow_{}_"
_numbers: Final = count(1)  # prefixes are the process's, as what tvm-ffi registers is
_callbacks: Final[list[Any]] = []  # C code holds on to them for as long


@attrs.frozen
class FunctionInfo:
    """What TVM says of a kernel: ``dtypes`` of its arguments, handles being tensors, and the ``tags`` of what comes
    behind them."""

    name: str
    dtypes: tuple[DataType, ...]
    tags: tuple[str, ...]


class _Reader:
    """Takes apart what TVM wrote."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pos = 0

    def take(self, nbytes: int) -> bytes:
        if nbytes > len(self._data) - self._pos:
            raise KernelError(f"the module's device code ends after {len(self._data)} bytes, in the middle")
        self._pos += nbytes
        return self._data[self._pos - nbytes : self._pos]

    def number(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def count(self) -> int:
        number = self.number()
        if number > _MOST:
            raise KernelError(f"the module's device code cannot be read: it has a list of {number}")
        return number

    def text(self) -> str:
        return self.take(self.number()).decode("utf-8", "replace")

    def functions(self) -> dict[str, FunctionInfo]:
        return {self.text(): self._function() for _ in range(self.count())}

    def _function(self) -> FunctionInfo:
        name = self.text()
        dtypes = tuple(DataType(*struct.unpack("<BBH", self.take(4))) for _ in range(self.count()))
        tags = tuple(self.text() for _ in range(self.count()))
        self.take(4 * self.count())  # tags of arguments; tensor maps are CUDA's
        return FunctionInfo(name, dtypes, tags)

    def end(self) -> None:
        if self._pos != len(self._data):
            raise KernelError(f"the module's device code has {len(self._data) - self._pos} bytes too many")


def parse(kind: str, data: bytes) -> tuple[dict[str, FunctionInfo], dict[str, str]]:
    """The functions in a module's device code, and their sources: by function, or one for all under "".

    Raises:
        KernelError: the bytes are not what TVM writes, or not source.
    """
    reader = _Reader(data)
    if kind == "opencl":
        form = reader.text()
        if form != "cl":
            raise KernelError(f"the module has OpenCL code in the form {form!r}; source ('cl') can be run")
        functions = reader.functions()
        sources = {"": reader.text()}
    else:
        functions = reader.functions()
        sources = {reader.text(): reader.text() for _ in range(reader.count())}
    reader.end()
    return functions, sources


class TvmLoaders:
    """The loaders of one session, for as long as a module is being loaded.

    Args:
        backends: the session's.
        guard: keeps to the session's grant; None where everything is granted.
    """

    def __init__(self, backends: BackendTable, guard: Guard | None = None) -> None:
        self._backends = backends
        self._guard = guard
        self.error: Exception | None = None
        """What a loader has raised; of its kind little is left on the way through tvm-ffi."""

    def functions(self) -> dict[str, Callable[..., Any]]:
        """By the names under which a module's library asks for them."""
        return {f"ffi.Module.load_from_bytes.{kind}": self._loader(kind) for kind in KINDS}

    def _loader(self, kind: str) -> Callable[[Any], Any]:
        def load(data: Any) -> Any:
            try:
                return self._load(kind, bytes(data))
            except Exception as error:
                self.error = error
                raise

        return load

    def _load(self, kind: str, data: bytes) -> Any:
        functions, sources = parse(kind, data)
        backend = self._backends.named(kind)
        why = backend.absence()
        if why is not None:
            raise KernelError(f"the module has device code for {kind}, of which there is no device here: {why}")
        guard = self._guard
        first = 0 if guard is None else guard.first_of(backend)
        check = None if guard is None else guard.of_backend(backend)
        kernels: dict[str, Any] = {}
        for name, text in sources.items():
            file = f"the module's {name or 'device code'}{KINDS[kind]}"
            kernels.update(backend.load(KernelSource(file, KINDS[kind], text.encode(), dev_id=first)))
        offered: dict[str, Callable[..., Any]] = {_SET_DEVICE: _device_setter(backend, check)}
        for name, info in functions.items():
            kernel = kernels.get(info.name)
            if kernel is None:
                raise KernelError(f"the module's device code lacks the kernel {info.name!r}", kernel=info.name)
            offered[name] = _launcher(backend, kernel, info, check)
        return _module(offered)


def _device_setter(backend: Backend, check: Callable[[int], None] | None) -> Callable[[int, int], None]:
    dev_type = DEVICE_TYPES[backend.kind]

    def set_device(kind: int, dev_id: int) -> None:
        if kind == dev_type:
            if check is not None:
                check(dev_id)
            backend.set_device(dev_id)
        elif (other := registry.find(_SET_DEVICE)) is not None:
            other(kind, dev_id)

    return set_device


class _Address(int):
    """A pointer among numbers."""


def _launcher(
    backend: Backend, kernel: Any, info: FunctionInfo, check: Callable[[int], None] | None
) -> Callable[..., None]:
    """Launches as TVM's compiled host functions ask for it: pointers and scalars, then extents as tagged."""
    dev_type = DEVICE_TYPES[backend.kind]
    find = backend.space.find  # type: ignore[attr-defined]  # both kinds have addresses of ours
    handles = [dtype.code == DTypeCode.OPAQUE for dtype in info.dtypes]
    order = [i for i, handle in enumerate(handles) if handle] + [i for i, handle in enumerate(handles) if not handle]
    if backend.kind == "opencl":
        order = list(range(len(handles)))  # elsewhere tensors come first, whatever the order they are passed in
    places = []
    for tag in info.tags:
        if not tag.startswith(_NO_LAUNCH):
            if tag not in _AXES:
                raise KernelError(f"{info.name} is launched with {tag!r}, which cannot be done here", kernel=info.name)
            places.append(_AXES[tag])
    own = len(handles)

    def locate(value: Any) -> Location | None:
        return Location(dev_type, find(value)[0].dev_id, value) if type(value) is _Address else None

    function = KernelFunction(backend, kernel, locate, check)

    def launch(*args: Any) -> None:
        if len(args) != own + len(places):
            raise KernelError(f"{info.name} takes {own + len(places)} arguments, not {len(args)}", kernel=info.name)
        extents = [1] * 6
        for place, extent in zip(places, args[own:], strict=True):
            extents[place] = max(int(extent), 1)  # of an empty tensor
        function(*(_Address(args[i].value or 0) if handles[i] else args[i] for i in order), *extents)

    return launch


def _module(functions: Mapping[str, Callable[..., Any]]) -> Any:
    """A module of tvm-ffi that has these functions."""
    ffi = registry.tvm_ffi()
    library = ctypes.CDLL(ffi.libinfo.find_libtvm_ffi())
    call = library.TVMFFIFunctionCall
    call.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)
    prefix = _PREFIX.format(next(_numbers))
    for name, function in functions.items():
        converted = ffi.convert(function)
        handle = _handle(converted)

        def called(_: Any, args: int, count: int, result: int, handle: int = handle, kept: Any = converted) -> int:
            return int(call(handle, args, count, result))

        callback = _SafeCall(called)
        _callbacks.append(callback)
        symbol = f"__tvm_ffi_{prefix}{name}".encode()
        if library.TVMFFIEnvModRegisterSystemLibSymbol(symbol, ctypes.cast(callback, ctypes.c_void_p)):
            raise KernelError(f"tvm-ffi does not take the function {name!r}")
    return ffi.system_lib(prefix)


_SafeCall: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)


def _handle(function: Any) -> int:
    return int(function.__chandle__())
