# SPDX-License-Identifier: Apache-2.0
"""Device memory that has no address of its own, under addresses of ours.

A driver's buffer object is no pointer, and what functions are given for a tensor is one, into which they may reckon.
So each block gets a range of a space that no pointer into host memory lies in: its number times 2**40.
"""

from collections.abc import Callable
from typing import Any, Final
from weakref import WeakValueDictionary

import attrs

from rpcflow.protocol.values import Device

from .base import BackendError

_SHIFT: Final = 40
_MASK: Final = (1 << _SHIFT) - 1


class Block:
    """Memory of a device, released when the last one who knows it lets go.

    ``raw``: what the driver calls it; ``address``: its first byte; ``dev_id``: whose it is.
    """

    __slots__ = ("__weakref__", "_release", "address", "dev_id", "nbytes", "raw")

    def __init__(self, dev_id: int, address: int, nbytes: int, raw: Any, release: Callable[[int, Any], None]) -> None:
        self.dev_id = dev_id
        self.address = address
        self.nbytes = nbytes
        self.raw = raw
        self._release = release

    def __del__(self) -> None:
        self._release(self.address, self.raw)


@attrs.define(eq=False)
class DeviceMemory:
    """A stretch of a block, or all of it."""

    device: Device
    nbytes: int
    address: int
    owner: Any
    block: Block
    arguments: dict[Any, Any] = attrs.Factory(dict)

    @property
    def offset(self) -> int:
        """Bytes before it in its block."""
        return self.address - self.block.address


class AddressSpace:
    """The blocks of one backend, by address.

    Args:
        what: kind of device, for errors.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._blocks: WeakValueDictionary[int, Block] = WeakValueDictionary()
        self._free: list[int] = []
        self._next = 1

    def take(self) -> int:
        """An address for a block about to be made; :meth:`give_back` when it goes, or never was."""
        if self._free:
            return self._free.pop() << _SHIFT
        number, self._next = self._next, self._next + 1
        return number << _SHIFT

    def put(self, block: Block) -> None:
        """The block is there."""
        self._blocks[block.address >> _SHIFT] = block

    def give_back(self, address: int) -> None:
        """The address is nobody's any more."""
        self._free.append(address >> _SHIFT)

    def find(self, address: int) -> tuple[Block, int]:
        """The block at an address, and how far into it that lies.

        Raises:
            BackendError: there is none.
        """
        block = self._blocks.get(address >> _SHIFT)
        offset = address & _MASK
        if block is None or offset > block.nbytes:
            raise BackendError(f"{address:#x} is not in the memory of a {self._what} device of this session")
        return block, offset


def check_nbytes(what: str, nbytes: int, most: int) -> None:
    """Raise MemoryError where a block of that size cannot be."""
    if nbytes > min(most, _MASK):
        raise MemoryError(f"{nbytes} bytes of {what} memory cannot be had at once; the device allows {most}")
