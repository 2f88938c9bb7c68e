# SPDX-License-Identifier: Apache-2.0
"""TLS channels of tasks."""

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio.lowlevel

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.values import Part

from .base import AsyncChannel
from .tls import HANDSHAKE_SECONDS, WHY_SECONDS, broke_off, said_on, say_at_once, silent
from .tls_stream import BATCH_NBYTES, TlsStream

if TYPE_CHECKING:
    from rpcflow.security.client_context import ClientTls


async def secure(line: AsyncChannel, tls: "ClientTls") -> "AsyncTlsChannel":
    """As :func:`rpcflow.transports.tls.secure_blocking`, in a task. Cancelled, the line is of no more use."""
    stream = tls.stream()
    with anyio.move_on_after(HANDSHAKE_SECONDS):
        buffer = memoryview(bytearray(1 << 14))
        while not said_on(line, stream, stream.handshake):
            if outgoing := stream.outgoing():
                await line.send([outgoing])
            try:
                stream.feed(buffer[: await line.receive_into(buffer)])
            except ConnectionLostError as error:
                raise broke_off(tls.where, error) from error
        tls.check(stream)  # before it is shown who we are
        await line.send([stream.outgoing()])
        return AsyncTlsChannel(line, stream)
    raise silent(tls.where)


class AsyncTlsChannel:
    """A TLS line for tasks.

    Args:
        line: it is this channel's from now on.
        stream: its handshake is done.
    """

    def __init__(self, line: AsyncChannel, stream: TlsStream) -> None:
        self._line = line
        self._stream = stream
        self._whole = True
        self._receiving = False
        self._open = True
        self._left = bytearray()
        self._buffer = memoryview(bytearray(BATCH_NBYTES))

    @property
    def socket(self) -> "socket.socket | None":
        """The line's, if it has one."""
        return getattr(self._line, "socket", None)

    @property
    def certificate(self) -> bytes:
        """The other end's certificate, DER."""
        return self._stream.certificate

    @property
    def protocol(self) -> str | None:
        """What is spoken inside."""
        return self._stream.protocol

    async def send(self, parts: Sequence[Part]) -> None:
        self._check_open()
        if not self._whole:
            raise ConnectionLostError("the connection was lost: something was sent in part only")
        self._whole = False
        for data, _ in self._stream.encrypt(parts):
            if self._left:
                data, self._left = bytes(self._left) + data, bytearray()
            try:
                await self._line.send([data])
            except ConnectionLostError as error:
                raise (await self._why(error)) from error.__cause__
        self._whole = True

    async def receive_into(self, buffer: memoryview) -> int:
        self._check_open()
        count = self._stream.read_into(buffer)
        while count is None:
            await self._fill()
            self._check_open()
            count = self._stream.read_into(buffer)
            if count is None:
                await anyio.lowlevel.checkpoint()  # a peer that sends nothing to be read is not the only one here
        return count

    async def _fill(self) -> int:
        self._receiving = True
        try:
            count = await self._line.receive_into(self._buffer)
            self._stream.feed(self._buffer[:count])
        finally:
            self._receiving = False
        return count

    async def _why(self, error: ConnectionLostError) -> Exception:
        """As :meth:`BlockingTlsChannel._why`."""
        if not self._open or self._receiving:
            return error
        try:
            with anyio.move_on_after(WHY_SECONDS):
                while await self._fill():
                    pass
        except ConnectionLostError:
            pass  # that was all
        return self._stream.refusal() or error

    def end_sending(self) -> None:
        """Say goodbye, and go on receiving. Never blocks."""
        if self._open and self._whole:
            self._stream.end()
            self._left += self._stream.outgoing()
            say_at_once(self._line, self._left)

    def say(self, data: bytes) -> None:
        """Send a few bytes without waiting, between two sends; what the line does not take goes before the next one."""
        if self._open and self._whole and data:
            try:
                for encrypted, _ in self._stream.encrypt([data]):
                    self._left += encrypted
            except ConnectionLostError:
                return  # whoever reads or writes next finds out
            say_at_once(self._line, self._left)

    def close(self) -> None:
        if self._open:
            self.end_sending()
            self._open = False
            self._line.close()

    def _check_open(self) -> None:
        if not self._open:
            raise ConnectionLostError("the connection is closed")
