# SPDX-License-Identifier: Apache-2.0
"""Carries out what a server machine asks for. The same in a worker and in a LocalSession."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from rpcflow import registry
from rpcflow.backends import BackendError, BackendTable
from rpcflow.backends.kernels import KernelFunction
from rpcflow.devices import Attribute, device_name
from rpcflow.errors import PermissionDeniedError
from rpcflow.protocol.limits import DEFAULT_LIMITS, Limits
from rpcflow.protocol.packets import Code
from rpcflow.protocol.sinks import DiscardSink, Sink
from rpcflow.protocol.values import Device, FilePayload, Pointer, TensorView, Value
from rpcflow.security.grant import EVERYTHING, Grant
from rpcflow.session import actions
from rpcflow.session.server import ServerMachine
from rpcflow.transports.logs import LimitedLog

from .builtins import Builtin, Builtins
from .dlpack import DLPackExporter
from .folder import SessionFolder
from .guard import ELSEWHERE, LOCAL, Guard
from .values import make_bridge

_AS_IS: Final = frozenset({type(None), bool, int, float})
"""Plain values, which are the same on the wire and for functions."""
_OWN_NAMES: Final = "rpcflow."
"""Before the names by which clients ask for what a server can do; one that it does not know is not there."""
_DENIALS: Final = 100
"""Lines on what was denied in so many seconds as a :class:`LimitedLog` counts by."""
Forwarder = Callable[[str, list[Value]], None]
"""Begins a session elsewhere; the bytes behind it are the driver's business."""


