# SPDX-License-Identifier: Apache-2.0
"""One connection at the supervisor: its key, its wait, its session, its last words."""

import logging
import os
import socket
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import anyio

from rpcflow.errors import ProtocolError, RPCError, RPCSessionTimeoutError, SessionCrashedError
from rpcflow.protocol.handshake import Answer, Hello, HelloReader, KeyText, Side, encode_answer
from rpcflow.protocol.packets import ExceptionPacket, encode
from rpcflow.session.wire_errors import to_text

from .processes import describe_status
from .status import StatusPage

if TYPE_CHECKING:
    from .supervisor import Server

HANDSHAKE_SECONDS: Final = 5.0
_GONE_GRACE: Final = 0.3
"""Seconds a worker has, after its client has gone, to end by itself before it is killed."""
_LINGER_SECONDS: Final = 1.0
_LAST_LINES: Final = 20
_LINE_CHARACTERS: Final = 400
_log: Final = logging.getLogger("rpcflow.server")


async def read_hello(sock: socket.socket) -> Hello | None:
    """Take the key off the line and not a byte more; None if it ends before.

    Raises:
        ProtocolError: it is not a key.
    """
    reader = HelloReader.for_server()
    while reader.hello is None:
        try:
            data = sock.recv(reader.wanted)
        except BlockingIOError:
            await anyio.wait_readable(sock)
            continue
        except OSError:
            return None
        if not data:
            return None
        reader.feed(data)
    return reader.hello


def say(sock: socket.socket, data: bytes) -> bool:
    """Send a few bytes to a peer that may be anyone; whether they were all taken."""
    try:
        return sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)
    except OSError:
        return False


async def linger(sock: socket.socket) -> None:
    """Let our last words arrive: closing with unread bytes would reset the line, and the words with it."""
    try:
        sock.shutdown(socket.SHUT_WR)
        with anyio.move_on_after(_LINGER_SECONDS):
            while True:
                try:
                    if not sock.recv(65536, socket.MSG_DONTWAIT):
                        return
                except BlockingIOError:
                    await anyio.wait_readable(sock)
    except OSError:
        pass  # gone already


