# SPDX-License-Identifier: Apache-2.0
"""The interface of a backend."""

from typing import Any, Protocol

from rpcflow.errors import RPCError
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.sinks import Sink
from rpcflow.protocol.values import Device, Part


class BackendError(RPCError):
    """A device cannot do what was asked of it. ``device``: which one, or None."""

    device: str | None = None


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


class Backend(Protocol):
    """One kind of device. Whatever fails raises BackendError, or MemoryError for want of memory."""

    def attribute(self, dev_id: int, kind: int) -> int | str | None:
        """What the device says of itself; None for what it does not know."""

    def allocate(self, device: Device, nbytes: int, alignment: int, dtype: DataType, scope: str | None) -> Memory:
        """Memory of its own, aligned to 64 bytes at least."""

    def free(self, memory: Memory) -> None:
        """The session is done with ``memory``; tensors that functions have kept must stay valid."""

    def wrap(self, device: Device, address: int, nbytes: int, owner: Any) -> Memory:
        """Memory that something else owns."""

    def sink(self, memory: Memory, offset: int, nbytes: int) -> Sink:
        """Where data for ``memory`` shall be received to."""

    def received(self, memory: Memory, offset: int, nbytes: int, sink: Sink) -> None:
        """All data are in the sink: let them be in the device's memory."""

    def read(self, memory: Memory, offset: int, nbytes: int) -> Part:
        """The memory's contents as a buffer, valid until the next call."""

    def copy(
        self, source: Memory, source_offset: int, target: Memory, target_offset: int, nbytes: int, stream: int
    ) -> None:
        """Copy within this kind of device."""

    def set_device(self, dev_id: int) -> None:
        """Make a device current, where there is such a thing."""

    def synchronize(self, dev_id: int, stream: int) -> None:
        """Wait until the stream has done all it was given."""

    def create_stream(self, dev_id: int) -> int:
        """A new stream; 0 where there are none."""

    def free_stream(self, dev_id: int, stream: int) -> None:
        """Let go of a stream."""

    def set_stream(self, dev_id: int, stream: int) -> None:
        """Make a stream current."""

    def current_stream(self, dev_id: int) -> int:
        """The current stream."""
