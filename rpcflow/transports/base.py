# SPDX-License-Identifier: Apache-2.0
"""The seam between protocol and network: send these buffers, receive into this one, close.

Contract of every channel, checked by one conformance suite:

- Bytes come out in the order they went in, or an error comes; none is lost or doubled before that.
- ``receive_into`` returns 0 at the other end's end of stream, and again each time it is asked after that.
- After ``close`` every call raises ConnectionLostError; closing again does nothing.
- Foreign errors are translated: ConnectionLostError for whatever the line does.
- A cancelled or timed-out ``send`` may have sent any part of what it was given: the stream is of no more use. A
  cancelled or timed-out ``receive_into`` has taken nothing.

A channel may have more, which whoever wants it looks for: ``finish()`` (a coroutine where the channel is for tasks)
closes it after giving the other end a moment to end by itself; ``crashed(call)`` gives the SessionCrashedError that
stands for a lost line, or None.
"""

from collections.abc import Sequence
from typing import Protocol

from rpcflow.protocol.values import Part

from .url import Url


class BlockingChannel(Protocol):
    """A channel for one thread at a time. Deadlines are readings of ``time.monotonic``; None is none."""

    def send(self, parts: Sequence[Part], deadline: float | None = None) -> None:
        """Send all ``parts`` in order, without joining them.

        Raises:
            TimeoutError: the deadline passed.
            ConnectionLostError: the line is gone.
        """

    def receive_into(self, buffer: memoryview, deadline: float | None = None) -> int:
        """Receive at least one byte; how many, or 0 at the end of the stream. Errors as :meth:`send`."""

    def close(self) -> None:
        """Close the line at once."""


class AsyncChannel(Protocol):
    """A channel for one sending and one receiving task."""

    async def send(self, parts: Sequence[Part]) -> None:
        """Send all ``parts`` in order, without joining them.

        Raises:
            ConnectionLostError: the line is gone.
        """

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive at least one byte; how many, or 0 at the end of the stream."""

    def close(self) -> None:
        """Close the line at once; never blocks, so it needs no await."""


class Transport(Protocol):
    """How one URL scheme connects. ``poll``: as for ``rpcflow.connect``."""

    async def connect(self, url: Url, *, poll: bool | None = None) -> AsyncChannel:
        """Connect from a task.

        Raises:
            ConnectionLostError: nobody answers there.
        """

    def connect_blocking(self, url: Url, *, deadline: float | None = None, poll: bool | None = None) -> BlockingChannel:
        """Connect from a thread.

        Raises:
            TimeoutError: the deadline passed.
            ConnectionLostError: nobody answers there.
        """