class LastWords:
    """What a worker writes to its standard output and error: passed on, and the last of it kept."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._open = b""

    async def run(self) -> None:
        """Pass on until the end or until cancelled."""
        while self._take():
            await anyio.wait_readable(self._fd)

    def _take(self) -> bool:
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            *lines, self._open = (self._open + data).split(b"\n")
            self._open = self._open[-_LINE_CHARACTERS:]
            self._lines.extend(line.decode(errors="replace")[:_LINE_CHARACTERS] for line in lines)
            if sys.stderr is not None:
                sys.stderr.write(data.decode(errors="replace"))
                sys.stderr.flush()

    def finish(self) -> str:
        """What is left in the pipe, and the last lines of it all."""
        self._take()
        os.close(self._fd)
        lines = [*self._lines, *([self._open.decode(errors="replace")] if self._open else [])]
        return "\n".join(lines)


class WorkerSession:
    """A session that has its turn.

    Args:
        server: whose it is.
        number: of the session.
        sock: the client's line, its key read and not answered.
        budget: ``session_timeout`` in seconds, or None.
    """

    def __init__(self, server: "Server", number: int, sock: socket.socket, budget: float | None) -> None:
        self._server = server
        self._number = number
        self._sock = sock
        self._budget = budget
        self._ended = anyio.Event()
        self._client_gone = anyio.Event()
        self._status = 0

    async def run(self) -> None:
        """Serve it to its end; the worker and all it started are gone then."""
        ready_read, ready_write = os.pipe()
        error_read, error_write = os.pipe()
        page_fd = StatusPage.create()
        page = StatusPage(page_fd)
        words = LastWords(error_read)
        os.set_blocking(ready_read, False)
        launcher = await self._server._get_launcher()
        try:
            try:
                launcher.begin(
                    self._number, [self._sock.fileno(), ready_write, error_write, page_fd], self._on_ended
                )
            finally:
                for fd in (ready_write, error_write, page_fd):
                    os.close(fd)
            self._server._watcher.watch(self._sock, self._client_gone.set)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(words.run)
                last = await self._wait(ready_read, launcher, page)
                tasks.cancel_scope.cancel()
        finally:
            self._server._watcher.unwatch(self._sock)
            if not self._ended.is_set():
                launcher.kill(self._number)
            text = words.finish()
            os.close(ready_read)
        if not self._client_gone.is_set():
            if last is None and self._status != 0:
                last = self._crash(page, text)
            if last is not None and not page.sending:
                say(self._sock, b"".join(_bytes(last, page.structured)))
        page.close()

    async def _wait(self, ready: int, launcher: object, page: StatusPage) -> RPCError | None:
        """Wait for the end, and bring it about when it is due; what the client is to be told of it."""
        server = self._server
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._kill_when_client_goes)
            while not self._ended.is_set():  # ready, or dead before that
                try:
                    os.read(ready, 1)
                    break
                except BlockingIOError:
                    await anyio.wait_readable(ready)
            began = time.monotonic()
            last: RPCError | None = None
            with anyio.move_on_after(self._budget) as scope:
                await self._ended.wait()
            if scope.cancelled_caught and not self._ended.is_set():
                call = page.call
                used = time.monotonic() - began
                server._kill(self._number)
                await self._ended.wait()
                doing = f" while it ran {call!r}" if call else ""
                last = RPCSessionTimeoutError(
                    f"the session's budget of {self._budget:g} s is used up ({used:.1f} s{doing}); "
                    "the option session_timeout of connect() and request() raises it",
                    budget=self._budget,
                    used=used,
                    call=call,
                )
                _log.info("session %d: %s", self._number, last)
            tasks.cancel_scope.cancel()
        return last

    async def _kill_when_client_goes(self) -> None:
        await self._client_gone.wait()
        with anyio.move_on_after(_GONE_GRACE):
            await self._ended.wait()
        if not self._ended.is_set():
            _log.info("session %d: the client has gone; what it ran is stopped", self._number)
            self._server._kill(self._number)

    def _on_ended(self, status: int) -> None:
        self._status = status
        self._ended.set()

    def _crash(self, page: StatusPage, words: str) -> SessionCrashedError:
        status = self._status
        signal = exit_status = None
        how = "is gone with the process that started it"
        if status >= 0:
            how = describe_status(status)
            signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
            exit_status = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        call = page.call
        during = f" during the call of {call!r}" if call else ""
        text = f"the session's process {how}{during}"
        _log.warning("session %d: %s", self._number, text)
        if words:
            text += f"; its last words:\n{words}"
        return SessionCrashedError(text, signal=signal, status=exit_status, call=call, last_words=words)


def _bytes(error: RPCError, structured: bool) -> list[bytes]:
    return [bytes(part) for part in encode(ExceptionPacket(to_text(error, structured))) if not isinstance(part, tuple)]


class Connection:
    """A stranger, until its key is known.

    Args:
        server: whose it is.
        sock: not in blocking mode.
        peer: who it is, for the log.
    """

    def __init__(self, server: "Server", sock: socket.socket, peer: str) -> None:
        self._server = server
        self._sock = sock
        self._peer = peer

    async def run(self) -> None:
        """Serve it to its end and close it."""
        try:
            key = await self._key()
            if key is None:
                return
            waiter = self._server._queue.join()
            self._server._watcher.watch(self._sock, waiter.leave)
            try:
                served = await waiter.wait()
            finally:
                self._server._watcher.unwatch(self._sock)
                if not waiter.served:
                    waiter.leave()
            if not served:
                _log.info("%s went while it waited", self._peer)
                return
            try:
                number = self._server._next_number()
                _log.info("session %d: %s", number, self._peer)
                await WorkerSession(self._server, number, self._sock, key.timeout).run()
            finally:
                waiter.done()
            await linger(self._sock)
        finally:
            self._sock.close()

    async def _key(self) -> KeyText | None:
        hello = None
        try:
            with anyio.move_on_after(self._server._handshake_timeout):
                hello = await read_hello(self._sock)
            if hello is None:
                _log.info("%s did not say its key", self._peer)
                return None
        except ProtocolError as error:
            _log.info("%s: %s", self._peer, error)
            return None
        try:
            key = KeyText.parse(hello.text or "")
        except ProtocolError as error:
            _log.info("%s: %s", self._peer, error)
            key = None
        if key is None or key.side is not Side.CLIENT or key.key != self._server._key:
            if key is not None:
                _log.info("%s asked for another key", self._peer)
            say(self._sock, encode_answer(Answer.MISMATCH))
            await linger(self._sock)
            return None
        if self._server._queue.full:
            _log.warning("%s is turned away: %d wait already", self._peer, self._server._queue.waiting)
            return None
        return key
