# SPDX-License-Identifier: Apache-2.0
"""Frames of pairing over a channel, for tasks."""

from typing import Final

import anyio

from rpcflow.errors import ConnectionLostError, ProtocolError
from rpcflow.transports.base import AsyncChannel

from .pairing_frames import Frame, FrameReader

STEP_SECONDS: Final = 10.0
"""Until the other end has said what is due, where it has nothing to wait for."""
_GOODBYE_SECONDS: Final = 1.0
_GOODBYE_NBYTES: Final = 1 << 14


class FrameLine:
    """Sends and receives frames. Whoever opened the channel closes it."""

    def __init__(self, channel: AsyncChannel) -> None:
        self._channel = channel
        self._reader = FrameReader()

    async def send(self, frame: Frame) -> None:
        """Send one.

        Raises:
            ConnectionLostError: the line is gone.
        """
        await self._channel.send([frame.encode()])

    async def receive(self, seconds: float | None = None) -> Frame:
        """Receive one.

        Raises:
            ConnectionLostError: the line is gone, or has ended.
            ProtocolError: it is none.
            TimeoutError: it has not come within ``seconds``.
        """
        with anyio.fail_after(seconds):
            while True:
                buffer = memoryview(bytearray(self._reader.wanted))
                count = 0
                while count < len(buffer):
                    step = await self._channel.receive_into(buffer[count:])
                    if not step:
                        raise ConnectionLostError("the other end went away before the pairing was done")
                    count += step
                frame = self._reader.feed(bytes(buffer))
                if frame is not None:
                    return frame

    async def goodbye(self) -> None:
        """Let the other end read what it was told last: until it has gone, but not for long."""
        buffer = memoryview(bytearray(1024))
        left = _GOODBYE_NBYTES
        with anyio.move_on_after(_GOODBYE_SECONDS):
            try:
                while left > 0:
                    count = await self._channel.receive_into(buffer)
                    if not count:
                        return
                    left -= count
            except (ConnectionLostError, ProtocolError):
                return
