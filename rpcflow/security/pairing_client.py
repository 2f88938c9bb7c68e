# SPDX-License-Identifier: Apache-2.0
"""The client's end of pairing: over a channel that stands, and with the line and the files that belong to it."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

import anyio
import attrs

from rpcflow.errors import (
    AuthenticationError,
    ConnectionLostError,
    PermissionDeniedError,
    ProtocolError,
    WaitTimeoutError,
)
from rpcflow.transports.async_tls import secure
from rpcflow.transports.base import AsyncChannel
from rpcflow.transports.tcp import transport
from rpcflow.transports.url import Url

from .client_context import ClientTls
from .pairing import ClientConversation, read_code
from .pairing_frames import pack_introduction
from .pairing_line import FrameLine
from .pins import pin_of
from .server_context import ALPN_PAIR

TIMEOUT_SECONDS: Final = 130.0
"""Somewhat longer than a server keeps anyone waiting."""
_CONNECT_SECONDS: Final = 15.0


@attrs.frozen
class Paired:
    """What came of it.

    Args:
        name: what the server calls us.
        server_pin: the server's key, by which it is known from now on.
    """

    name: str
    server_pin: str


class KnownHostsLike(Protocol):
    """Where the pins of servers are kept."""

    def lookup(self, host: str, port: int) -> str | None:
        """The pin of one; None where it is not known."""

    def add(self, host: str, port: int, pin: str) -> None:
        """Keep one, instead of what there was."""


async def pair(
    channel: AsyncChannel,
    code: str,
    server_pin: str,
    certificate: bytes,
    name: str,
    timeout: float | None = TIMEOUT_SECONDS,
) -> Paired:
    """Pair over a channel.

    Args:
        channel: inside TLS; it stays open.
        code: what the server shows.
        server_pin: of the certificate that the server has shown on this line, checked by nobody yet.
        certificate: our own, DER.
        name: what we wish to be called.
        timeout: seconds for all of it.

    Raises:
        AuthenticationError: the code was wrong, or somebody sits in between.
        PermissionDeniedError: the server does not pair, now or with us.
        ProtocolError: that is no server that pairs.
        ConnectionLostError: the line is gone.
        WaitTimeoutError: it took too long.
        ValueError: that cannot be a code, a name or a certificate.
    """
    conversation = ClientConversation(code, server_pin, certificate, name)
    line = FrameLine(channel)
    try:
        with anyio.fail_after(timeout):
            answer = conversation.hello()
            while True:
                await line.send(answer)
                next_answer = conversation.take(await line.receive())
                if next_answer is None:
                    break
                answer = next_answer
    except TimeoutError:
        raise WaitTimeoutError(f"pairing was not done in {timeout} s", wait_timeout=timeout) from None
    except ConnectionLostError as error:
        if conversation.proven:
            raise ConnectionLostError(f"{error}; it may know us by now: if not, pair again") from error
        raise
    assert conversation.stored is not None
    return Paired(conversation.stored, server_pin)


async def pair_with(
    url: Url,
    code: str,
    certificate: bytes,
    name: str,
    known_hosts: KnownHostsLike,
    *,
    replace: bool = False,
    timeout: float = TIMEOUT_SECONDS,
) -> Paired:
    """Pair with the server at an address, and keep its pin.

    Args:
        replace: forget the pin that is known for that address, if it is another.

    Raises:
        AuthenticationError: the code was wrong, somebody sits in between, or that address is known with another key.
        As :func:`pair` otherwise; OSError where the pin cannot be kept.
    """
    read_code(code)  # what cannot be is told before anything is sent
    pack_introduction(name, certificate)
    async with connected(url) as (channel, server_pin):
        known = known_hosts.lookup(url.host, url.port)
        if known is not None and known != server_pin and not replace:
            raise AuthenticationError(
                f"{url} is known with another key, {known}, and now shows {server_pin}: "
                "if the server has a new key, pair with --replace"
            )
        paired = await pair(channel, code, server_pin, certificate, name, timeout)
    known_hosts.add(url.host, url.port, paired.server_pin)
    return paired


@asynccontextmanager
async def connected(url: Url) -> AsyncIterator[tuple[AsyncChannel, str]]:
    """A line for pairing to ``url``, and the pin of what the server shows, which only pairing will check.

    Raises:
        ConnectionLostError: nobody answers there.
        ProtocolError: who does speaks no TLS 1.3.
        PermissionDeniedError: who does is not pairing.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN_PAIR])
    line: AsyncChannel | None = None
    try:
        with anyio.move_on_after(_CONNECT_SECONDS):
            line = await transport.connect(Url("tcp", url.host, url.port), poll=False)
    except ConnectionLostError as error:
        raise ConnectionLostError(f"nobody answers at {url}: {error}") from error
    if line is None:
        raise ConnectionLostError(f"nobody answers at {url} within {_CONNECT_SECONDS:g} s")
    try:
        try:
            with anyio.fail_after(_CONNECT_SECONDS):
                line = tls = await secure(line, ClientTls(str(url), context, url.host, None, None))
        except TimeoutError:
            raise ProtocolError(f"{url} does not answer as TLS does") from None
        except (AuthenticationError, ConnectionLostError, ProtocolError) as error:
            raise ProtocolError(f"{url} speaks no TLS 1.3: is the server started with --tls?") from error
        if tls.protocol != ALPN_PAIR:
            raise PermissionDeniedError(f"{url} is not pairing: start the server with --pair")
        try:
            server_pin = pin_of(tls.certificate)
        except ValueError as error:
            raise ProtocolError(f"{url} shows {error}") from None
        yield tls, server_pin
    finally:
        line.close()
