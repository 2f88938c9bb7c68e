# SPDX-License-Identifier: Apache-2.0
"""One connection at the tracker: bytes in, messages to the desk, answers out, and no more memory than that takes.

Nothing here waits: the hub calls when the socket is ready. A peer is not read from while it has not taken its answers,
so what it may make us keep is one piece read and the answers to it.
"""

import selectors
import socket
import sys
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from rpcflow.errors import AuthenticationError, PermissionDeniedError, ProtocolError, RPCError
from rpcflow.protocol.credentials import CREDENTIALS_NBYTES, CredentialsReader
from rpcflow.protocol.tracker import MAGIC_BYTES, FrameReader, TrackerCode, encode_refusal
from rpcflow.security.door import Visitor
from rpcflow.transports.sockets import NOSIGNAL

if TYPE_CHECKING:
    from rpcflow.security.policy import Client

    from .hub import Hub

_PIECE_NBYTES: Final = 16 * 1024
_TURN_MESSAGES: Final = 64
"""Messages of one connection that are answered before others have their turn."""


class Stage(Enum):
    """What a connection has begun and must finish in time."""

    IDLE = "idle"
    MAGIC = "its first bytes"
    FRAME = "the rest of a message"
    ANSWERS = "taking its answers"
    REFUSED = "reading why it is refused"


