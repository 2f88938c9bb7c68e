# SPDX-License-Identifier: Apache-2.0
"""The handshake over a channel, from the connecting side."""

from rpcflow.errors import ConnectionLostError, DuplicateKeyError, KeyMismatchError, ProtocolError
from rpcflow.protocol.handshake import Answer, HelloReader, KeyText, encode_hello

from .base import AsyncChannel, BlockingChannel


def greet(channel: BlockingChannel, key: KeyText, deadline: float | None = None) -> str:
    """Send our key, await the answer; the other side's key text.

    Raises:
        TimeoutError: the deadline passed.
        KeyMismatchError, DuplicateKeyError, ConnectionLostError, ProtocolError: it refused, or is no server.
    """
    reader = HelloReader.for_client()
    channel.send([encode_hello(str(key))])
    while reader.hello is None:
        buffer = memoryview(bytearray(reader.wanted))
        count = channel.receive_into(buffer, deadline)
        _take(reader, buffer[:count])
    return accepted(reader, key)


async def greet_async(channel: AsyncChannel, key: KeyText) -> str:
    """As :func:`greet`, in a task."""
    reader = HelloReader.for_client()
    await channel.send([encode_hello(str(key))])
    while reader.hello is None:
        buffer = memoryview(bytearray(reader.wanted))
        count = await channel.receive_into(buffer)
        _take(reader, buffer[:count])
    return accepted(reader, key)


def _take(reader: HelloReader, data: memoryview) -> None:
    if not data:
        raise ConnectionLostError("the server closed the connection without an answer to our key")
    reader.feed(data)


def accepted(reader: HelloReader, key: KeyText) -> str:
    """The key text of a peer that has accepted ours.

    Raises:
        KeyMismatchError, DuplicateKeyError, ProtocolError: it has not.
    """
    hello = reader.hello
    assert hello is not None
    if hello.code == Answer.MISMATCH:
        raise KeyMismatchError(f"the server does not answer to the key {key.key!r}", key=key.key)
    if hello.code == Answer.DUPLICATE:
        raise DuplicateKeyError(f"somebody waits under the key {key.key!r} already", key=key.key)
    if hello.text is None:
        raise ProtocolError("the server accepted our key without a key of its own")
    return hello.text
