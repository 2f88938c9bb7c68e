# SPDX-License-Identifier: Apache-2.0
"""The supervisor's side of a launcher."""

import json
import logging
import os
import pickle
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any, Final

import anyio
import anyio.abc

from rpcflow.errors import RPCError

from .config import WorkerConfig

_MESSAGE_NBYTES: Final = 8192
_GRACE: Final = 1.5
"""Seconds a launcher has to kill its workers and end."""
_log: Final = logging.getLogger("rpcflow.server")


class LaunchError(RPCError):
    """What a server needs before its first session cannot be had: an import or the callback failed."""


class LauncherProcess:
    """One launcher. Make it with :meth:`start`, run :meth:`run` in a task, end it with :meth:`aclose`."""

    def __init__(self, process: anyio.abc.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._ended: dict[int, Callable[[int], None]] = {}
        self.alive = True

    @classmethod
    async def start(cls, config: WorkerConfig) -> "LauncherProcess":
        """Start it and wait until its imports are done.

        Raises:
            LaunchError: they failed.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, tempfile.TemporaryFile() as file:
            ours.setblocking(False)
            pickle.dump(config, file)
            file.flush()
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "RPCFLOW_LAUNCHER": "1"}
            environment["PYTHONPATH"] = os.pathsep.join(path for path in config.sys_path if path)
            try:
                process = await anyio.open_process(
                    [
                        sys.executable,
                        *(["-X", "dev"] if sys.flags.dev_mode else []),
                        "-m",
                        "rpcflow.server.launcher",
                        str(theirs.fileno()),
                        str(file.fileno()),
                        str(os.getpid()),
                    ],
                    stdin=-3,
                    stdout=2,
                    stderr=None,
                    pass_fds=(theirs.fileno(), file.fileno()),
                    start_new_session=True,
                    env=environment,
                )
            except BaseException:
                ours.close()
                raise
        self = cls(process, ours)
        try:
            message = await self._receive()
            if message is None or "ready" not in message:
                text = message["failed"] if message else "it ended without a word"
                raise LaunchError(f"the server's worker processes cannot be prepared: {text}")
        except BaseException:
            await self.aclose()
            raise
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def begin(self, number: int, fds: list[int], ended: Callable[[int], None]) -> None:
        """Begin a session; ``ended`` is called with its wait status, -1 if the launcher itself has gone.

        Raises:
            OSError: the launcher has gone.
        """
        socket.send_fds(self._control, [json.dumps({"start": number}).encode()], fds)
        self._ended[number] = ended

    def kill(self, number: int) -> None:
        """End a session, if it has not ended yet."""
        if number in self._ended and self.alive:
            try:
                self._control.send(json.dumps({"kill": number}).encode())
            except OSError as error:
                _log.warning("the launcher cannot be told to end session %d: %s", number, error)

    async def run(self) -> None:
        """Pass on what it says, until it is gone."""
        while (message := await self._receive()) is not None:
            ended = self._ended.pop(message["ended"], None)
            if ended is not None:
                ended(message["status"])
        self.alive = False
        for ended in list(self._ended.values()):
            ended(-1)
        self._ended.clear()

    async def aclose(self) -> None:
        """End it and all its workers, within two seconds; also when cancelled."""
        self.alive = False
        self._control.close()
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(_GRACE):
                await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            await self._process.aclose()

    async def _receive(self) -> dict[str, Any] | None:
        while True:
            try:
                data = self._control.recv(_MESSAGE_NBYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._control)
                continue
            except ConnectionError:
                return None
            if not data:
                return None
            message: dict[str, Any] = json.loads(data)
            return message
