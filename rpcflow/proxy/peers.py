# SPDX-License-Identifier: Apache-2.0
"""A connection that has said its key, by plain socket or by websocket."""

import socket
from collections.abc import Callable
from typing import Final

import anyio

from rpcflow.errors import ConnectionLostError, ProtocolError
from rpcflow.protocol.handshake import KeyText, Side
from rpcflow.transports import AsyncChannel
from rpcflow.transports.accepting import linger, read_introduction, receiving, say
from rpcflow.transports.async_sockets import AsyncSocketChannel

_ANSWER_SECONDS: Final = 5.0


class Peer:
    """Somebody who waits for a partner, or has one.

    Args:
        name: who it is, for the log.
        text: its whole key text, which its partner is given.
        token: of its credentials, which are for us; empty where it has shown none.

    Attributes:
        carry: to be called when its session begins.
    """

    def __init__(self, name: str, text: str, token: str = "") -> None:
        self.name = name
        self.text = text
        self.token = token
        # What a key's other words mean is between client and server.
        parsed = KeyText.parse(text.split()[0] if text.split() else "")
        self.side: Side = parsed.side
        self.key = parsed.key
        self.pin = _pin(text) if parsed.side is Side.SERVER else ""
        self.waiting = anyio.CancelScope()
        self.matched = False
        self.carry: Callable[[], None] = _nothing
        self.done = anyio.Event()

    def meet(self) -> None:
        """A partner has come, and carries for both."""
        self.matched = True
        self.waiting.cancel()

    def plain(self) -> socket.socket | None:
        """The socket, where its bytes are the stream."""
        return None

    def channel(self) -> AsyncChannel:
        """The stream."""
        raise NotImplementedError

    def present(self) -> bool:
        """Whether it is still there and silent, as far as can be told without waiting."""
        return True

    async def watch(self) -> None:
        """Wait until it goes, or says something before it was answered."""
        raise NotImplementedError

    async def answer(self, data: bytes) -> None:
        """Send it the answer to its key. A line that breaks is noticed by whoever reads next."""
        raise NotImplementedError

    async def refuse(self, data: bytes) -> None:
        """Send it these last words and let them arrive."""
        raise NotImplementedError

    def close(self) -> None:
        """Say goodbye where its line has a word for that; the socket is closed by who accepted it."""


def _pin(text: str) -> str:
    """Of the key of a server that ends TLS itself; empty where it does not, or says what makes no sense."""
    try:
        return KeyText.parse(text).pin
    except ProtocolError:
        return ""


def _nothing() -> None:
    pass


class SocketPeer(Peer):
    """One that came by TCP."""

    def __init__(self, name: str, text: str, token: str, sock: socket.socket) -> None:
        super().__init__(name, text, token)
        self._sock = sock

    @classmethod
    async def greet(cls, sock: socket.socket, name: str) -> "SocketPeer | None":
        """Take its key; None where it left.

        Raises:
            ProtocolError: it has none.
        """
        said = await read_introduction(receiving(sock))
        return None if said is None else cls(name, said.hello.text or "", said.token, sock)

    def plain(self) -> socket.socket | None:
        return self._sock

    def channel(self) -> AsyncChannel:
        return AsyncSocketChannel(self._sock, poll=False)

    def present(self) -> bool:
        try:
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def watch(self) -> None:
        try:
            while self.present():
                await anyio.wait_readable(self._sock)
        except OSError:
            pass

    async def answer(self, data: bytes) -> None:
        say(self._sock, data)

    async def refuse(self, data: bytes) -> None:
        say(self._sock, data)
        await linger(self._sock)


class ChannelPeer(Peer):
    """One that came by a channel: a websocket."""

    def __init__(self, name: str, text: str, token: str, channel: AsyncChannel) -> None:
        super().__init__(name, text, token)
        self._channel = channel

    @classmethod
    async def greet(cls, channel: AsyncChannel, name: str) -> "ChannelPeer | None":
        """As :meth:`SocketPeer.greet`."""

        async def receive(nbytes: int) -> bytes | None:
            buffer = memoryview(bytearray(nbytes))
            position = 0
            while position < nbytes:
                count = await channel.receive_into(buffer[position:])
                if not count:
                    return None
                position += count
            return bytes(buffer)

        try:
            said = await read_introduction(receive)
        except ConnectionLostError:
            return None
        return None if said is None else cls(name, said.hello.text or "", said.token, channel)

    def channel(self) -> AsyncChannel:
        return self._channel

    async def watch(self) -> None:
        try:
            await self._channel.receive_into(memoryview(bytearray(1)))
        except ConnectionLostError:
            pass

    async def answer(self, data: bytes) -> None:
        try:
            with anyio.move_on_after(_ANSWER_SECONDS):
                await self._channel.send([data])
        except ConnectionLostError:
            pass

    async def refuse(self, data: bytes) -> None:
        await self.answer(data)
        end = getattr(self._channel, "end_sending", None)
        if end is None:
            return
        end()
        try:
            with anyio.move_on_after(_ANSWER_SECONDS):
                buffer = memoryview(bytearray(4096))
                while await self._channel.receive_into(buffer):
                    pass
        except ConnectionLostError:
            pass

    def close(self) -> None:
        self._channel.close()
