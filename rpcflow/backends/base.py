# SPDX-License-Identifier: Apache-2.0
"""The interface of a backend."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import attrs

from rpcflow.errors import RPCError
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.sinks import Sink
from rpcflow.protocol.values import Device, Part


class BackendError(RPCError):
    """A device cannot do what was asked of it. ``device``: which one, or None."""

    device: str | None = None


class KernelError(BackendError):
    """A kernel cannot be compiled, or not be launched as asked. ``kernel``: its name, or None."""

    kernel: str | None = None


class Memory(Protocol):
    """A stretch of device memory."""

    @property
    def device(self) -> Device:
        """Where it lies."""

    @property
    def nbytes(self) -> int:
        """How long it is."""

    @property
    def address(self) -> int:
        """The pointer that a kernel is given for it, in the server's process."""

    @property
    def owner(self) -> Any:
        """Whatever must live for the memory to be valid."""

    @property
    def arguments(self) -> dict[Any, Any]:
        """Tensor objects made over it so far, by view; they must not keep this object itself alive."""


@attrs.frozen
class KernelSource:
    """A file of kernels: source or binary.

    ``name`` and ``suffix`` (lower case, with its dot) as uploaded; ``signature``: by kernel, the types of its
    parameters; ``options``: for the compiler; ``dev_id``: the device that it is for before others.
    """

    name: str
    suffix: str
    data: bytes
    signature: Mapping[str, Sequence[str]] = attrs.field(factory=dict)
    options: Sequence[str] = ()
    dev_id: int = 0

    @property
    def text(self) -> str:
        """The data as source.

        Raises:
            KernelError: they are no UTF-8.
        """
        try:
            return self.data.decode()
        except UnicodeDecodeError as error:
            raise KernelError(f"{self.name} is no source: {error}") from error


class Kernel(Protocol):
    """A kernel that can be launched."""

    @property
    def name(self) -> str:
        """As the module's functions are called."""

    @property
    def params(self) -> Sequence[Any]:
        """Its parameters, as :class:`rpcflow.backends.kernels.Param`."""

    @property
    def block(self) -> tuple[int, int, int] | None:
        """Threads of a block where the kernel says so itself, else None."""

    def launch(self, dev_id: int, args: list[Any], grid: tuple[int, int, int], block: tuple[int, int, int]) -> None:
        """Launch it on the device's current stream, and do not wait. The arguments are checked: for a tensor its
        address, for a scalar an int, a float or a bool."""


class Timer(Protocol):
    """Measures by the device's own clock."""

    def start(self) -> None:
        """From here on, in the order of the device's current stream."""

    def stop(self) -> float | None:
        """Up to here: wait for the device, and say how many seconds passed there. None where it has seen nothing of
        what ran, and the host's clock has to do."""


class Backend(abc.ABC):
    """One kind of device, for one session. Made by what the entry point names, without arguments and without touching
    a driver; that is loaded when it is first needed.

    Whatever fails raises BackendError, or MemoryError for want of memory. All calls come from one thread at a time.
    """

    kind: ClassVar[str]
    """The kind of device, by its name in :data:`rpcflow.devices.DEVICE_TYPES`."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Of the files of kernels that :meth:`load` takes."""
    virtual: ClassVar[bool] = False
    """Whether :attr:`Memory.address` is a pointer for this session alone, and means nothing to other libraries."""

    def absence(self) -> str | None:
        """Why there is no such device here, and what to do about it; None where there is one."""
        return None

    def version(self) -> str:
        """Of the driver and what binds it; empty where there is nothing to say."""
        return ""

    @abc.abstractmethod
    def attribute(self, dev_id: int, kind: int) -> int | str | None:
        """What the device says of itself; None for what it does not know. Whether it exists: 1 or 0, never an error."""

    @abc.abstractmethod
    def allocate(self, device: Device, nbytes: int, alignment: int, dtype: DataType, scope: str | None) -> Memory:
        """Memory of its own, aligned to 64 bytes at least. ``scope``: kind of memory; None, "" or "global" for the
        usual one."""

    @abc.abstractmethod
    def free(self, memory: Memory) -> None:
        """The session is done with ``memory``; tensors that functions have kept must stay valid."""

    @abc.abstractmethod
    def wrap(self, device: Device, address: int, nbytes: int, owner: Any) -> Memory:
        """Memory that something else owns."""

    @abc.abstractmethod
    def sink(self, memory: Memory, offset: int, nbytes: int) -> Sink:
        """Where data for ``memory`` shall be received to."""

    @abc.abstractmethod
    def received(self, memory: Memory, offset: int, nbytes: int, sink: Sink) -> None:
        """All data are in the sink: let them be in the device's memory."""

    @abc.abstractmethod
    def read(self, memory: Memory, offset: int, nbytes: int) -> Part:
        """The memory's contents as a buffer, valid until the next call."""

    @abc.abstractmethod
    def copy(
        self, source: Memory, source_offset: int, target: Memory, target_offset: int, nbytes: int, stream: int
    ) -> None:
        """Copy within this kind of device; need not wait until it is done."""

    @abc.abstractmethod
    def synchronize(self, dev_id: int, stream: int) -> None:
        """Wait until the stream (0: the current one) has done all it was given."""

    def set_device(self, dev_id: int) -> None:  # noqa: B027  # nothing is the right thing for most
        """Make a device current, where there is such a thing."""

    def create_stream(self, dev_id: int) -> int:
        """A new stream; 0 where there are none."""
        return 0

    def free_stream(self, dev_id: int, stream: int) -> None:  # noqa: B027  # where there are none
        """Let go of a stream."""

    def set_stream(self, dev_id: int, stream: int) -> None:  # noqa: B027  # as above
        """Make a stream current; 0 is the one there is at first."""

    def current_stream(self, dev_id: int) -> int:
        """The current stream."""
        return 0

    def timer(self, dev_id: int) -> Timer | None:
        """A timer of the device's own; None where the host's clock has to do."""
        return None

    def load(self, source: KernelSource) -> Mapping[str, Kernel]:
        """The kernels in a file, by name.

        Raises:
            KernelError: it does not compile: in the compiler's own words.
        """
        raise BackendError(f"{self.kind} devices load no files of kernels", device=self.kind)

    def close(self) -> None:  # noqa: B027  # where there is nothing to let go of
        """The session is over: let go of everything. Memory that tensors elsewhere still look into goes with them."""
