# SPDX-License-Identifier: Apache-2.0
"""Remote devices and tensors, as far as they are the same in both APIs."""

import math
import operator
import statistics
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs

from rpcflow.devices import device_name
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.values import Device, TensorView, Value

from .core import RemoteReference, SessionCore

D = TypeVar("D", bound="DeviceBase")
_Self = TypeVar("_Self", bound="TensorBase")


class DeviceBase:
    """A device of a session's server."""

    __slots__ = ("_core", "dev_id", "dev_type")

    def __init__(self, core: SessionCore, dev_type: int, dev_id: int) -> None:
        self._core = core
        self.dev_type = dev_type
        self.dev_id = dev_id

    @property
    def _raw(self) -> Device:
        return Device(self.dev_type, self.dev_id)

    def _rpcflow_argument(self, core: SessionCore, i: int) -> Value:
        if core is not self._core:
            raise ValueError(f"argument {i} is a device of another session")
        return self._raw

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeviceBase):
            return NotImplemented
        return other._core is self._core and other._raw == self._raw

    def __hash__(self) -> int:
        return hash((id(self._core), self.dev_type, self.dev_id))

    def __repr__(self) -> str:
        return f"remote {device_name(self.dev_type)}({self.dev_id}) at {self._core.where}"


def own_device(core: SessionCore, device: Any) -> Device:
    """The device that a remote one of this session stands for.

    Raises:
        TypeError: it is none.
        ValueError: it is another session's.
    """
    if not isinstance(device, DeviceBase):
        raise TypeError(f"a device of the session is needed, not a {type(device).__name__}")
    if device._core is not core:
        raise ValueError(f"{device!r} belongs to another session")
    return device._raw


class _Owner:
    """Gives the memory behind a tensor and its views back, once none of them is left."""

    __slots__ = ("core", "device", "number", "was_returned")

    def __init__(self, core: SessionCore, device: Device, number: int, was_returned: bool) -> None:
        self.core = core
        self.device = device
        self.number = number
        self.was_returned = was_returned

    def __del__(self) -> None:
        machine = self.core.machine
        if self.was_returned:
            machine.drop(self.number)
        else:
            machine.drop_data(self.device, self.number)


class TensorBase:
    """A tensor in a server's memory.

    ``shape``: extents; ``dtype``: a DataType, equal to its name; ``nbytes``: of all elements; ``size``: how many
    elements.
    """

    __slots__ = ("__weakref__", "_core", "_device", "_owner", "_view")

    def __init__(self, core: SessionCore, view: TensorView, handle: int | None, owner: _Owner | None = None) -> None:
        self._core = core
        self._view = view
        self._device: Any = None
        if owner is None:
            owner = _Owner(core, view.device, view.data if handle is None else handle, handle is not None)
        self._owner = owner

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, outermost first."""
        return self._view.shape

    @property
    def dtype(self) -> DataType:
        """Type of the elements; compares equal to its name."""
        return self._view.dtype

    @property
    def ndim(self) -> int:
        """How many dimensions."""
        return len(self._view.shape)

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self._view.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take."""
        return self._view.nbytes

    def view(self: _Self, shape: Sequence[int], dtype: Any = None, byte_offset: int = 0) -> _Self:
        """The same memory seen as another tensor; nothing is copied.

        Args:
            shape: of the new tensor.
            dtype: of its elements; None keeps the dtype.
            byte_offset: where it begins, counted from this tensor's first byte.

        Raises:
            ValueError: it does not lie within this tensor.
        """
        from rpcflow.arrays import data_type

        made = TensorView(
            self._view.data,
            self._view.device,
            self._view.dtype if dtype is None else data_type(dtype),
            checked_shape(shape),
            self._view.byte_offset + byte_offset,
        )
        if byte_offset < 0 or byte_offset + made.nbytes > self.nbytes:
            raise ValueError(
                f"{made.nbytes} bytes from byte {byte_offset} on do not lie within a tensor of {self.nbytes} bytes"
            )
        return type(self)(self._core, made, None, self._owner)

    def __dlpack_device__(self) -> tuple[int, int]:
        self._shared()
        return self._view.device.dev_type, self._view.device.dev_id

    def _shared(self) -> Callable[[TensorView], Any]:
        if self._core.share is None:
            raise BufferError(f"{self!r} lies in another process: numpy() gives a copy")
        return self._core.share

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """The memory itself, for ``from_dlpack`` of NumPy, PyTorch, JAX and the like: in a session with this process,
        once its device's current stream has done all it was given. The memory lives until they let go of it, but no
        longer than the session where the device is no cpu.

        Raises:
            BufferError: the tensor lies in another process, or where other libraries cannot follow.
        """
        share = self._shared()
        return share(self._view).__dlpack__(max_version=max_version, dl_device=dl_device, copy=copy)

    def _rpcflow_argument(self, core: SessionCore, i: int) -> Value:
        if core is not self._core:
            raise ValueError(f"argument {i} is a tensor of another session")
        return self._view

    def __len__(self) -> int:
        if not self._view.shape:
            raise TypeError("a tensor without dimensions has no length")
        return self._view.shape[0]

    def __repr__(self) -> str:
        kind = device_name(self._view.device.dev_type)
        return f"<remote tensor {self.shape} {self.dtype} on {kind}({self._view.device.dev_id}) at {self._core.where}>"


def checked_shape(shape: Sequence[int] | int) -> tuple[int, ...]:
    """A shape as a tuple of ints.

    Raises:
        ValueError: an extent is negative, or the whole too large for any memory.
        TypeError: an extent is no int.
    """
    extents = (shape,) if isinstance(shape, int) else tuple(shape)
    checked = tuple(operator.index(extent) for extent in extents)
    if any(extent < 0 for extent in checked) or math.prod(checked) >= 1 << 60:
        raise ValueError(f"{extents} is not the shape of a tensor")
    return checked


@attrs.frozen
class BenchmarkResult:
    """What a time evaluator measured: ``results`` holds seconds per run, one for each repeat."""

    results: tuple[float, ...]

    @classmethod
    def from_bytes(cls, data: bytes | bytearray) -> "BenchmarkResult":
        """Read the server's answer: little-endian doubles."""
        return cls(struct.unpack(f"<{len(data) // 8}d", data))

    @property
    def mean(self) -> float:
        """Seconds."""
        return statistics.fmean(self.results)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.results)

    @property
    def min(self) -> float:
        """Seconds."""
        return min(self.results)

    @property
    def max(self) -> float:
        """Seconds."""
        return max(self.results)

    @property
    def std(self) -> float:
        """Seconds; of the repeats as the whole population."""
        return statistics.pstdev(self.results)

    def __str__(self) -> str:
        def ms(seconds: float) -> str:
            return f"{seconds * 1e3:.4f}"

        return (
            "Execution time summary (ms)\n"
            f"  mean {ms(self.mean)}  median {ms(self.median)}  max {ms(self.max)}  min {ms(self.min)}"
            f"  std {ms(self.std)}"
        )


__all__ = ["BenchmarkResult", "DeviceBase", "RemoteReference", "TensorBase", "checked_shape", "own_device"]
