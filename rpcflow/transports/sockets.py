# SPDX-License-Identifier: Apache-2.0
"""Blocking channels over connected stream sockets; tcp and unix differ only in how they connect."""

import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeVar

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.values import FilePayload, Part

from .polling import BUDGET, AdaptivePolling

DONTWAIT: Final[int] = getattr(socket, "MSG_DONTWAIT", 0)
NOSIGNAL: Final[int] = getattr(socket, "MSG_NOSIGNAL", 0)
_MAX_BUFFERS: Final = 64
"""Buffers in one gathered write; IOV_MAX is 1024, and past some tens there is nothing to gain."""
_SENDFILE_NBYTES: Final = 1 << 24
_perf_counter = time.perf_counter


def lost(error: OSError) -> ConnectionLostError:
    """Any error of a socket in our terms."""
    return ConnectionLostError(f"the connection was lost: {error.strerror or error}")


class Outgoing:
    """Walks through parts as the kernel takes them."""

    __slots__ = ("_parts", "_position")

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts: list[Part] = [p if isinstance(p, FilePayload) else memoryview(p).cast("B") for p in parts]
        self._position = 0

    def __bool__(self) -> bool:
        return self._position < len(self._parts)

    def send(self, sock: socket.socket, flags: int) -> None:
        """One system call.

        Raises:
            BlockingIOError: nothing can be sent now.
            OSError: the line is gone, or the file is shorter than was said.
        """
        first = self._parts[self._position]
        if isinstance(first, FilePayload):
            self._send_file(sock, first)
            return
        batch: list[Any] = []
        for part in self._parts[self._position : self._position + _MAX_BUFFERS]:
            if isinstance(part, FilePayload):
                break
            batch.append(part)
        sent = sock.sendmsg(batch, (), flags) if hasattr(sock, "sendmsg") else sock.send(batch[0], flags)
        for part in batch:
            if sent < len(part):
                self._parts[self._position] = part[sent:]
                return
            sent -= len(part)
            self._position += 1

    def _send_file(self, sock: socket.socket, part: FilePayload) -> None:
        if part.nbytes == 0:
            self._position += 1
            return
        sent = os.sendfile(sock.fileno(), part.fd, part.offset, min(part.nbytes, _SENDFILE_NBYTES))
        if sent == 0:
            raise OSError("the file became shorter while it was sent")
        if sent == part.nbytes:
            self._position += 1
        else:
            self._parts[self._position] = FilePayload(part.fd, part.nbytes - sent, part.offset + sent)


