# SPDX-License-Identifier: Apache-2.0
"""What stands between a backend and the library that drives its devices."""

import abc
import ctypes
from collections.abc import Callable
from typing import Any

from .base import BackendError, Timer


def call(kind: str, name: str, function: Callable[..., Any], *args: Any) -> Any:
    """What a library's function returns.

    Raises:
        MemoryError: it does.
        BackendError: it raises anything else: in its words.
    """
    try:
        return function(*args)
    except MemoryError as error:
        raise MemoryError(f"{name}: {error}") from error
    except Exception as error:  # it is anybody's code
        raise BackendError(f"{name}: {str(error) or type(error).__name__}", device=kind) from error


def pointer(data: memoryview) -> ctypes.c_void_p:
    """Where host memory begins; it can be written to, and is not empty."""
    return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(data)))


class Library(abc.ABC):
    """What drives the devices of a kind. ``raw`` stands for a block of memory, ``stream`` is 0 for the first."""

    in_pieces = True
    """Whether data to be written may come in pieces; else all that are written at once come at once."""

    @property
    @abc.abstractmethod
    def words(self) -> str:
        """Its name, for people."""

    @abc.abstractmethod
    def count(self) -> int:
        """How many devices there are."""

    @abc.abstractmethod
    def allocate(self, dev_id: int, nbytes: int, alignment: int, scope: str) -> tuple[Any, int]:
        """A block and its address.

        Raises:
            MemoryError: there is no room.
        """

    @abc.abstractmethod
    def free(self, dev_id: int, raw: Any) -> None:
        """Let go of a block."""

    @abc.abstractmethod
    def foreign(self, dev_id: int, address: int, nbytes: int, owner: Any) -> Any:
        """What stands for memory that something else owns, as a block does."""

    @abc.abstractmethod
    def write(self, dev_id: int, raw: Any, offset: int, data: memoryview, stream: int) -> None:
        """Host memory into a block."""

    @abc.abstractmethod
    def read(self, dev_id: int, raw: Any, offset: int, data: memoryview, stream: int) -> None:
        """A block into host memory."""

    @abc.abstractmethod
    def copy(
        self, dev_id: int, source: Any, source_offset: int, target: Any, target_offset: int, nbytes: int, stream: int
    ) -> bool:
        """Within a device; False (and nothing was done) where it has to go by way of the host."""

    @abc.abstractmethod
    def attribute(self, dev_id: int, kind: int) -> int | str | None:
        """What a device says of itself."""

    @abc.abstractmethod
    def create_stream(self, dev_id: int) -> int:
        """A stream; the first one where there are no others."""

    @abc.abstractmethod
    def free_stream(self, dev_id: int, stream: int) -> None:
        """Let go of it."""

    @abc.abstractmethod
    def set_device(self, dev_id: int) -> None:
        """Make a device current."""

    @abc.abstractmethod
    def set_stream(self, dev_id: int, stream: int) -> None:
        """Make a stream current."""

    @abc.abstractmethod
    def synchronize(self, dev_id: int, stream: int) -> None:
        """Wait for it."""

    def timer(self, dev_id: int, stream: int) -> Timer | None:
        """A timer of the device's own, or None."""
        return None