class Executor:
    """One session's devices, functions and files, joined to its machine.

    Args:
        folder: where its files are.
        forward: begins a session elsewhere for constructors that do so (``rpc.Connect``, ``rpc.PopenSession``,
            ``rpc.CreatePipeClient``); None where that cannot be.
        files_by_handle: whether long files are sent straight from disk (FilePayload); their descriptors are in
            ``opened`` until :meth:`sent`.
        limits: how large things may be.
        grant: what the session may do.
        tell: whether there is a line on standard error for what is denied, which a supervisor passes on.
    """

    def __init__(
        self,
        folder: SessionFolder,
        forward: Forwarder | None = None,
        files_by_handle: bool = True,
        limits: Limits = DEFAULT_LIMITS,
        grant: Grant = EVERYTHING,
        tell: bool = True,
    ) -> None:
        self._who = grant.who or "a client"
        self._tell = tell
        self._log: LimitedLog | None = None
        self._guard = Guard.of(grant)
        self._backends = BackendTable()
        self._bridge = make_bridge(self._backends)
        self._builtins = Builtins(
            folder, self._backends, self._bridge.argument, files_by_handle, self._guard, self._bridge.locate
        )
        self._forward = forward
        self._sink: Sink | None = None
        self.opened: list[int] = []
        self._argument = self._bridge.argument
        self._result = self._bridge.result
        self.machine = ServerMachine(self._bridge.tensor, limits, self._bridge.same_again)

    def perform(self, action: actions.Action) -> None:
        """Do it and report it. Whatever user code raises goes to the client."""
        try:
            self._perform(action)
        except Exception as error:  # the client is told, whatever it is
            self._fail(error)
        except SystemExit as error:  # sys.exit() in user code ends its call, not the session
            self.machine.reply_error(RuntimeError(f"the function called sys.exit({error.code!r})"))

    def call(self, action: actions.Call) -> None:
        """As :meth:`perform`, for the action that comes most often."""
        try:
            function, args, _ = action
            if type(function) is Builtin:
                result = function.call(*args)
            elif type(function) is KernelFunction:
                result = None
                launch = args.ready if type(args) is actions.Arguments else None
                if launch is None:
                    launch = function.ready(args)
                    if type(args) is actions.Arguments:
                        args.ready = launch
                launch()
            else:
                convert = self._argument
                result = function(*[arg if type(arg) in _AS_IS else convert(arg) for arg in args])
                if type(result) not in _AS_IS:
                    result = self._result(result)
            if type(result) is FilePayload:
                self.opened.append(result.fd)
            self.machine.reply_call(result)
        except Exception as error:  # as above
            self._fail(error)
        except SystemExit as error:
            self.machine.reply_error(RuntimeError(f"the function called sys.exit({error.code!r})"))

    def share(self, view: TensorView) -> DLPackExporter:
        """A tensor's memory, for other libraries of this process, once its device has done all it was given.

        Raises:
            BufferError: its address means nothing to them.
        """
        memory = self.machine.memory(view)
        backend = self._backends.get(view.device)
        if backend.virtual:
            raise BufferError(f"memory of {backend.kind} devices has no address that other libraries know")
        backend.synchronize(view.device.dev_id, 0)
        return DLPackExporter(view.device, memory.address + view.byte_offset, view.dtype, view.shape, memory.owner)

    def sent(self) -> None:
        """All outgoing data have been sent: close the files they came from."""
        while self.opened:
            os.close(self.opened.pop())

    def close(self) -> None:
        """The session is over."""
        self.machine.close()
        self.sent()
        if self._log is not None:
            self._log.flush()
        self._backends.close()

    def _fail(self, error: Exception) -> None:
        self.machine.reply_error(error)
        if self._tell and isinstance(error, PermissionDeniedError):
            if self._log is None:
                self._log = _stderr_log()
            self._log.warning("denied", "%s is denied what it asked for: %s", self._who, error)

    def _perform(self, action: actions.Action) -> None:
        machine = self.machine
        if isinstance(action, actions.Call):
            self.call(action)
        elif isinstance(action, actions.Lookup):
            machine.found(self._find(action.name))
        elif isinstance(action, actions.CopyIn):
            self._check_device(action.memory.device)
            backend = self._backends.get(action.memory.device)
            self._sink = backend.sink(action.memory, action.offset, action.nbytes)
            machine.accept(self._sink)
        elif isinstance(action, actions.CopiedIn):
            assert self._sink is not None
            sink, self._sink = self._sink, None
            self._backends.get(action.memory.device).received(action.memory, action.offset, action.nbytes, sink)
            machine.reply_none()
        elif isinstance(action, actions.CopyOut):
            self._check_device(action.memory.device)
            backend = self._backends.get(action.memory.device)
            machine.reply_data(action.nbytes, backend.read(action.memory, action.offset, action.nbytes))
        elif isinstance(action, actions.CopyAmong):
            self._check_device(action.source.device)
            self._check_device(action.target.device)
            self._copy_among(action)
            machine.reply_none()
        elif isinstance(action, actions.Alloc):
            self._check_device(action.device)
            backend = self._backends.get(action.device)
            machine.reply_memory(
                backend.allocate(action.device, action.nbytes, action.alignment, action.dtype, action.scope)
            )
        elif isinstance(action, actions.FreeData):
            self._backends.get(action.memory.device).free(action.memory)
            machine.reply_none()
        elif isinstance(action, actions.DeviceCall):
            machine.reply_value(self._device_call(action))
        elif isinstance(action, actions.BulkArgument):
            self._accept_bulk(action)
        elif isinstance(action, actions.Start):
            self._start(action.args)
        else:
            assert isinstance(action, actions.Closed)

    def _copy_among(self, action: actions.CopyAmong) -> None:
        backend = self._backends.get(action.source.device)
        if action.source.device.dev_type == action.target.device.dev_type:
            backend.copy(*action)
            return
        _, source_offset, target, target_offset, nbytes, _ = action
        other = self._backends.get(target.device)
        part = backend.read(action.source, source_offset, nbytes)
        assert not isinstance(part, FilePayload)
        data = memoryview(part).cast("B")
        sink = other.sink(target, target_offset, nbytes)
        while data:
            room = sink.get_buffer()[: len(data)]
            room[:] = data[: len(room)]
            data = data[len(room) :]
            sink.filled(len(room))
        other.received(target, target_offset, nbytes, sink)

    def _find(self, name: str) -> Any:
        if self._guard is not None and not (name.startswith(_OWN_NAMES) and registry.find(name) is None):
            self._guard.function(name)
        builtin = self._builtins.table.get(name)
        return builtin if builtin is not None else registry.find(name)

    def _check_device(self, device: Device) -> None:
        if self._guard is not None:
            self._guard.device(device)

    def _accept_bulk(self, action: actions.BulkArgument) -> None:
        if action.function is not self._builtins.table["tvm.rpc.server.upload"]:
            return
        sink: Sink | None
        try:
            sink = self._builtins.upload_sink(action.values, action.nbytes)
        except (OSError, RuntimeError):
            sink = DiscardSink()  # the call itself says what is wrong, once its packet is whole
        if sink is not None:
            self.machine.accept(sink)

    def _start(self, args: Sequence[Value]) -> None:
        name, rest = (args[0], list(args[1:])) if args else (LOCAL, [])
        if not isinstance(name, str):
            raise ValueError("the first session constructor argument is a name")
        if self._guard is not None:
            self._guard.constructor(str(name))
        if name == LOCAL:
            if rest:
                raise ValueError(f"{LOCAL} takes no arguments")
            self.machine.started()
        elif name in ELSEWHERE and self._forward is not None:
            self._forward(str(name), rest)
            self.machine.forwarded()
        else:
            function = registry.find(str(name))
            if function is None:
                raise ValueError(f"the server has no session constructor {str(name)!r}")
            made = self._result(function(*[self._argument(arg) for arg in rest]))
            raise TypeError(f"{str(name)!r} is not a session constructor: it returned a {type(made).__name__}")

    def _device_call(self, action: actions.DeviceCall) -> Value:
        code, device = action.code, action.device
        if self._guard is not None:
            if code == Code.DEV_GET_ATTR and action.args[0] == Attribute.exist:
                if not self._guard.allows_device(device):
                    return 0  # for this session there is none
            else:
                self._guard.device(device)
        try:
            backend = self._backends.find(device.dev_type)
        except BackendError:
            if code != Code.DEV_GET_ATTR or action.args[0] != Attribute.exist:
                raise
            backend = None
        if backend is None:
            if code == Code.DEV_GET_ATTR and action.args[0] == Attribute.exist:
                return 0
            raise BackendError(
                f"this server has no backend for {device_name(device.dev_type)} devices",
                device=f"{device_name(device.dev_type)}({device.dev_id})",
            )
        dev_id = device.dev_id
        if code == Code.DEV_GET_ATTR:
            return backend.attribute(dev_id, action.args[0])
        if code == Code.DEV_CREATE_STREAM:
            return Pointer(backend.create_stream(dev_id))
        if code == Code.DEV_GET_CURRENT_STREAM:
            return Pointer(backend.current_stream(dev_id))
        if code == Code.DEV_SET_DEVICE:
            backend.set_device(dev_id)
        elif code == Code.DEV_STREAM_SYNC:
            backend.synchronize(dev_id, int(action.args[0]))
        elif code == Code.DEV_FREE_STREAM:
            backend.free_stream(dev_id, int(action.args[0]))
        else:
            assert code == Code.DEV_SET_STREAM
            backend.set_stream(dev_id, int(action.args[0]))
        return None


def _stderr_log() -> LimitedLog:
    """A log that no code of the session has a hand in, by the name that it has in the supervisor."""
    log = logging.Logger("rpcflow.server", logging.WARNING)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    log.addHandler(handler)
    return LimitedLog(log, _DENIALS)
