# SPDX-License-Identifier: Apache-2.0
"""Pairing over real TLS, with somebody in between or not, and with whoever else may be at an address."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import attrs
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream

from rpcflow.errors import AuthenticationError, ConnectionLostError, PermissionDeniedError, ProtocolError
from rpcflow.security.pairing_client import Paired, connected, pair_with
from rpcflow.security.server_context import ALPN_PAIR
from rpcflow.transports.base import AsyncChannel
from rpcflow.transports.url import Url

from .pairing_support import CLIENT, MALLORY, SERVER, Pairing, StreamChannel, der, pem, pin

pytestmark = pytest.mark.anyio
Serve = Callable[[ByteStream], Awaitable[None]]


@attrs.define
class Hosts:
    """What a client keeps."""

    kept: dict[tuple[str, int], str] = attrs.field(factory=dict)

    def lookup(self, host: str, port: int) -> str | None:
        return self.kept.get((host, port))

    def add(self, host: str, port: int, pin: str) -> None:
        self.kept[host, port] = pin


def server_context(name: str, folder: Path, alpn: str | None = ALPN_PAIR) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem(name, folder))
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    return context


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[Url]:
    """Serves each connection until the end of the block."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port: int = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield Url("tls", "127.0.0.1", port)
        tasks.cancel_scope.cancel()


def over_tls(context: ssl.SSLContext, serve: Serve) -> Serve:
    async def accept(stream: ByteStream) -> None:
        async with stream:
            try:
                tls = await TLSStream.wrap(stream, server_side=True, ssl_context=context)
            except (ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream):
                return
            await serve(tls)
            await anyio.aclose_forcefully(tls)

    return accept


def of_desk(pairing: Pairing) -> Serve:
    async def serve(stream: ByteStream) -> None:
        await pairing.desk.serve(StreamChannel(stream), "somebody")

    return serve


async def ask(url: Url, code: str, hosts: Hosts, replace: bool = False) -> Paired:
    return await pair_with(url, code, der(CLIENT), "laptop", hosts, replace=replace)


async def refused(kind: type[Exception], match: str, url: Url, code: str, hosts: Hosts) -> None:
    with pytest.raises(kind, match=match):
        await ask(url, code, hosts)


async def test_pairing(tmp_path: Path) -> None:
    pairing, hosts = Pairing(), Hosts()
    async with listening(over_tls(server_context(SERVER, tmp_path), of_desk(pairing))) as url:
        await refused(AuthenticationError, "code was wrong", url, pairing.wrong, hosts)
        assert hosts.kept == {}
        assert await ask(url, pairing.desk.code, hosts) == Paired("laptop", pin(SERVER))
        await refused(PermissionDeniedError, "no new clients now", url, pairing.desk.code, hosts)
    assert hosts.kept == {("127.0.0.1", url.port): pin(SERVER)}
    assert pairing.clients.kept == {"laptop": der(CLIENT)}


async def test_somebody_in_between(tmp_path: Path) -> None:
    """He relays every byte, by two TLS lines: both ends refuse, and neither keeps anything."""
    pairing, hosts, relayed = Pairing(), Hosts(), bytearray()

    async def pump(source: AsyncChannel, sink: AsyncChannel) -> None:
        buffer = memoryview(bytearray(1 << 14))
        try:
            while count := await source.receive_into(buffer):
                relayed.extend(buffer[:count])
                await sink.send([bytes(buffer[:count])])
        except ConnectionLostError:
            pass
        sink.close()

    async with listening(over_tls(server_context(SERVER, tmp_path), of_desk(pairing))) as server:

        async def relay(stream: ByteStream) -> None:
            async with connected(server) as (channel, server_pin):
                assert server_pin == pin(SERVER)
                ours = StreamChannel(stream)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(pump, ours, channel)
                    await pump(channel, ours)
                    tasks.cancel_scope.cancel()

        async with listening(over_tls(server_context(MALLORY, tmp_path), relay)) as url:
            await refused(AuthenticationError, "somebody sits between", url, pairing.desk.code, hosts)
        assert len(relayed) == 4 * 4 + 65 + 33 + 32 + 1
        assert hosts.kept == pairing.clients.kept == {}
        assert pairing.desk._wrong == 1
        await ask(server, pairing.desk.code, hosts)


async def test_an_address_that_is_known_with_another_key(tmp_path: Path) -> None:
    pairing, hosts = Pairing(), Hosts()
    async with listening(over_tls(server_context(SERVER, tmp_path), of_desk(pairing))) as url:
        hosts.add(url.host, url.port, pin(MALLORY))
        await refused(AuthenticationError, "another key.*--replace", url, pairing.desk.code, hosts)
        assert hosts.kept == {(url.host, url.port): pin(MALLORY)}
        assert pairing.clients.kept == {}
        await ask(url, pairing.desk.code, hosts, replace=True)
        assert hosts.kept == {(url.host, url.port): pin(SERVER)}


async def test_an_address_that_is_known_with_the_same_key(tmp_path: Path) -> None:
    pairing, hosts = Pairing(), Hosts()
    async with listening(over_tls(server_context(SERVER, tmp_path), of_desk(pairing))) as url:
        hosts.add(url.host, url.port, pin(SERVER))
        await ask(url, pairing.desk.code, hosts)


@pytest.mark.parametrize("alpn", ["rpcflow", None])
async def test_tls_without_pairing(alpn: str | None, tmp_path: Path) -> None:
    async with listening(over_tls(server_context(SERVER, tmp_path, alpn), of_desk(Pairing()))) as url:
        await refused(PermissionDeniedError, "not pairing", url, "12345678", Hosts())


async def test_an_older_tls(tmp_path: Path) -> None:
    context = server_context(SERVER, tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with listening(over_tls(context, of_desk(Pairing()))) as url:
        await refused(ProtocolError, r"no TLS 1\.3", url, "12345678", Hosts())


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100])
async def test_no_tls(words: bytes) -> None:
    async def serve(stream: ByteStream) -> None:
        async with stream:
            await stream.receive()
            if words:
                await stream.send(words)

    async with listening(serve) as url:
        await refused(ProtocolError, "no TLS", url, "12345678", Hosts())


async def test_nobody_there() -> None:
    async with listening(of_desk(Pairing())) as url:
        pass
    await refused(ConnectionLostError, "nobody answers", url, "12345678", Hosts())


async def test_a_server_that_goes_in_the_middle(tmp_path: Path) -> None:
    async def serve(stream: ByteStream) -> None:
        await stream.receive()

    async with listening(over_tls(server_context(SERVER, tmp_path), serve)) as url:
        await refused(ConnectionLostError, "gone|went away|broke the line off", url, "12345678", Hosts())


async def test_what_cannot_be_is_told_before_anything_is_sent() -> None:
    nowhere = Url("tls", "127.0.0.1", 1)
    with pytest.raises(ValueError, match="6 to 8 digits"):
        await ask(nowhere, "12", Hosts())
    with pytest.raises(ValueError, match="64 bytes"):
        await pair_with(nowhere, "12345678", der(CLIENT), "x" * 65, Hosts())
