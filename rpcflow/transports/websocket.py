# SPDX-License-Identifier: Apache-2.0
"""A byte stream inside binary messages of a websocket (RFC 6455). Does no I/O.

Where one message ends and the next begins means nothing. None is ever collected: what has come of one is given on.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.values import FilePayload, Part

from .url import Url

try:
    from wsproto import ConnectionType, WSConnection
    from wsproto.connection import ConnectionState
    from wsproto.events import (
        AcceptConnection,
        BytesMessage,
        CloseConnection,
        Ping,
        RejectConnection,
        Request,
        TextMessage,
    )
    from wsproto.frame_protocol import CloseReason
    from wsproto.utilities import LocalProtocolError, RemoteProtocolError
except ImportError as error:
    raise ImportError("websockets need the packages of an extra: pip install 'rpcflow[web]'") from error

RECEIVE_NBYTES: Final = 1 << 18
_MESSAGE_NBYTES: Final = 1 << 18
"""Most in one message of ours: stock peers take 10 MiB, and hold each whole."""
_URGENT_NBYTES: Final = 4096
"""Answers to pings that a peer leaves unread; further ones are not answered."""
_CLEAN: Final = (CloseReason.NORMAL_CLOSURE, CloseReason.GOING_AWAY, CloseReason.NO_STATUS_RCVD)


class WebSocketStream:
    """One end. ``urgent``: control frames to be sent before the next of :meth:`frames`."""

    def __init__(self, machine: WSConnection) -> None:
        self._machine = machine
        self._received: deque[memoryview] = deque()
        self._fault: str | None = None
        self._ended = False
        self.urgent = bytearray()

    # ---- the handshake

    @classmethod
    def connecting(cls, url: Url) -> tuple["WebSocketStream", bytes]:
        """The connecting end, and what it says first."""
        machine = WSConnection(ConnectionType.CLIENT)
        host = f"[{url.host}]" if ":" in url.host else url.host
        first = machine.send(Request(host=f"{host}:{url.port}", target=target(url)))
        return cls(machine), first

    def accepted(self, data: bytes, url: Url) -> bool:
        """Take in some of the answer to it; whether the websocket is there.

        Raises:
            ConnectionLostError: it is refused, or the peer speaks something else.
        """
        if not data:
            raise ConnectionLostError(f"{url} closed the connection during the handshake")
        try:
            self._machine.receive_data(data)
        except RemoteProtocolError as error:
            raise ConnectionLostError(f"{url} does not speak HTTP: {error}") from error
        for event in self._machine.events():
            if isinstance(event, RejectConnection):
                raise ConnectionLostError(f"{url} is no websocket: it answered with HTTP status {event.status_code}")
            if isinstance(event, AcceptConnection):
                self.feed(b"")
                return True
        return False

    @classmethod
    def accept(cls, headers: Sequence[tuple[bytes, bytes]], path: bytes) -> tuple["WebSocketStream", bytes]:
        """The accepting end for a request that was read already, and what it says first. What came behind the request
        is to be fed then.

        Raises:
            ValueError: the request is not one for a websocket.
        """
        machine = WSConnection(ConnectionType.SERVER)
        try:
            machine.initiate_upgrade_connection(list(headers), path)
            for _ in machine.events():
                pass
            return cls(machine), machine.send(AcceptConnection())
        except (RemoteProtocolError, LocalProtocolError, UnicodeError) as error:
            raise ValueError(str(error)) from error

    # ---- receiving

    def feed(self, data: bytes) -> None:
        """Take in what came off the line."""
        if self._ended or self._fault is not None:
            return
        try:
            self._machine.receive_data(data)
            for event in self._machine.events():
                self._take(event)
        except (RemoteProtocolError, LocalProtocolError) as error:
            self._fault = str(error)

    def feed_end(self) -> None:
        """The line has ended."""
        self._ended = True

    def _take(self, event: object) -> None:
        if isinstance(event, BytesMessage):
            if event.data:
                self._received.append(memoryview(event.data))
        elif isinstance(event, TextMessage):
            self._fault = "the websocket's peer sent text, where only bytes mean something"
            self.end_sending(CloseReason.UNSUPPORTED_DATA)
        elif isinstance(event, Ping):
            if len(self.urgent) < _URGENT_NBYTES and self._machine.state is ConnectionState.OPEN:
                self.urgent += self._machine.send(event.response())
        elif isinstance(event, CloseConnection):
            if event.code in _CLEAN:
                self._ended = True
            else:
                self._fault = f"the websocket was closed with code {event.code}: {event.reason}"
            if self._machine.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
                self.urgent += self._machine.send(event.response())

    def take(self, buffer: memoryview) -> int:
        """Give out what was received; how many bytes."""
        position = 0
        while self._received and position < len(buffer):
            first = self._received[0]
            step = min(len(first), len(buffer) - position)
            buffer[position : position + step] = first[:step]
            position += step
            if step == len(first):
                self._received.popleft()
            else:
                self._received[0] = first[step:]
        return position

    def at_end(self) -> bool:
        """Whether nothing more will come.

        Raises:
            ConnectionLostError: because what came was not what websockets say.
        """
        if self._fault is not None:
            raise ConnectionLostError(f"the connection was lost: {self._fault}")
        return self._ended

    # ---- sending

    def frames(self, parts: Sequence[Part]) -> Iterator[bytes]:
        """The bytes to send for these parts, message by message.

        Raises:
            ConnectionLostError: the websocket is closed, or a file is shorter than was said.
        """
        gathered = bytearray()
        for part in parts:
            for chunk in _chunks(part):
                if len(gathered) + len(chunk) > _MESSAGE_NBYTES:
                    yield self._frame(gathered)
                    gathered = bytearray()
                gathered += chunk
        if gathered:
            yield self._frame(gathered)

    def _frame(self, data: bytearray) -> bytes:
        try:
            return self._machine.send(BytesMessage(data=bytes(data)))
        except LocalProtocolError as error:
            raise ConnectionLostError("the connection is closed: the websocket's peer has said goodbye") from error

    def end_sending(self, code: int = CloseReason.NORMAL_CLOSURE) -> None:
        """Say goodbye in ``urgent``; nothing but what is there already may follow."""
        if self._machine.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            self.urgent += self._machine.send(CloseConnection(code=code))


def target(url: Url) -> str:
    """What is asked for in the request line."""
    from urllib.parse import quote, urlencode

    path = quote(url.path or "/ws", safe="/%:@!$&'()*+,;=~")
    # What is about the line itself is not for the other end.
    query = () if url.scheme == "wss" else tuple(pair for pair in url.query if pair[0] != "token_file")
    return f"{path}?{urlencode(query)}" if query else path


def _chunks(part: Part) -> Iterator[memoryview | bytes]:
    if isinstance(part, FilePayload):
        position, end = part.offset, part.offset + part.nbytes
        while position < end:
            chunk = os.pread(part.fd, min(_MESSAGE_NBYTES, end - position), position)
            if not chunk:
                raise ConnectionLostError("the connection was lost: the file became shorter while it was sent")
            position += len(chunk)
            yield chunk
        return
    view = memoryview(part).cast("B")
    for start in range(0, len(view), _MESSAGE_NBYTES):
        yield view[start : start + _MESSAGE_NBYTES]
