# SPDX-License-Identifier: Apache-2.0
"""The streams of a backend: what a client calls by a number, and drivers by an object."""

from typing import Any

from .base import BackendError


class Streams:
    """Streams by device and number.

    Args:
        what: kind of device, for errors.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._streams: dict[tuple[int, int], Any] = {}
        self._current: dict[int, int] = {}
        self._last = 0

    def add(self, dev_id: int, stream: Any) -> int:
        """A number for a new stream."""
        self._last += 1
        self._streams[dev_id, self._last] = stream
        return self._last

    def set_default(self, dev_id: int, stream: Any) -> None:
        """The stream that a device has from the start: number 0."""
        self._streams[dev_id, 0] = stream

    def check(self, dev_id: int, number: int) -> None:
        """Raise BackendError where the device has no such stream."""
        if number and (dev_id, number) not in self._streams:
            raise BackendError(f"{self._what}({dev_id}) has no stream {number}", device=f"{self._what}({dev_id})")

    def get(self, dev_id: int, number: int) -> Any:
        """A stream; for 0 the current one.

        Raises:
            BackendError: there is none of that number.
        """
        self.check(dev_id, number)
        return self._streams[dev_id, number or self._current.get(dev_id, 0)]

    def remove(self, dev_id: int, number: int) -> Any:
        """Forget a stream; if it was current, the first one is again.

        Raises:
            BackendError: there is none of that number, or it is the first.
        """
        self.check(dev_id, number)
        if not number:
            raise BackendError("the stream that a device has from the start is not freed")
        if self._current.get(dev_id) == number:
            del self._current[dev_id]
        return self._streams.pop((dev_id, number))

    def set_current(self, dev_id: int, number: int) -> None:
        """Make a stream current."""
        self.check(dev_id, number)
        self._current[dev_id] = number

    def current(self, dev_id: int) -> int:
        """The number of the current stream."""
        return self._current.get(dev_id, 0)

    def clear(self) -> list[Any]:
        """Forget them all; here they are."""
        streams = list(self._streams.values())
        self._streams.clear()
        self._current.clear()
        return streams