class Line:
    """A connection.

    Args:
        hub: whose it is.
        sock: not in blocking mode; the line's from now on.
        visitor: the other end.
    """

    __slots__ = (
        "_broken",
        "_client",
        "_credentials",
        "_greeted",
        "_hub",
        "_out",
        "_reader",
        "_refusal",
        "_sock",
        "_visitor",
        "deadline",
        "host",
        "port",
        "stage",
    )

    def __init__(self, hub: "Hub", sock: socket.socket, visitor: Visitor) -> None:
        self._hub = hub
        self._sock = sock
        self._reader = FrameReader()
        self._out: deque[memoryview] | None = None
        self._greeted = False
        self._broken = False
        self._visitor = visitor
        self._credentials: CredentialsReader | None = CredentialsReader()
        self._client: Client | None = None
        self._refusal: RPCError | None = None
        self.host = visitor.host
        self.port = visitor.port
        self.stage = Stage.IDLE
        self.deadline = 0.0

    def __repr__(self) -> str:
        return f"{self.host}:{self.port}"

    # ---- for the hub

    def start(self) -> None:
        """The hub has it."""
        _acknowledge_at_once(self._sock)
        self._enter(Stage.MAGIC)

    def ready(self, events: int) -> None:
        """The socket can be read or written."""
        if self._broken:
            self._hub.remove(self)
        elif events & selectors.EVENT_WRITE:
            self._flush()
        elif events & selectors.EVENT_READ:
            self._receive()

    def proceed(self) -> None:
        """Go on with messages that have come already; close if that is due."""
        if self._broken:
            self._hub.remove(self)
        else:
            self._answer()

    def close(self) -> None:
        """For the hub, which has forgotten it."""
        self._broken = True
        self._release()
        self._sock.close()
        self._visitor.leave()

    @property
    def socket(self) -> socket.socket:
        """What the hub watches."""
        return self._sock

    # ---- for the desk

    def send(self, data: bytes) -> bool:
        if self._broken:
            return False
        sent = 0
        if not self._out:
            try:
                sent = self._sock.send(data, NOSIGNAL)
            except BlockingIOError:
                pass
            except OSError:
                self.end()
                return False
            if sent == len(data):
                return True
            self._out = deque()
            self._hub.watch(self, selectors.EVENT_WRITE)
            self._enter(Stage.ANSWERS)
        assert self._out is not None
        self._out.append(memoryview(data)[sent:])
        self._hub.keep(len(data) - sent)
        return not self._broken

    def alive(self) -> bool:
        return not self._broken and not self._hub.has_gone(self._sock)

    def end(self) -> None:
        self._broken = True
        self._release()
        self._hub.again(self)

    # ---- inside

    def _release(self) -> None:
        if self._out:
            self._hub.unsent -= sum(map(len, self._out))
        self._out = None

    def _receive(self) -> None:
        try:
            data = self._sock.recv(_PIECE_NBYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hub.remove(self)
            return
        # Sending has made the kernel delay its acknowledgements again, and a peer that writes the length and the body
        # of its message apart waits for one in between.
        _acknowledge_at_once(self._sock)
        try:
            self._reader.add(self._without_credentials(data))
        except ProtocolError as error:
            self._hub.log.info("protocol", "%s is closed: %s", self, error)
            self._hub.remove(self)
            return
        self._answer()

    def _without_credentials(self, data: bytes) -> bytes:
        """What is left when the credentials, which may come before everything else, have been taken off."""
        reader = self._credentials
        if reader is None:
            return data
        if reader.wanted == CREDENTIALS_NBYTES and not reader.begins(data):
            self._credentials = None
            self._identify("")
            return data
        while data and not reader.done:
            piece, data = data[: reader.wanted], data[reader.wanted :]
            reader.feed(piece)
        if reader.done:
            self._credentials = None
            self._identify(reader.token)
        return data

    def _identify(self, token: str) -> None:
        try:
            self._client = self._hub.rights.identify(self._visitor, token)
        except AuthenticationError as error:
            self._refusal = error
            self._hub.log.warning("refused", "%s is refused: %s", self, error)

    def _refused(self, message: Any) -> RPCError | None:
        """Why a message is not taken; None if it is."""
        if self._refusal is not None or self._client is None:
            return self._refusal
        who, policy = self._client.name, self._client.policy
        denied = ""
        match message:
            case [TrackerCode.REQUEST, str(key), *_] if not policy.allows_key(key):
                denied = f"use the key {key[:200]!r}"
            case [TrackerCode.PUT, str(key), *_] if not policy.allows_offer(key):
                denied = f"offer servers under the key {key[:200]!r}"
            case [TrackerCode.UPDATE_INFO, *_] if not policy.offers:
                denied = "offer servers"
        if not denied:
            return None
        error = PermissionDeniedError(f"the tracker's policy does not let {who!r} {denied}")
        self._hub.log.warning("refused", "%s is refused: %s", self, error)
        return error

    def _answer(self) -> None:
        reader = self._reader
        progress = False
        try:
            for _ in range(_TURN_MESSAGES):
                if self._out or self._broken:
                    return  # it is to take its answers first, or to go
                message = reader.next_message()
                if not self._greeted and reader.greeted:
                    self._greeted = progress = True
                    if self._refusal is None:
                        self._visitor.known()
                    self.send(MAGIC_BYTES)
                if message is None:
                    self._settle(progress)
                    return
                progress = True
                refused = self._refused(message[0])
                if refused is not None:
                    self.send(encode_refusal(refused))
                    continue
                self._hub.desk.take(self, message[0])
        except (ProtocolError, ValueError) as error:
            self._hub.log.info("protocol", "%s is closed: %s", self, error)
            self._hub.remove(self)
            return
        if not self._out:
            self._enter(Stage.IDLE)  # it is we who are not through
        self._hub.again(self)

    def _settle(self, progress: bool) -> None:
        """Nothing is left to answer."""
        if self._out or self._broken:
            return
        if not self._greeted:
            self._enter(Stage.MAGIC)
        elif self._reader.between_frames:
            self._enter(Stage.IDLE)
        else:
            self._enter(Stage.FRAME, progress)

    def _enter(self, stage: Stage, anew: bool = False) -> None:
        if self._refusal is not None:  # it has so much time, whatever it does with it
            stage, anew = Stage.REFUSED, False
        if stage is not self.stage or anew:
            self.stage = stage
            self._hub.time(self)

    def _flush(self) -> None:
        out = self._out
        try:
            while out:
                sent = self._sock.send(out[0], NOSIGNAL)
                self._hub.unsent -= sent
                self._enter(Stage.ANSWERS, anew=True)
                if sent == len(out[0]):
                    out.popleft()
                else:
                    out[0] = out[0][sent:]
        except BlockingIOError:
            return
        except OSError:
            self._hub.remove(self)
            return
        self._out = None
        self._hub.watch(self, selectors.EVENT_READ)
        self._enter(Stage.IDLE)
        self._answer()


if sys.platform == "linux":

    def _acknowledge_at_once(sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except OSError:
            pass  # the peer has gone; reading says so

else:

    def _acknowledge_at_once(sock: socket.socket) -> None:
        """Only Linux can be told."""
