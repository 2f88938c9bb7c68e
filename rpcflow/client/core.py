# SPDX-License-Identifier: Apache-2.0
"""A session as its remote objects see it: the machine, what travels as an argument, what a result becomes.

Blocking and async sessions differ in how they wait, and in the classes of their objects; nothing else.
"""

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, TypeVar

import attrs
import numpy as np

from rpcflow.arrays import data_type
from rpcflow.errors import ConnectionLostError, FunctionNotFoundError, RPCError, RPCSessionTimeoutError
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.limits import BULK_NBYTES
from rpcflow.protocol.values import (
    SMALL_NBYTES,
    BulkBytes,
    Device,
    FunctionRef,
    ModuleRef,
    ObjectBytes,
    ObjectRef,
    ObjectText,
    Pointer,
    TensorView,
    TypeIndex,
    Value,
)
from rpcflow.session.client import ClientMachine, Request
from rpcflow.session.results import RemoteHandle, RemoteTensor
from rpcflow.session.wire_errors import not_found

from .aside import Aside
from .files import HostFiles

T = TypeVar("T")
Operation = Generator[Request | Aside, Any, T]
"""Several requests in a row, whoever waits for them: yields each request, is sent its result, returns the whole's."""

_AS_THEY_ARE: Final = frozenset({type(None), bool, int, float, DataType, Pointer})
_TIMEOUT_SLACK: Final = 0.05
"""Seconds by which the server's clock may be ahead of ours when a line is cut at the session's deadline."""
HARD_GRACE: Final = 5.0
"""Seconds after its deadline at which a session is given up if the server has not said a word."""


@attrs.define(eq=False)
class SessionCore:
    """What all objects of a session hold on to.

    Args:
        machine: the client's end.
        where: of the server, for messages.
        session_timeout: the budget in seconds; None or 0 for none.
        call_timeout: seconds for one call; None for none.
        log: whether each request is logged.
        timed_here: its other end knows of no timeout, so ending the session in time is ours alone.
        firmware: the path of the ELF file of what the device runs, where that is known.
        files: the session's, once it has turned out that the device keeps none.
        share: where the server is this process: an object of the DLPack protocol over a tensor's memory.
    """

    machine: ClientMachine
    where: str
    session_timeout: float | None = None
    call_timeout: float | None = None
    log: bool = False
    timed_here: bool = False
    began: float = attrs.Factory(time.monotonic)
    builtins: dict[str, int] = attrs.Factory(dict)
    max_packet: int | None = None
    firmware: str | None = None
    files: HostFiles | None = None
    share: Callable[[TensorView], Any] | None = None
    crashed: Callable[[str], RPCError | None] | None = None

    @property
    def hard_deadline(self) -> float | None:
        """When the session is given up whatever the server says, by ``time.monotonic``."""
        if not self.session_timeout:
            return None
        return self.began + self.session_timeout + (0.0 if self.timed_here else HARD_GRACE)

    def lost(self, error: RPCError, label: str = "") -> RPCError:
        """What a lost line means: at the deadline, that the time is up; that a process of ours at its other end has
        ended, where ``crashed`` knows of it (given the call in progress)."""
        if isinstance(error, ConnectionLostError) and self.session_timeout:
            used = time.monotonic() - self.began
            if used >= self.session_timeout - _TIMEOUT_SLACK:
                during = f" during {label!r}" if label else ""
                return RPCSessionTimeoutError(
                    f"the session's budget of {self.session_timeout:g} s is used up ({used:.1f} s{during}); "
                    "the option session_timeout raises it",
                    budget=float(self.session_timeout),
                    used=used,
                    call=label or None,
                )
        if isinstance(error, ConnectionLostError) and self.crashed is not None:
            crash = self.crashed(label)
            if crash is not None:
                self.machine.lost = crash
                return crash
        return error

    # ---- arguments

    def arguments(self, args: Sequence[Any]) -> list[Value]:
        """What travels for each argument.

        Raises:
            TypeError: it is of a kind that does not travel.
            ValueError: it belongs to another session.
        """
        values: list[Value] = []
        for i, arg in enumerate(args):
            kind = type(arg)
            if kind in _AS_THEY_ARE:
                values.append(arg)
            elif kind is str:
                # The plain form ends at a NUL in stock servers; the object form does not.
                values.append(ObjectText.of(arg) if "\0" in arg else arg)
            else:
                values.append(self._argument(i, arg))
        return values

    def _argument(self, i: int, arg: Any) -> Value:
        remote = getattr(arg, "_rpcflow_argument", None)
        if remote is not None:
            value: Value = remote(self, i)
            return value
        if isinstance(arg, bytes | bytearray | memoryview):
            return bytes_value(arg)
        if isinstance(arg, Device):
            return Device(*arg)
        if hasattr(arg, "type_code") or isinstance(arg, np.dtype):  # tvm_ffi.dtype is a str too
            return data_type(arg)
        if isinstance(arg, bool | int | float | str):
            return _without_subclass(arg)
        if hasattr(arg, "dlpack_device_type") and hasattr(arg, "index"):  # tvm_ffi.Device
            return Device(int(arg.dlpack_device_type()), int(arg.index))
        if hasattr(arg, "item") and getattr(arg, "ndim", None) == 0 and not hasattr(arg, "copyfrom"):
            return self._argument(i, arg.item()) if type(arg.item()) not in _AS_THEY_ARE else arg.item()
        if isinstance(arg, type):
            return data_type(arg)
        hint = "; device.tensor() makes a tensor of it" if isinstance(arg, list | tuple | np.ndarray) else ""
        raise TypeError(f"argument {i}: a {type(arg).__name__} does not travel over RPC{hint}")

    # ---- operations that others are made of

    def builtin(self, name: str) -> Operation[int]:
        """The handle of one of the server's own functions, looked up once in a session."""
        number = self.builtins.get(name)
        if number is None:
            number = yield self.machine.lookup(name)
            if not number:
                raise not_found(name)
            self.builtins[name] = number
        return number

    def call_builtin(self, name: str, args: list[Value]) -> Operation[Any]:
        """Call one of the server's own functions; the bare result."""
        number = yield from self.builtin(name)
        return (yield self.machine.call(number, args, name))

    def packet_limit(self) -> Operation[int]:
        """The longest packet the server takes, in bytes; 0 for no limit. Asked once in a session."""
        if self.max_packet is None:
            self.max_packet = 0
            if not self.machine.structured:
                try:
                    limit = yield from self.call_builtin("tvm.rpc.server.GetCRTMaxPacketSize", [])
                except FunctionNotFoundError:
                    return 0
                if isinstance(limit, int) and limit > 0:
                    self.max_packet = limit
        return self.max_packet


