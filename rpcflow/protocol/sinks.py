# SPDX-License-Identifier: Apache-2.0
"""Where the bulk data of a packet goes as it arrives."""

from typing import Final, Protocol

from .growing import grow

_GROWTH: Final = 8
_FIRST_NBYTES: Final = 1 << 20
_SCRATCH_NBYTES: Final = 1 << 16


class Sink(Protocol):
    """Takes ``nbytes`` in order. The same four calls serve memory, tensors and files.

    Nothing here may raise: what goes wrong (a full disk) is kept for later, because until the data are in the
    line belongs to them.
    """

    def get_buffer(self) -> memoryview:
        """Room for the next bytes; never empty while bytes are missing. It is valid until the next call."""

    def filled(self, nbytes: int) -> None:
        """So many bytes have been put into the room given last."""

    def finish(self) -> object:
        """All bytes are there: what stands for them as a value. Called once."""

    def abandon(self) -> None:
        """The rest will not come: let go of what was taken."""


class ViewSink:
    """Straight into memory that is there already.

    Args:
        view: as long as the data to come.
    """

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._pos = 0

    def get_buffer(self) -> memoryview:
        return self._view[self._pos :] if self._pos else self._view

    def filled(self, nbytes: int) -> None:
        self._pos += nbytes

    def finish(self) -> memoryview:
        return self._view

    def abandon(self) -> None:
        pass  # the memory is its owner's


class DiscardSink:
    """Nowhere: for data behind a request that failed."""

    def __init__(self) -> None:
        self._scratch = memoryview(bytearray(_SCRATCH_NBYTES))

    def get_buffer(self) -> memoryview:
        return self._scratch

    def filled(self, nbytes: int) -> None:
        pass

    def finish(self) -> None:
        return None

    def abandon(self) -> None:
        pass


class MemorySink:
    """Into memory that grows as the bytes come: what is claimed costs nothing, what is sent does. Room is made for
    several times what has come, but the system gives memory only for what is written.

    Args:
        nbytes: how many bytes will come.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._data = bytearray(min(nbytes, _FIRST_NBYTES))
        self._pos = 0
        self._last = memoryview(b"")

    def get_buffer(self) -> memoryview:
        self._last.release()  # a bytearray that is looked into cannot grow
        data = self._data
        if self._pos == len(data):
            grow(data, min(_GROWTH * len(data), self._nbytes))
        with memoryview(data) as view:
            self._last = view[self._pos :]
        return self._last

    def filled(self, nbytes: int) -> None:
        self._pos += nbytes

    def finish(self) -> bytearray:
        self._last.release()
        return self._data

    def abandon(self) -> None:
        self._last.release()
        self._data = bytearray()
