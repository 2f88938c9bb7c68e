# SPDX-License-Identifier: Apache-2.0
"""One connection at the supervisor: its key, its wait, its session, its last words."""

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import anyio

from rpcflow.errors import ProtocolError, RPCError, RPCSessionTimeoutError, SessionCrashedError
from rpcflow.protocol.handshake import Answer, KeyText, Side, encode_answer
from rpcflow.protocol.packets import ExceptionPacket, encode
from rpcflow.session.wire_errors import to_text
from rpcflow.transports.accepting import linger, read_hello, say
from rpcflow.transports.words import LastWords

from .processes import describe_status, kill_group
from .status import StatusPage

if TYPE_CHECKING:
    from .launching import LauncherProcess
    from .queue import Waiter
    from .supervisor import Server

_GONE_GRACE: Final = 0.3
"""Seconds a worker has, after its client has gone, to end by itself before it is killed."""
_LAUNCHERS: Final = 3
"""Launchers that may die under our hands before a session is given up."""
_log: Final = logging.getLogger("rpcflow.server")


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
        self._starting = anyio.CancelScope()
        self._answered = False
        self._ended = anyio.Event()
        self._client_gone = anyio.Event()
        self._status = 0

    async def run(self) -> None:
        """Serve it to its end; the worker and all it started are gone then."""
        with ExitStack() as stack:
            theirs = stack.enter_context(ExitStack())
            ready, ready_write = _pipe(stack, theirs)
            errors, errors_write = _pipe(stack, theirs)
            page_fd = StatusPage.create()
            theirs.callback(os.close, page_fd)
            page = StatusPage(page_fd)
            stack.callback(page.close)
            words = LastWords(errors)
            launcher = await self._begin([self._sock.fileno(), ready_write, errors_write, page_fd])
            last: RPCError | None = None
            try:
                theirs.close()
                self._server._watcher.watch(self._sock, self._client_gone.set)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_pass_on, words)
                    tasks.start_soon(self._kill_when_client_goes, launcher)
                    last = await self._wait(ready, launcher, page)
                    tasks.cancel_scope.cancel()
            finally:
                self._server._watcher.unwatch(self._sock)
                launcher.kill(self._number)
            if self._status < 0 and page.pid:
                kill_group(page.pid)  # what the launcher would have done
            text = words.finish()
            if self._client_gone.is_set():
                return
            if last is None and (self._status != 0 or page.call is not None):
                last = self._crash(page, text)
            if last is not None and not page.sending:
                say(self._sock, self._greeting() + _bytes(last, page.structured))

    async def _begin(self, fds: list[int]) -> "LauncherProcess":
        for _ in range(_LAUNCHERS):
            launcher = await self._server._get_launcher()
            try:
                launcher.begin(self._number, fds, self._on_ended)
            except ConnectionError:
                await launcher.gone.wait()  # it has just died, and that will be noticed at once
            else:
                return launcher
        raise RPCError("one launcher after the other has died")

    async def _wait(self, ready: int, launcher: "LauncherProcess", page: StatusPage) -> RPCError | None:
        """Wait for the end, and bring it about when it is due; what the client is to be told of it."""
        with self._starting:  # until the worker has answered, or is dead
            while not self._take_answer(ready):
                await anyio.wait_readable(ready)
        self._take_answer(ready)
        began = time.monotonic()
        with anyio.move_on_after(self._budget):
            await self._ended.wait()
        if self._ended.is_set():
            return None
        call = page.call
        used = time.monotonic() - began
        launcher.kill(self._number)
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
        return last

    def _take_answer(self, ready: int) -> bool:
        """Whether there is nothing more to wait for."""
        if not self._answered:
            try:
                said = os.read(ready, 1)
            except BlockingIOError:
                return False
            self._answered = bool(said)
        return True

    async def _kill_when_client_goes(self, launcher: "LauncherProcess") -> None:
        await self._client_gone.wait()
        with anyio.move_on_after(_GONE_GRACE):
            await self._ended.wait()
        if not self._ended.is_set():
            _log.info("session %d: the client has gone; what it ran is stopped", self._number)
            launcher.kill(self._number)

    def _on_ended(self, status: int) -> None:
        self._status = status
        self._ended.set()
        self._starting.cancel()

    def _greeting(self) -> bytes:
        """Before its key is answered a client understands nothing but that answer."""
        if self._answered or not self._server._config.greets:
            return b""
        return encode_answer(Answer.OK, str(KeyText(Side.SERVER, self._server._key)))

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


async def _pass_on(words: LastWords) -> None:
    """Pass on what a worker says until its end or until cancelled."""
    while not words.ended:
        words.look()
        await anyio.wait_readable(words.fd)  # after each read: one that prints for ever is not the only one here


def _bytes(error: RPCError, structured: bool) -> bytes:
    packet = encode(ExceptionPacket(to_text(error, structured)))
    return b"".join(bytes(part) for part in packet if not isinstance(part, tuple))


def _pipe(reading: ExitStack, writing: ExitStack) -> tuple[int, int]:
    """A pipe whose reading end does not block; each end is closed with its stack."""
    read, write = os.pipe()
    reading.callback(os.close, read)
    writing.callback(os.close, write)
    os.set_blocking(read, False)
    return read, write


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
            admitted = await self._admitted()
            if admitted is None:
                return
            key, leave = admitted
            waiter = self._server._queue.join()
            try:
                if not await self._turn(waiter):
                    _log.info("%s went while it waited", self._peer)
                    return
                number = self._server._next_number()
                _log.info("session %d: %s", number, self._peer)
                await WorkerSession(self._server, number, self._sock, key.timeout).run()
            finally:
                waiter.done()
                leave()
            await linger(self._sock)
        finally:
            self._sock.close()

    async def _turn(self, waiter: "Waiter") -> bool:
        if waiter.served:
            return True
        watcher = self._server._watcher
        watcher.watch(self._sock, waiter.leave)
        try:
            return await waiter.wait()
        finally:
            watcher.unwatch(self._sock)

    async def _admitted(self) -> tuple[KeyText, Callable[[], None]] | None:
        """What it said, and what is to be called when it leaves; None if it may not come in."""
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
        key = leave = None
        try:
            key = KeyText.parse(hello.text or "")
        except ProtocolError as error:
            _log.info("%s: %s", self._peer, error)
        if key is not None and key.side is Side.CLIENT:
            leave = self._server._admit(key.key)
            if leave is None:
                _log.info("%s asked for another key", self._peer)
        if key is None or leave is None:
            say(self._sock, encode_answer(Answer.MISMATCH))
            await linger(self._sock)
            return None
        if self._server._queue.full:
            _log.warning("%s is turned away: %d wait already", self._peer, self._server._queue.waiting)
            leave()
            return None
        return key, leave