def _without_subclass(arg: Any) -> Value:
    for kind in (bool, int, float, str):
        if isinstance(arg, kind):
            return kind(arg)
    raise AssertionError


def bytes_value(data: bytes | bytearray | memoryview) -> Value:
    """Bytes in the form that stock clients send; long ones stay where they are."""
    view = memoryview(data).cast("B")
    if view.nbytes >= BULK_NBYTES:
        return BulkBytes(view)
    value = ObjectBytes(view)
    if len(value) <= SMALL_NBYTES:
        value.outer = TypeIndex.SMALL_BYTES
    return value


class RemoteReference:
    """Something at the server that we hold a handle of. Given back when this object is collected."""

    __slots__ = ("__weakref__", "_core", "_number")

    def __init__(self, core: SessionCore, number: int) -> None:
        self._core = core
        self._number = number

    def __del__(self) -> None:
        try:
            self._core.machine.drop(self._number)
        except AttributeError:
            pass  # its constructor failed

    def _own(self, core: SessionCore, i: int) -> int:
        if core is not self._core:
            raise ValueError(f"argument {i} belongs to another session")
        return self._number


class FunctionReference(RemoteReference):
    """A remote function; ``name`` as it was found."""

    __slots__ = ("name",)

    def __init__(self, core: SessionCore, number: int, name: str = "") -> None:
        super().__init__(core, number)
        self.name = name

    def _rpcflow_argument(self, core: SessionCore, i: int) -> Value:
        return FunctionRef(self._own(core, i))

    def __repr__(self) -> str:
        return f"<remote function {self.name or hex(self._number)} at {self._core.where}>"


class ModuleReference(RemoteReference):
    """A remote module."""

    __slots__ = ()

    def _rpcflow_argument(self, core: SessionCore, i: int) -> Value:
        return ModuleRef(self._own(core, i))

    def __repr__(self) -> str:
        return f"<remote module {self._number:#x} at {self._core.where}>"


class RemoteObject(RemoteReference):
    """Any other remote object; it can be passed to remote functions. ``type_index``: what the server calls its kind."""

    __slots__ = ("type_index",)

    def __init__(self, core: SessionCore, number: int, type_index: int) -> None:
        super().__init__(core, number)
        self.type_index = type_index

    def _rpcflow_argument(self, core: SessionCore, i: int) -> Value:
        return ObjectRef(self._own(core, i))

    def __repr__(self) -> str:
        return f"<remote object of type {self.type_index} at {self._core.where}>"


def wrap(core: SessionCore, value: Any, kinds: "ObjectKinds", label: str = "") -> Any:
    """What a result becomes for the program."""
    if type(value) in _AS_THEY_ARE:
        return value
    if type(value) is RemoteHandle:
        if value.type_index == TypeIndex.FUNCTION:
            return kinds.function(core, value.number, label)
        if value.type_index == TypeIndex.MODULE:
            return kinds.module(core, value.number)
        return RemoteObject(core, value.number, value.type_index)
    if type(value) is RemoteTensor:
        return kinds.tensor(core, value.view, value.number)
    if type(value) is Device:
        return kinds.device(core, value.dev_type, value.dev_id)
    # Long bytes are received into memory that grows; a result's kind must not depend on its length.
    return bytes(value) if type(value) is bytearray else value


@attrs.frozen
class ObjectKinds:
    """The classes of one API's objects."""

    function: Any
    module: Any
    tensor: Any
    device: Any
