# SPDX-License-Identifier: Apache-2.0
"""A device in Python at the other end of a line, in a thread: a link, and a tiny server for one session at a time."""

import threading
from collections.abc import Callable
from typing import Any

from rpcflow.errors import ConnectionLostError, RPCError
from rpcflow.protocol.link import DeviceLink, Sizes
from rpcflow.session.server import State
from rpcflow.transports.link_channel import BlockingLinkChannel, LinkEnd
from tests.session.tiny import TinyServer

SIZES = Sizes(payload=256, window=4, room=4)
ROOMY = Sizes(payload=64, window=64, room=64)


def serve_packets(channel: BlockingLinkChannel) -> None:
    """A session of packets."""
    server, buffer = TinyServer(), memoryview(bytearray(1 << 16))
    while server.machine.state is not State.CLOSED and (count := channel.receive_into(buffer)):
        if out := server.feed(bytes(buffer[:count])):
            channel.send([out])


def serve_echo(channel: BlockingLinkChannel) -> None:
    """Whatever comes goes back."""
    buffer = memoryview(bytearray(1 << 16))
    while count := channel.receive_into(buffer):
        channel.send([buffer[:count]])


class Device:
    """Runs until it is closed or its line goes.

    Args:
        fd: not blocking; not closed.
        serve: what it does in a session.
    """

    def __init__(
        self, fd: int, serve: Callable[[BlockingLinkChannel], None] = serve_packets, sizes: Sizes = SIZES
    ) -> None:
        self.link = DeviceLink(sizes)
        self._fd = fd
        self._serve = serve
        self._stopped = False
        self._channel = self._next(1)
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def _next(self, session: int) -> BlockingLinkChannel:
        return BlockingLinkChannel(LinkEnd(self._fd, self.link, "the host", session), lambda: None)

    def _run(self) -> None:
        session = 1
        try:
            while not self._stopped:
                channel = self._channel
                try:
                    channel.begin()
                    self._serve(channel)
                except RPCError as error:
                    if "is gone" in str(error):  # the line; else the session is over, and the next one may come
                        return
                if self._stopped:
                    return
                session = max(session + 1, self.link.sessions)
                following = self._next(session)
                if not self._stopped:
                    channel.close()
                    self._channel = following
                else:
                    following.close()
        except BaseException as error:
            self.failure = error

    def close(self, word: bool = True) -> None:
        """Stop, and fail if it had gone wrong. ``word``: the host is told, else it is as if the power were cut."""
        self._stopped = True
        if not word:
            self._channel._line._lost = ConnectionLostError("no power")
        while self._thread.is_alive():
            self._channel.close()
            self._thread.join(0.05)
        self._channel.close()
        if self.failure is not None:
            raise self.failure

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
