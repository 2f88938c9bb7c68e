# SPDX-License-Identifier: Apache-2.0
"""The service's side of a gate: starts it, takes the lines it hands over, ends it."""

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, Final

import anyio

from rpcflow.errors import AuthenticationError, RPCError
from rpcflow.side_process import SideProcess

from .gate_config import GateConfig

_GRACE: Final = 1.0
"""Seconds a gate has to end by itself."""
Taken = Callable[[dict[str, Any], socket.socket], None]


class GateError(RPCError):
    """TLS cannot be served: a key or certificate is not what it should be."""


class GateProcess(SideProcess):
    """One gate. Make it with :meth:`start`, run :meth:`run` in a task, end it with :meth:`aclose`.

    Args:
        taken: is given each line: what the gate says of it, and the plain socket, not in blocking mode.
        log: where it logs to.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], control: socket.socket, taken: Taken, log: logging.Logger
    ) -> None:
        super().__init__(process, control)
        self._taken = taken
        self._log = log
        self._secured: dict[int, _Secured] = {}
        self._numbers = 0

    @classmethod
    async def start(cls, config: GateConfig, taken: Taken, log: logging.Logger) -> "GateProcess":
        """Start it and wait until it accepts.

        Raises:
            GateError: it cannot.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                ours.setblocking(False)
                process = _start(config, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        self = cls(process, ours, taken, log)
        try:
            while (message := await self._receive()) is not None and "log" in message[0]:
                self._take(*message)
            if message is None or "ready" not in message[0]:
                raise GateError(f"TLS cannot be served: {message[0]['failed'] if message else 'the gate has died'}")
        except BaseException:
            await self.aclose()
            raise
        return self

    async def run(self) -> None:
        """Take what it hands over, until it is gone."""
        while (message := await self._receive()) is not None:
            self._take(*message)
        self.alive = False
        for secured in self._secured.values():
            secured.fail("the gate has died")

    async def secure(self, sock: socket.socket, host: str, port: int) -> tuple[dict[str, Any], socket.socket]:
        """Do the accepting end of a handshake on a line; what is known of its other end, and the plain socket. The
        line is the gate's from then on; ``sock`` stays its caller's to close. Cancelled, nothing is left of it.

        Raises:
            AuthenticationError: there was no handshake.
        """
        self._numbers += 1
        number = self._numbers
        secured = self._secured[number] = _Secured()
        try:
            self._say({"secure": number, "address": [host, port]}, [sock.fileno()])
            await secured.event.wait()
            return secured.get()
        finally:
            del self._secured[number]
            secured.close()

    def tell(self, what: str, number: int) -> None:
        """Say ``known`` or ``carry`` of a line."""
        if self.alive:
            self._say({what: number})

    async def aclose(self) -> None:
        """End it and its lines, within a second; also when cancelled."""
        await self._end(_GRACE)

    def _say(self, message: dict[str, Any], fds: "list[int] | None" = None) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], fds or [])
        except OSError as error:
            self._log.warning("the gate cannot be told: %s", error)

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        if "log" in message:
            level, text = message["log"]
            self._log.log(logging.getLevelNamesMapping()[level], "%s", text)
        elif "broken" in message:
            secured = self._secured.get(message["broken"])
            if secured is not None:
                secured.fail(message["why"] or "the client went during the TLS handshake")
        elif fds:
            sock = socket.socket(fileno=fds[0])
            sock.setblocking(False)
            if message["listener"] >= 0:
                self._taken(message, sock)
                return
            secured = self._secured.get(-message["line"])
            if secured is None:
                sock.close()  # nobody waits for it any more
            else:
                secured.succeed(message, sock)


class _Secured:
    """A line that the gate does the handshake for."""

    def __init__(self) -> None:
        self.event = anyio.Event()
        self._why = ""
        self._got: tuple[dict[str, Any], socket.socket] | None = None

    def succeed(self, message: dict[str, Any], sock: socket.socket) -> None:
        self._got = message, sock
        self.event.set()

    def fail(self, why: str) -> None:
        self._why = why
        self.event.set()

    def get(self) -> tuple[dict[str, Any], socket.socket]:
        """What came of it; the socket is the caller's."""
        if self._got is None:
            raise AuthenticationError(self._why)
        got, self._got = self._got, None
        return got

    def close(self) -> None:
        """Close what nobody has taken."""
        if self._got is not None:
            self._got[1].close()


def _start(config: GateConfig, control: int) -> subprocess.Popen[bytes]:
    """Begin its process, by the thread that runs the event loop (see the launcher's)."""
    with tempfile.TemporaryFile() as file:
        file.write(config.to_json().encode())
        file.flush()
        file.seek(0)
        return subprocess.Popen(
            [
                sys.executable,
                *(["-X", "dev"] if sys.flags.dev_mode else []),
                "-m",
                "rpcflow.security.gate",
                str(control),
                str(file.fileno()),
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=(control, file.fileno(), *(fd for fd, _ in config.listeners)),
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
