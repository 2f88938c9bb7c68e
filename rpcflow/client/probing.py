# SPDX-License-Identifier: Apache-2.0
"""What answers at an address, found out without beginning a session there.

A server is asked for a key that is nobody's: rpcflow's and TVM's refuse it at once, and nothing has been occupied. A
proxy without a tracker keeps who asks for an unknown key waiting, as it should; but it hangs up on one that speaks
again before it is answered, and takes a second one of the same key for a duplicate. A stock server that serves
somebody says nothing at all. So whoever is silent is spoken to again, and whoever hangs up is asked in other languages.

The key has words and is said whole: a stock server dies of one without words, and registers anew after half a one.
Nothing that is heard is believed to be longer than a few bytes, and each wait has an end.
"""

import contextlib
import secrets
import ssl
import struct
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Final

import anyio
import attrs

from rpcflow.errors import ConnectionLostError, RPCError
from rpcflow.protocol.handshake import Answer, KeyText, Side, encode_hello
from rpcflow.protocol.tracker import MAGIC_BYTES
from rpcflow.transports import AsyncChannel

Dial = Callable[[], Awaitable[AsyncChannel]]
"""Makes a new connection to the same place; raises ConnectionLostError."""
_HEARD_NBYTES: Final = 64
_AGAIN: Final = b"\r\n\r\n"
"""Said to who is silent. To who waits for the end of a line, as HTTP servers do, it is one."""
_HTTP: Final = b"GET / HTTP/1.0\r\n\r\n"


class Kind(Enum):
    """What there is at an address."""

    SERVER = "a server"
    TRACKER = "a tracker"
    PROXY = "a proxy"
    ANY_KEY = "a server that takes any key"
    SILENT = "silent"
    CLOSES = "closes"
    OTHER = "other"


@attrs.frozen
class Found:
    """What was found. ``words``: what it said or seems to be, for people; no control characters in it."""

    kind: Kind
    words: str = ""


@attrs.frozen
class _Heard:
    """``data``: the first bytes; ``open``: whether the line is, and it has just fallen silent."""

    data: bytes
    open: bool


async def find_out(channel: AsyncChannel, dial: Dial, quiet: float, seconds: float) -> Found:
    """What answers on a new connection, and on more of them if need be. All are closed then, also when cancelled.

    Args:
        channel: a connection on which nothing has been said; closed here.
        dial: makes more of them.
        quiet: seconds of silence after which we speak again.
        seconds: how long to wait for each answer from then on; it takes nine times as long at most.
    """
    others = [MAGIC_BYTES, _tls_hello(), _HTTP]
    waits = False
    with contextlib.closing(channel):
        heard = await _say(channel, _unmatched_hello(), quiet)
        if heard.open and not heard.data:
            heard = await _say(channel, _AGAIN, seconds)
            if heard.open and not heard.data:
                return Found(Kind.SILENT)
            waits = True  # which trackers do not
            others.remove(MAGIC_BYTES)
    if heard.data:
        return _understood(heard.data)
    for first in others:
        data = await _answer(dial, first, seconds)
        if data:
            return Found(Kind.TRACKER) if data == first == MAGIC_BYTES else _understood(data)
    return Found(Kind.PROXY if waits and await _takes_for_duplicate(dial, seconds) else Kind.CLOSES)


async def _answer(dial: Dial, first: bytes, seconds: float) -> bytes:
    """What is answered to ``first`` on a new connection; nothing where it is closed, or cannot be made any more."""
    with contextlib.suppress(RPCError), anyio.move_on_after(seconds):
        with contextlib.closing(await dial()) as channel:
            return (await _say(channel, first, seconds)).data
    return b""


async def _takes_for_duplicate(dial: Dial, seconds: float) -> bool:
    """Whether two that come with one key are told that one of them is too many."""
    hello = _unmatched_hello()
    told = False

    async def listen(channel: AsyncChannel) -> None:
        nonlocal told
        heard = bytearray()
        with contextlib.suppress(RPCError):
            await _hear(channel, heard)
        if _code(heard) == Answer.DUPLICATE:
            told = True
            tasks.cancel_scope.cancel()

    with contextlib.ExitStack() as stack, contextlib.suppress(RPCError):
        with anyio.move_on_after(seconds):
            channels = []
            for _ in range(2):
                channels.append(await dial())
                stack.callback(channels[-1].close)
                await channels[-1].send([hello])
            async with anyio.create_task_group() as tasks:
                for channel in channels:
                    tasks.start_soon(listen, channel)
    return told


async def _say(channel: AsyncChannel, data: bytes, seconds: float) -> _Heard:
    """Say something and hear what is answered; also where the line is closed by then: something may have come."""
    heard = bytearray()
    with anyio.move_on_after(seconds) as scope:
        with contextlib.suppress(ConnectionLostError):
            await channel.send([data])
        await _hear(channel, heard)
    return _Heard(bytes(heard), scope.cancelled_caught)


async def _hear(channel: AsyncChannel, heard: bytearray) -> None:
    """Collect what comes until it is enough to know who it is, or the line has ended."""
    buffer = memoryview(bytearray(_HEARD_NBYTES))
    with contextlib.suppress(ConnectionLostError):
        while len(heard) < 4 and (count := await channel.receive_into(buffer)):
            heard += buffer[:count]


def _unmatched_hello() -> bytes:
    return encode_hello(str(KeyText(Side.CLIENT, f"rpcflow-doctor-{secrets.token_hex(16)}")))


def _tls_hello() -> bytes:
    """What a TLS client says first; nothing is checked, for nothing is said behind it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def _code(data: bytes | bytearray) -> int | None:
    code: int | None = struct.unpack_from("<i", data)[0] if len(data) >= 4 else None
    return code


def _understood(data: bytes) -> Found:
    """What somebody is who says this."""
    match _code(data):
        case Answer.MISMATCH:
            return Found(Kind.SERVER)
        case Answer.DUPLICATE:
            return Found(Kind.PROXY)
        case Answer.OK:
            return Found(Kind.ANY_KEY)
    if data.startswith(b"SSH-"):
        return Found(Kind.OTHER, "an SSH server")
    if data.startswith(b"HTTP/") or data.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return Found(Kind.OTHER, "an HTTP server")
    if data[:1] in (b"\x15", b"\x16") and data[1:2] == b"\x03":
        return Found(Kind.OTHER, "a TLS server")
    return Found(Kind.OTHER, f"something that says {ascii(data[:32])[1:]}")
