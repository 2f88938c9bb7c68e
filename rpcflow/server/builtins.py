# SPDX-License-Identifier: Apache-2.0
"""The server's own functions, which a session sees before any registry: files, modules, timing."""

import os
from collections.abc import Callable
from typing import Any, Final

import attrs
import numpy as np

from rpcflow import registry
from rpcflow.backends import BackendTable
from rpcflow.backends.kernels import KernelModule, Location
from rpcflow.errors import FunctionNotFoundError, RPCError
from rpcflow.protocol.values import Device, FilePayload, TypeIndex
from rpcflow.session.actions import Given
from rpcflow.session.handles import Kind

from .evaluator import Settings, evaluate
from .folder import PREFIX, FileSink, RefusedSink, SessionFolder
from .guard import Guard
from .kernels import KernelLoader, is_library
from .linking import LOADABLE, linked
from .modules import ModuleError, ModuleLoader

_UNLIMITED: Final = 2**63 - 1
_LAST_LEVEL_CACHE_NBYTES: Final = 64 << 20


@attrs.frozen(eq=False)
class Builtin:
    """A function that takes values as the session has them and returns what a session can send."""

    name: str
    call: Callable[..., Any]

    @property
    def __name__(self) -> str:
        return self.name


class Builtins:
    """The functions of one session.

    Args:
        folder: where its files are.
        backends: for the time evaluator, which waits for devices.
        convert: makes of an argument what functions take.
        files_by_handle: whether long files are answered as FilePayload, to be sent straight from disk.
        guard: keeps to the session's grant; None where everything is granted. A function is put to it when it is
            looked up; here is what comes after that.
        locate: says where a tensor lies that a function is given.
    """

    def __init__(
        self,
        folder: SessionFolder,
        backends: BackendTable,
        convert: Callable[[Any], Any],
        files_by_handle: bool,
        guard: Guard | None = None,
        locate: Callable[[Any], Location | None] = lambda value: None,
    ) -> None:
        self._guard = guard
        self._kernels = KernelLoader(backends, locate, guard)
        self.folder = folder
        self._backends = backends
        self._convert = convert
        self._files_by_handle = files_by_handle
        self._modules = ModuleLoader(os.path.join(folder.path, PREFIX + "modules"), backends, guard)
        functions: dict[str, Callable[..., Any]] = {
            "tvm.rpc.server.GetCRTMaxPacketSize": lambda: _UNLIMITED,
            "tvm.rpc.server.upload": self.upload,
            "tvm.rpc.server.download": self.download,
            "tvm.rpc.server.remove": lambda name: folder.remove(str(name)),
            "tvm.rpc.server.listdir": lambda name: "".join(f"{n}," for n in folder.listdir(str(name))),
            "tvm.rpc.server.workpath": lambda name: os.path.join(folder.path, str(name)),
            "tvm.rpc.server.load_module": self.load_module,
            "tvm.rpc.server.download_linked_module": self.download_linked_module,
            "tvm.rpc.server.ModuleGetFunction": self.module_get_function,
            "tvm.rpc.server.ImportModule": lambda module, other: module.import_module(other),
            "runtime.RPCTimeEvaluator": self.time_evaluator,
            "cache_flush_cpu_non_first_arg": self.flush_caches,
        }
        self.table = {name: Builtin(name, call) for name, call in functions.items()}

    def upload(self, name: str, data: Any) -> None:
        """Put a file into the session's folder."""
        if self._guard is not None:
            self._guard.write()
        if isinstance(data, FileSink | RefusedSink):
            if data.error is not None:
                raise data.error
            return
        self.folder.write(str(name), data)

    def upload_sink(self, values: list[Any], nbytes: int | None = None) -> FileSink | RefusedSink | None:
        """Where the long data of an upload go as they arrive: so many; ``values`` stand before them."""
        if self._guard is not None:
            self._guard.write()
        if len(values) != 1 or not isinstance(values[0], str):
            return None  # upload itself will say what is wrong
        try:
            return self.folder.sink(str(values[0]), nbytes)
        except (OSError, RPCError) as error:
            return RefusedSink(error)

    def download(self, name: str) -> Any:
        """A file's contents."""
        return self._contents(self.folder.read(str(name)))

    def _contents(self, data: bytes | FilePayload) -> Any:
        if isinstance(data, FilePayload) and not self._files_by_handle:
            with os.fdopen(data.fd, "rb") as file:
                return file.read()
        return data

    def load_module(self, name: str, backend: str = "", signature: str = "", options: str = "") -> Given:
        """Load a compiled module, objects being linked first, or a file of kernels, which the rest is for."""
        module: Any
        path = self.folder.existing(str(name))
        if is_library(path):
            if backend or signature or options:
                raise ModuleError(f"{name!r} is a library: it takes no backend, signature or options")
            module = self._modules.load(self._linked(name))
        else:
            module = self._kernels.load(path, str(backend), str(signature), str(options))
        return Given(TypeIndex.MODULE, Kind.MODULE, module)

    def download_linked_module(self, name: str) -> Any:
        """A module as a shared library."""
        return self._contents(self.folder.read(self._linked(name)))

    def _linked(self, name: str) -> str:
        path = self.folder.existing(str(name))
        if self._guard is not None and not path.endswith(LOADABLE):
            self._guard.write()  # the library that is made of it
        return linked(path)

    def module_get_function(self, module: Any, name: str, query_imports: bool = True) -> Given | None:
        """A function of a module, or None."""
        if isinstance(module, KernelModule):
            return Given(TypeIndex.FUNCTION, Kind.FUNCTION, module.get_function(str(name)))
        try:
            function = module.get_function(str(name), bool(query_imports))
        except AttributeError:
            return None
        return None if function is None else Given(TypeIndex.FUNCTION, Kind.FUNCTION, function)

    def time_evaluator(
        self,
        module: Any,
        name: str,
        dev_type: int,
        dev_id: int,
        number: int,
        repeat: int,
        min_repeat_ms: int = 0,
        limit_zero_time_iterations: int = 100,
        cooldown_interval_ms: int = 0,
        repeats_to_cooldown: int = 1,
        cache_flush_bytes: int = 0,
        f_preproc: str = "",
    ) -> Given:
        """A function that measures another; see :mod:`rpcflow.server.evaluator`."""
        name = str(name)
        settings = Settings(
            number,
            repeat,
            min_repeat_ms,
            limit_zero_time_iterations,
            cooldown_interval_ms,
            repeats_to_cooldown,
            cache_flush_bytes,
        )
        device = Device(dev_type, dev_id)
        if self._guard is not None:
            self._guard.device(device)
        backend = self._backends.get(device)
        if module is None:
            function = self._global(name)
        else:
            found = self.module_get_function(module, name)
            function = self._global(name) if found is None else found.obj
        preprocess = self._global(str(f_preproc)) if f_preproc else None

        def measure(*args: Any) -> bytes:
            return evaluate(
                function,
                [self._convert(arg) for arg in args],
                settings,
                preprocess,
                lambda: backend.synchronize(dev_id, 0),
                backend.timer(dev_id),
                device,
            )

        return Given(TypeIndex.FUNCTION, Kind.FUNCTION, Builtin(f"time_evaluator({name})", measure))

    def _global(self, name: str) -> Callable[..., Any]:
        if self._guard is not None:
            self._guard.function(name)
        builtin = self.table.get(name)
        function = builtin.call if builtin is not None else registry.find(name)
        if function is None:
            raise FunctionNotFoundError(f"the server has no function {name!r}", function=name)
        return function

    def flush_caches(self, *args: Any) -> None:
        """Push the arguments behind the first out of the processor's caches.

        There is no instruction for that in Python: a walk through more memory than the caches hold pushes everything
        out, and the first argument is read back in.
        """
        np.zeros(_LAST_LEVEL_CACHE_NBYTES // 8, np.int64).sum()
        if args and hasattr(args[0], "__dlpack__"):
            try:
                first = np.from_dlpack(args[0])
            except (BufferError, RuntimeError, TypeError, ValueError):
                return  # not host memory, or no dtype of NumPy's: nothing of it is in our caches
            first.reshape(-1).view(np.uint8).max(initial=0)
