# SPDX-License-Identifier: Apache-2.0
"""The web port of a proxy: files for browsers, and the websocket by which they and others take part.

A connection carries one request and its answer, or one request and then a websocket. Only the files that were named
are served, each under one path; nothing of a request ever becomes part of a file's name.

A browser lets any page on the web connect to any address its machine can reach, this one too, and behind a proxy are
machines that run what they are told. So a page is let in only where it came from this very port (its Origin names the
host and port it asks for); and where only this machine can reach us, only under one of this machine's names, for a
foreign name may be made to point here. Whoever sends no Origin is not a page.
"""

import logging
import os
import socket
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote, urlsplit

import anyio
import attrs

from rpcflow.errors import ConnectionLostError, ProtocolError
from rpcflow.protocol.values import FilePayload, Part
from rpcflow.transports.accepting import HANDSHAKE_SECONDS, linger
from rpcflow.transports.async_sockets import AsyncSocketChannel
from rpcflow.transports.async_ws import AsyncWebSocketChannel
from rpcflow.transports.logs import LimitedLog
from rpcflow.transports.tcp import is_loopback
from rpcflow.transports.websocket import WebSocketStream

from .peers import ChannelPeer, Peer

try:
    import h11
except ImportError as error:
    raise ImportError("a web port needs the packages of an extra: pip install 'rpcflow[web]'") from error

_HEAD_NBYTES: Final = 16_384
_SLOW_SECONDS: Final = 30.0
_SLOW_NBYTES_PER_SECOND: Final = 10_000
"""A file may take _SLOW_SECONDS, and more only if it goes at this rate."""
_STOCK_ADDRESS: Final = b"ws://localhost:9190/ws"
"""What stands in stock's pages for the proxy's own address."""
_TYPES: Final = {
    "css": "text/css",
    "html": "text/html; charset=utf-8",
    "ico": "image/x-icon",
    "js": "text/javascript",
    "json": "application/json",
    "mjs": "text/javascript",
    "png": "image/png",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
    "wasm": "application/wasm",
}
_log: Final = logging.getLogger("rpcflow.proxy")


@attrs.frozen
class _Request:
    method: str
    path: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    trailing: bytes

    def header(self, name: bytes) -> str | None:
        """The value of a header, by its name in lower case; None where it is missing."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)


@attrs.define
class _Refusal(Exception):
    status: HTTPStatus
    headers: tuple[tuple[str, str], ...] = ()


class WebSite:
    """What is served at the web port.

    Args:
        host, port: where it is.
        index_page: file to serve at ``/``.
        resource_files: pairs of a folder's name in URLs and a file to serve in it under its own name.
        log: for what those who come bring about; None for one of its own.

    Raises:
        ValueError: a file is not there.
    """

    def __init__(
        self,
        host: str,
        port: int,
        index_page: str | None,
        resource_files: Sequence[tuple[str, str]],
        log: LimitedLog | None = None,
    ) -> None:
        self._port = port
        self._log = log if log is not None else LimitedLog(_log)
        self._only_here = is_loopback(host)
        self._files: dict[str, str] = {}
        if index_page:
            self._files["/"] = os.path.abspath(index_page)
        for folder, file in resource_files:
            name = folder.strip("/")
            self._files[f"/{name + '/' if name else ''}{os.path.basename(file)}"] = os.path.abspath(file)
        for file in self._files.values():
            if not os.path.isfile(file):
                raise ValueError(f"there is no file {file!r} to serve")

    async def serve(self, sock: socket.socket, name: str) -> Peer | None:
        """Answer a request; the peer that it brought, if it was for the websocket and a key came over that."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_NBYTES)
        line = AsyncSocketChannel(sock, poll=False)
        try:
            with anyio.move_on_after(HANDSHAKE_SECONDS) as reading:
                request = await _read(line, http)
            if reading.cancelled_caught or request is None:
                self._log.info("silent", "%s did not ask for anything", name)
            elif self._is_websocket(request):
                with anyio.move_on_after(HANDSHAKE_SECONDS):
                    return await _accept(line, request, name, self._log)
                self._log.info("silent", "%s did not say its key", name)
            else:
                await self._answer(line, http, request)
        except h11.RemoteProtocolError as error:
            self._log.info("protocol", "%s: %s", name, error)
            await _refuse(line, http, _Refusal(HTTPStatus(error.error_status_hint)))
        except _Refusal as refusal:
            self._log.info(
                "refused by the web port", "%s is refused: %d %s", name, refusal.status, refusal.status.phrase
            )
            await _refuse(line, http, refusal)
        except ProtocolError as error:
            self._log.info("protocol", "%s: %s", name, error)
        except ConnectionLostError:
            pass  # it has gone; nobody is left to be told
        return None

    def _is_websocket(self, request: _Request) -> bool:
        if request.path != "/ws":
            return False
        if (request.header(b"upgrade") or "").lower() != "websocket":
            raise _Refusal(HTTPStatus.UPGRADE_REQUIRED, (("Upgrade", "websocket"), ("Connection", "Upgrade")))
        if not self.lets_in(request.header(b"origin"), request.header(b"host") or ""):
            raise _Refusal(HTTPStatus.FORBIDDEN)
        return True

    def lets_in(self, origin: str | None, host: str) -> bool:
        """Whether a page from ``origin`` may take part that asks for ``host``, both as in the headers."""
        if origin is None:
            return True
        try:
            page, here = urlsplit(origin), urlsplit(f"//{host}")
            defaults = {"http": 80, "https": 443}
            if page.scheme not in defaults or not page.hostname or not here.hostname:
                return False
            if (page.port or defaults[page.scheme]) != (here.port or defaults[page.scheme]):
                return False
            by_loopback = is_loopback(page.hostname) and is_loopback(here.hostname)
        except ValueError:
            return False
        return by_loopback or (page.hostname == here.hostname and not self._only_here)

    async def _answer(self, line: AsyncSocketChannel, http: h11.Connection, request: _Request) -> None:
        if request.method not in ("GET", "HEAD"):
            raise _Refusal(HTTPStatus.METHOD_NOT_ALLOWED, (("Allow", "GET, HEAD"),))
        file = self._files.get(request.path)
        if file is None:
            raise _Refusal(HTTPStatus.NOT_FOUND)
        try:
            fd = os.open(file, os.O_RDONLY)
        except OSError as error:
            self._log.error("a file that cannot be read", "cannot serve %s: %s", request.path, error)
            raise _Refusal(HTTPStatus.NOT_FOUND) from error
        try:
            size = os.fstat(fd).st_size
            suffix = file.rpartition(".")[2]
            body: Part = FilePayload(fd, size)
            if suffix == "html":
                body = os.pread(fd, size, 0).replace(_STOCK_ADDRESS, b"ws://localhost:%d/ws" % self._port)
                size = len(body)
            head = _head(http, HTTPStatus.OK, size, _TYPES.get(suffix, "application/octet-stream"))
            with anyio.move_on_after(_SLOW_SECONDS + size / _SLOW_NBYTES_PER_SECOND):
                await line.send([head] if request.method == "HEAD" else [head, body])
                await linger(line.socket)
        finally:
            os.close(fd)


