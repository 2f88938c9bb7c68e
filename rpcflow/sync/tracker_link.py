# SPDX-License-Identifier: Apache-2.0
"""The connecting end of a line to a tracker, for threads."""

import time
from collections import deque
from typing import Any

from rpcflow.errors import ConnectionLostError, ProtocolError, RPCError
from rpcflow.protocol.tracker import MAGIC_BYTES, encode_frame
from rpcflow.tracker.questions import RECEIVE_NBYTES, new_reader
from rpcflow.transports import BlockingChannel, Url, find_meeting_transport
from rpcflow.transports.sockets import end_sending


class BlockingTrackerLink:
    """As :class:`rpcflow.tracker.link.TrackerLink`, for one thread at a time. Deadlines are readings of
    ``time.monotonic``.

    Raises:
        TimeoutError: the deadline passed.
        ConnectionLostError, ProtocolError: no tracker answers there.
    """

    def __init__(self, url: Url, deadline: float | None = None) -> None:
        self._url = url
        self._reader = new_reader()
        self._answers: deque[Any] = deque()
        self._buffer = memoryview(bytearray(RECEIVE_NBYTES))
        transport = find_meeting_transport(url.scheme)
        self._channel: BlockingChannel = transport.connect_blocking(url, deadline=deadline, poll=False)
        self.open = True
        self.late_answer: Any = None
        """What had just arrived when a call was given up."""
        try:
            self._channel.send([MAGIC_BYTES], deadline)
            while not self._reader.between_frames:
                self._receive(deadline)
                self._nothing_unasked(done=False)
        except BaseException:
            self.close()
            raise

    def call(self, message: list[Any], deadline: float | None = None, last_look: float = 0.001) -> Any:
        """Ask one thing, give its answer. After any error but ValueError the line is closed.

        Args:
            message: what is asked.
            deadline: until when.
            last_look: seconds that the tracker has, when the call is given up, to notice that; what it says until then
                becomes ``late_answer``.

        Raises:
            TimeoutError: the deadline passed.
            ConnectionLostError: the line goes, has gone, or is closed.
            ProtocolError: what comes is not what trackers send.
            ValueError: the message is longer than trackers take.
        """
        frame = encode_frame(message)
        try:
            self._channel.send([frame], deadline)
            while not self._answers:
                self._receive(deadline)
            answer = self._answers.popleft()
            self._nothing_unasked()
            return answer
        except RPCError:
            self.close()
            raise
        except BaseException:  # the deadline, KeyboardInterrupt
            self._last_look(last_look)
            self.close()
            raise

    def close(self) -> None:
        """Close the line; another thread that waits on it gets ConnectionLostError."""
        self.open = False
        self._channel.close()

    def _last_look(self, seconds: float) -> None:
        try:
            end_sending(self._channel)
            deadline = time.monotonic() + seconds
            while not self._answers:
                self._receive(deadline)
        except (RPCError, TimeoutError):
            pass  # the line is closed in any case
        if self._answers:
            self.late_answer = self._answers.popleft()

    def _receive(self, deadline: float | None) -> None:
        count = self._channel.receive_into(self._buffer, deadline)
        if not count:
            raise ConnectionLostError(f"the tracker at {self._url} closed the connection")
        self._answers.extend(self._reader.feed(self._buffer[:count]))

    def _nothing_unasked(self, done: bool = True) -> None:
        if self._answers or (done and not self._reader.between_frames):
            raise ProtocolError(f"the tracker at {self._url} said something that was not asked")
