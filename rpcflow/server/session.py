# SPDX-License-Identifier: Apache-2.0
"""A session at the supervisor: its worker, its time, its end, its last words."""

import logging
import os
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import anyio

from rpcflow.errors import RPCError, RPCSessionTimeoutError, SessionCrashedError
from rpcflow.processes import describe_status, kill_group
from rpcflow.security.grant import EVERYTHING, Grant
from rpcflow.session.wire_errors import error_packet
from rpcflow.transports.accepting import say
from rpcflow.transports.logs import printable
from rpcflow.transports.words import LastWords

from .status import StatusPage

if TYPE_CHECKING:
    from .launching import LauncherProcess
    from .supervisor import Server

_GONE_GRACE: Final = 0.3
"""Seconds a worker has, after its client has gone, to end by itself before it is killed."""
_LOG_CHARACTERS: Final = 1000
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
        grant: what it may do.
    """

    def __init__(
        self, server: "Server", number: int, sock: socket.socket, budget: float | None, grant: Grant = EVERYTHING
    ) -> None:
        self._server = server
        self._number = number
        self._sock = sock
        self._budget = budget
        self._grant = grant
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
            try:
                launcher = await self._begin([self._sock.fileno(), ready_write, errors_write, page_fd])
            except RPCError as error:
                _log.error("session %d cannot begin: %s", self._number, printable(str(error), _LOG_CHARACTERS))
                say(self._sock, self._greeting() + error_packet(error, structured=False))
                return
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
            if self._status < 0 and page.pid and not self._server._config.sandbox:
                kill_group(page.pid)  # what the launcher would have done; a sandbox has numbers of its own
            text = words.finish()
            if self._client_gone.is_set():
                return
            if last is None and (self._status != 0 or page.call is not None):
                last = self._crash(page, text)
            if last is not None and not page.sending:
                say(self._sock, self._greeting() + error_packet(last, page.structured))

    async def _begin(self, fds: list[int]) -> "LauncherProcess":
        for _ in range(_LAUNCHERS):
            launcher = await self._server._get_launcher()
            try:
                launcher.begin(self._number, fds, self._on_ended, self._grant)
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
        _log.info("session %d: %s", self._number, printable(str(last), _LOG_CHARACTERS))
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
        return b"" if self._answered else self._server._greeting()

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
        _log.warning("session %d: %s", self._number, printable(text, _LOG_CHARACTERS))
        if words:
            text += f"; its last words:\n{words}"
        return SessionCrashedError(text, signal=signal, status=exit_status, call=call, last_words=words)


async def _pass_on(words: LastWords) -> None:
    """Pass on what a worker says until its end or until cancelled."""
    while not words.ended:
        words.look()
        await anyio.wait_readable(words.fd)  # after each read: one that prints for ever is not the only one here


def _pipe(reading: ExitStack, writing: ExitStack) -> tuple[int, int]:
    """A pipe whose reading end does not block; each end is closed with its stack."""
    read, write = os.pipe()
    reading.callback(os.close, read)
    writing.callback(os.close, write)
    os.set_blocking(read, False)
    return read, write