async def _read(line: AsyncSocketChannel, http: h11.Connection) -> _Request | None:
    """A request's head, and what came behind it; None where the line ends before."""
    buffer = memoryview(bytearray(4096))
    while True:
        event = http.next_event()
        if isinstance(event, h11.Request):
            path = unquote(event.target.decode("latin-1").partition("?")[0])
            trailing = bytes(http.trailing_data[0])
            return _Request(event.method.decode("latin-1"), path, event.target, tuple(event.headers), trailing)
        if event is not h11.NEED_DATA:
            return None
        count = await line.receive_into(buffer)
        if not count:
            return None
        http.receive_data(bytes(buffer[:count]))


async def _accept(line: AsyncSocketChannel, request: _Request, name: str, log: LimitedLog) -> Peer | None:
    """Make the request's line a websocket and take the key that comes over it."""
    try:
        stream, first = WebSocketStream.accept(request.headers, request.target)
    except ValueError as error:
        log.info("protocol", "%s: %s", name, error)
        raise _Refusal(HTTPStatus.BAD_REQUEST) from error
    stream.feed(request.trailing)
    channel = AsyncWebSocketChannel(line, stream)
    peer = None
    try:
        await line.send([first])
        peer = await ChannelPeer.greet(channel, name)
    finally:
        if peer is None:
            channel.close()
    return peer


def _head(http: h11.Connection, status: HTTPStatus, nbytes: int, kind: str, *more: tuple[str, str]) -> bytes:
    headers = [
        ("Content-Type", kind),
        ("Content-Length", str(nbytes)),
        ("X-Content-Type-Options", "nosniff"),
        *more,
    ]
    if not any(name == "Connection" for name, _ in more):
        headers.append(("Connection", "close"))
    response = h11.Response(status_code=status, reason=status.phrase.encode(), headers=headers)
    return http.send(response) or b""


async def _refuse(line: AsyncSocketChannel, http: h11.Connection, refusal: _Refusal) -> None:
    text = f"{refusal.status.value} {refusal.status.phrase}\n".encode()
    try:
        with anyio.move_on_after(HANDSHAKE_SECONDS):
            head = _head(http, refusal.status, len(text), "text/plain", *refusal.headers)
            await line.send([head, text])
            await linger(line.socket)
    except (ConnectionLostError, h11.LocalProtocolError):
        pass  # it has gone, or has been answered already
