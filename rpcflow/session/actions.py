# SPDX-License-Identifier: Apache-2.0
"""What a server machine asks its driver to do, and what a driver may answer with.

Each action's docstring names the one report of :class:`~rpcflow.session.server.ServerMachine` that ends it.
"""

from typing import Any, NamedTuple, Protocol

from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.packets import Code
from rpcflow.protocol.values import Device, Value

from .handles import Kind


class Memory(Protocol):
    """Device memory behind a handle, as far as the machine must know it."""

    @property
    def device(self) -> Device: ...
    @property
    def nbytes(self) -> int: ...


class Start(NamedTuple):
    """Begin the session with constructor arguments (none: here). Report ``started``, ``forwarded`` or
    error."""

    args: list[Value]


class Lookup(NamedTuple):
    """Find a global function. Report ``found``."""

    name: str


class Arguments(list[Any]):
    """Arguments that may come again, the same objects. ``ready``: what the driver has made of them, kept for then."""

    __slots__ = ("ready",)

    def __init__(self, args: list[Any]) -> None:
        super().__init__(args)
        self.ready: Any = None


class Call(NamedTuple):
    """Call a function. Report ``reply_call``."""

    function: Any
    args: list[Any]
    label: str


class CopyIn(NamedTuple):
    """``nbytes`` for ``memory`` from ``offset`` on are about to come. Name a sink by ``accept``, or report an
    error; :class:`CopiedIn` follows in either case once they are in."""

    memory: Any
    offset: int
    nbytes: int


class CopiedIn(NamedTuple):
    """The payload is in its sink. Report ``reply_none``. Not given for a CopyIn that failed."""

    memory: Any
    offset: int
    nbytes: int


class CopyOut(NamedTuple):
    """Send ``nbytes`` of ``memory`` from ``offset`` on. Report ``reply_data``."""

    memory: Any
    offset: int
    nbytes: int


class CopyAmong(NamedTuple):
    """Copy between two memories of this session. Report ``reply_none``."""

    source: Any
    source_offset: int
    target: Any
    target_offset: int
    nbytes: int
    stream: int


class Alloc(NamedTuple):
    """Allocate device memory. Report ``reply_memory``. ``scope`` is None for the default."""

    device: Device
    nbytes: int
    alignment: int
    dtype: DataType
    scope: str | None


class FreeData(NamedTuple):
    """Memory whose handle has just become void: let go of it. Report ``reply_none``."""

    memory: Any


class DeviceCall(NamedTuple):
    """Attributes and streams: ``code`` says which, ``args`` follow the device. Report ``reply_value``."""

    code: Code
    device: Device
    args: list[Any]


class BulkArgument(NamedTuple):
    """A long argument of ``function`` is about to come; ``values`` stand before it. A sink may be named by
    ``accept``; nothing needs to be reported."""

    function: Any
    values: list[Value]
    nbytes: int
    is_text: bool


class Closed(NamedTuple):
    """The client has said good-bye."""


Action = (
    Start
    | Lookup
    | Call
    | CopyIn
    | CopiedIn
    | CopyOut
    | CopyAmong
    | Alloc
    | FreeData
    | DeviceCall
    | BulkArgument
    | Closed
)


class Given(NamedTuple):
    """A result that stays here: ``obj`` gets a handle of this kind, the client a result of this type
    index."""

    type_index: int
    kind: Kind
    obj: Any


class GivenTensor(NamedTuple):
    """A tensor result: ``memory`` holds it from ``byte_offset`` on."""

    memory: Any
    dtype: DataType
    shape: tuple[int, ...]
    byte_offset: int = 0