class BlockingSocketChannel:
    """A connected socket for a thread.

    Args:
        sock: it is this channel's from now on, and must be in blocking mode.
        poll: False turns polling off.
    """

    _watches = False
    """Whether there is something else to look after whenever we wait: then the socket is not in blocking mode."""

    def __init__(self, sock: socket.socket, poll: bool | None = None) -> None:
        self.socket = sock
        self._polls = poll is not False and bool(DONTWAIT)
        self._progress: list[int] = []
        self._length = 0
        self._polling = AdaptivePolling(poll if DONTWAIT else False)
        self._open = True

    def send(self, parts: Sequence[Part], deadline: float | None = None) -> None:
        sock = self.socket
        try:
            self._progress.clear()
            if len(parts) == 1 and deadline is None and type(parts[0]) is bytes:
                data = parts[0]
                self._length = len(data)
                # Within one call, so that no signal comes between the sending and the writing down of it.
                try:
                    self._progress.extend(map(sock.send, (data,), (NOSIGNAL,)))
                except BlockingIOError:
                    self._progress.append(0)
                sent = self._progress[0]
                if sent == len(data):
                    return
                self._progress.clear()
                parts = [data[sent:]]
            outgoing = Outgoing(parts)
            while outgoing:
                if deadline is None and not self._watches:
                    outgoing.send(sock, NOSIGNAL)
                    continue
                self._wait(select.POLLOUT, deadline)
                try:
                    outgoing.send(sock, NOSIGNAL | DONTWAIT)
                except BlockingIOError:
                    continue
        except OSError as error:
            raise self._translated(error) from error

    @property
    def sent_whole(self) -> bool:
        """Whether a send that was interrupted had sent all it was given. Known of single parts; False of others."""
        return self._progress == [self._length]

    def receive_into(self, buffer: memoryview, deadline: float | None = None) -> int:
        receive = self.socket.recv_into
        self._progress.clear()  # it is not to be taken for that of a later send which is interrupted before it begins
        try:
            if self._polls and self._polling.worthwhile():
                ends = 0.0
                while True:
                    try:
                        count = receive(buffer, 0, DONTWAIT)
                    except BlockingIOError:
                        now = _perf_counter()
                        if not ends:
                            ends = now + BUDGET
                        elif now > ends:
                            self._polling.miss()
                            break
                    else:
                        if ends:  # else it was there already, and says nothing about looking
                            if _perf_counter() > ends:
                                self._polling.miss()
                            else:
                                self._polling.hit()
                        return count
            if deadline is not None or self._watches:
                self._wait(select.POLLIN, deadline)
            count = receive(buffer)
        except OSError as error:
            raise self._translated(error) from error
        if not count and not self._open:  # our own close ended it
            raise ConnectionLostError("the connection is closed")
        return count

    def close(self) -> None:
        if self._open:
            self._open = False
            try:
                # Closing alone would leave a thread that is inside a call waiting there.
                self.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # not connected any more
            self.socket.close()

    def _translated(self, error: OSError) -> Exception:
        if isinstance(error, TimeoutError) and error.errno is None:
            return TimeoutError()  # the deadline passed; with a number it is TCP that has given the peer up
        return lost(error) if self._open else ConnectionLostError("the connection is closed")

    def _wait(self, event: int, deadline: float | None) -> None:
        wait_for(self.socket, event, float("inf") if deadline is None else deadline)


class _HasSocket(Protocol):
    socket: socket.socket

    def close(self) -> None: ...


Channel = TypeVar("Channel", bound=_HasSocket)


def send_first(channel: Channel, data: bytes) -> Channel:
    """Put a few bytes on a line that is new, whose buffers are empty: there is no waiting for that.

    Raises:
        ConnectionLostError: it is gone already; it is closed then.
    """
    try:
        if data and channel.socket.send(data, NOSIGNAL) != len(data):
            raise OSError("it takes nothing")
    except OSError as error:
        channel.close()
        raise lost(error) from error
    return channel


def end_sending(channel: Any) -> None:
    """Say that no more will come, and go on receiving; never blocks, raises nothing. Where a channel has no word for
    that, the other end learns of it by the close."""
    end = getattr(channel, "end_sending", None)
    if end is not None:
        end()
    elif isinstance(sock := getattr(channel, "socket", None), socket.socket):
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # gone already


def wait_for(sock: socket.socket, event: int, deadline: float) -> None:
    """Block until a socket is ready.

    Raises:
        TimeoutError: the deadline passed first.
        OSError: the socket is closed.
    """
    if sock.fileno() < 0:
        raise OSError("the socket is closed")
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if hasattr(select, "poll"):
            poller = select.poll()
            poller.register(sock, event)
            if poller.poll(min(left, 86400.0) * 1000):
                return
        else:  # Windows
            reading = [sock] if event == 1 else []
            writing = [] if event == 1 else [sock]
            if any(select.select(reading, writing, [], left)):
                return


def tune(sock: socket.socket, peer_timeout: float = 30.0, user_timeout: bool = True) -> None:
    """Settings for a line of small packets: no delay, and a peer that has vanished without a word is noticed within
    ``peer_timeout`` seconds; with ``user_timeout`` also one that is there and takes nothing for so long."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = max(1, round(peer_timeout / 3))
    for name, value in (
        ("TCP_KEEPIDLE", seconds),
        ("TCP_KEEPINTVL", seconds),
        ("TCP_KEEPCNT", 2),
        ("TCP_USER_TIMEOUT", round(peer_timeout * 1000) if user_timeout else 0),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
