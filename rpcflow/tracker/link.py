# SPDX-License-Identifier: Apache-2.0
"""The connecting end of a line to a tracker, for tasks: whoever registers there, asks there, or looks there.

The frames are those of :mod:`rpcflow.protocol.tracker`.
"""

import socket
from collections import deque
from typing import Any

import anyio

from rpcflow.errors import ConnectionLostError, ProtocolError, RPCError
from rpcflow.protocol.tracker import MAGIC_BYTES, encode_frame
from rpcflow.transports import AsyncChannel, Url, find_transport
from rpcflow.transports.sockets import end_sending

from .questions import CONNECT_SECONDS, RECEIVE_NBYTES, new_reader


class TrackerLink:
    """A line to a tracker. Made by :meth:`connect`; several tasks may use it."""

    def __init__(self, channel: AsyncChannel, url: Url) -> None:
        self._channel = channel
        self._url = url
        self._reader = new_reader()
        self._answers: deque[Any] = deque()
        self._buffer = memoryview(bytearray(RECEIVE_NBYTES))
        self._lock = anyio.Lock()
        self._idle: anyio.CancelScope | None = None
        self._open = True
        self.late_answer: Any = None
        """What had just arrived when a call was cancelled."""

    def __repr__(self) -> str:
        return f"<link to the tracker at {self._url}: {'open' if self._open else 'closed'}>"

    @property
    def open(self) -> bool:
        """Whether it can be used, as far as is known: a peer that goes is noticed by who waits for it."""
        return self._open

    @property
    def local_host(self) -> str:
        """The address of ours that the tracker sees us come from, unless something between us changes it."""
        sock = getattr(self._channel, "socket", None)
        name = sock.getsockname() if isinstance(sock, socket.socket) else None
        return str(name[0]) if isinstance(name, tuple) else "127.0.0.1"

    @classmethod
    async def connect(cls, url: Url) -> "TrackerLink":
        """Connect and exchange the magic. Cancelled, it leaves nothing.

        Raises:
            ConnectionLostError: nobody answers there within 30 s.
            ProtocolError: who answers is no tracker.
            ValueError: the URL's scheme is not known.
        """
        transport = find_transport(url.scheme)
        channel: AsyncChannel | None = None
        try:
            with anyio.move_on_after(CONNECT_SECONDS):
                channel = await transport.connect(url, poll=False)
                link = cls(channel, url)
                await channel.send([MAGIC_BYTES])
                await link._exchange_magic()
                return link
        except BaseException:
            if channel is not None:
                channel.close()
            raise
        if channel is not None:
            channel.close()
        raise ConnectionLostError(f"{url} has not answered within {CONNECT_SECONDS:g} s")

    async def call(self, message: list[Any], last_look: float = 0.0) -> Any:
        """Ask one thing, give its answer; tasks that ask at the same time are served in order.

        Cancelled while it waits for its turn, it leaves the line as it is; cancelled later, it closes the line,
        because the answer, which may never come, would be taken for the next one's.

        Args:
            message: what is asked.
            last_look: seconds that the tracker has, when the call is cancelled, to notice that; what it says until then
                becomes ``late_answer``.

        Raises:
            ConnectionLostError: the line goes, has gone, or is closed.
            ProtocolError: what comes is not what trackers send; the line is closed.
            ValueError: the message is longer than trackers take; nothing has happened.
        """
        frame = encode_frame(message)
        if self._idle is not None:
            self._idle.cancel()
        async with self._lock:
            try:
                self._check_open()
                await self._channel.send([frame])
                while not self._answers:
                    await self._receive()
                answer = self._answers.popleft()
                self._nothing_unasked()
                return answer
            except RPCError:
                self.close()
                raise
            except BaseException:
                await self._last_look(last_look)
                self.close()
                raise

    async def watch(self) -> None:
        """Stay with a line on which nothing is asked and notice when it goes; calls have precedence over it. For one
        task; never returns.

        Raises:
            ConnectionLostError: the line went.
            ProtocolError: the tracker said something that nobody had asked for; the line is closed.
        """
        while True:
            async with self._lock:
                self._check_open()
                if self._lock.statistics().tasks_waiting:
                    continue
                with anyio.CancelScope() as self._idle:
                    try:
                        await self._receive()
                        self._nothing_unasked()
                    except RPCError:
                        self.close()
                        raise
                    finally:
                        self._idle = None

    def close(self) -> None:
        """Close the line; who waits on it gets ConnectionLostError. What this connection offered there is withdrawn."""
        self._open = False
        self._channel.close()

    async def _last_look(self, seconds: float) -> None:
        """Take what comes until the tracker has noticed that we go: an answer may be on its way just as nobody wants it
        any more."""
        try:
            end_sending(self._channel)
            with anyio.move_on_after(seconds, shield=True):
                while not self._answers:
                    await self._receive()
        except RPCError:
            pass  # the line is closed in any case
        if self._answers:
            self.late_answer = self._answers.popleft()

    async def _exchange_magic(self) -> None:
        while not self._reader.between_frames:
            await self._receive()
            if self._answers:
                raise ProtocolError(f"{self._url} said more than a tracker's magic before it was asked anything")

    async def _receive(self) -> None:
        count = await self._channel.receive_into(self._buffer)
        if not count:
            raise ConnectionLostError(f"the tracker at {self._url} closed the connection")
        self._answers.extend(self._reader.feed(self._buffer[:count]))

    def _nothing_unasked(self) -> None:
        if self._answers or not self._reader.between_frames:
            raise ProtocolError(f"the tracker at {self._url} said something that was not asked")

    def _check_open(self) -> None:
        if not self._open:
            raise ConnectionLostError(f"the line to the tracker at {self._url} is closed")
