# SPDX-License-Identifier: Apache-2.0
"""What a server gave out: numbers on the line, objects behind them.

The life of a handle, seen from both ends:

==================  =====================================  =============  =======================
given by            stands for                             given back by  references
==================  =====================================  =============  =======================
GetGlobalFunc       a function                             FreeHandle     one for each look-up
answer to CallFunc  a function, module, tensor, object     FreeHandle     one for each answer
DevAllocData...     memory                                 DevFreeData    one
==================  =====================================  =============  =======================

A number is a slot with the count of uses that slot has had (its generation), so a number that was given back,
or never given out, is told from every live one. It is looked up here and never used as an address.
"""

import enum
from typing import Any, Final

import attrs

from rpcflow.errors import RPCError

_SLOT_BITS: Final = 32
_SLOT_MASK: Final = (1 << _SLOT_BITS) - 1
_GENERATIONS: Final = 1 << 30  # numbers stay below 2**62, for peers that keep them in signed integers


class Kind(enum.Enum):
    """What a handle stands for. Memory is freed by DevFreeData, all else by FreeHandle."""

    FUNCTION = "function"
    MODULE = "module"
    TENSOR = "tensor"
    MEMORY = "memory"
    OBJECT = "object"


class HandleError(RPCError):
    """A number that stands for nothing, or for another kind of thing. ``handle``: that number."""

    handle: int = 0


@attrs.define(eq=False)
class Entry:
    """One thing given out. ``label`` is its name for messages and the call in progress."""

    number: int
    kind: Kind
    obj: Any
    label: str
    references: int = 1


class HandleTable:
    """The table of one session."""

    def __init__(self) -> None:
        self._entries: list[Entry | None] = []
        self._generations: list[int] = []
        self._vacant: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, kind: Kind, obj: Any, label: str = "") -> int:
        """Give out a new number for ``obj``, with one reference."""
        if self._vacant:
            slot = self._vacant.pop()
        else:
            slot = len(self._entries)
            self._entries.append(None)
            self._generations.append(0)
        generation = self._generations[slot] = self._generations[slot] % _GENERATIONS + 1
        number = generation << _SLOT_BITS | slot
        self._entries[slot] = Entry(number, kind, obj, label)
        self._count += 1
        return number

    def get(self, number: int) -> Entry:
        """The entry of a number.

        Raises:
            HandleError: it was never given out, or has been given back.
        """
        slot = number & _SLOT_MASK
        if slot < len(self._entries):
            entry = self._entries[slot]
            if entry is not None and entry.number == number:
                return entry
        raise HandleError(f"{number:#x} is no handle of this session, or was freed before", handle=number)

    def get_kind(self, number: int, *kinds: Kind) -> Entry:
        """As :meth:`get`, for a number that must stand for one of ``kinds``.

        Raises:
            HandleError: no such handle, or one of another kind.
        """
        entry = self.get(number)
        if entry.kind not in kinds:
            wanted = " or ".join(kind.value for kind in kinds)
            raise HandleError(f"the handle {number:#x} stands for a {entry.kind.value}, not a {wanted}", handle=number)
        return entry

    def release(self, number: int, *kinds: Kind) -> Entry:
        """Take one reference back; with the last one the number is void.

        Raises:
            HandleError: as :meth:`get_kind`.
        """
        entry = self.get_kind(number, *kinds)
        entry.references -= 1
        if entry.references == 0:
            slot = number & _SLOT_MASK
            self._entries[slot] = None
            self._vacant.append(slot)
            self._count -= 1
        return entry

    def clear(self) -> None:
        """Let go of everything: the session is over."""
        self._entries.clear()
        self._generations.clear()
        self._vacant.clear()
        self._count = 0
