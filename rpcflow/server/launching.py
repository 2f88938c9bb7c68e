# SPDX-License-Identifier: Apache-2.0
"""The supervisor's side of a launcher."""

import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Final

import anyio

from rpcflow.errors import PermissionDeniedError, RPCError
from rpcflow.processes import SANDBOXED, python_environment
from rpcflow.security.grant import EVERYTHING, Grant
from rpcflow.side_process import MESSAGE_NBYTES, SideProcess

from . import sandbox
from .config import WorkerConfig
from .folder import remove_tree

_GRACE: Final = 1.5
"""Seconds a launcher has to kill its workers and end."""
_log: Final = logging.getLogger("rpcflow.server")


class LaunchError(RPCError):
    """What a server needs before its first session cannot be had: an import or the callback failed."""


class LauncherProcess(SideProcess):
    """One launcher. Make it with :meth:`start`, run :meth:`run` in a task, end it with :meth:`aclose`."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        super().__init__(process, control)
        self._ended: dict[int, Callable[[int], None]] = {}
        self._scratch: str | None = None
        self._init: int | None = None
        self.gone = anyio.Event()

    @classmethod
    async def start(cls, config: WorkerConfig) -> "LauncherProcess":
        """Start it and wait until its imports are done.

        Raises:
            LaunchError: they failed.
        """
        wrapper: list[str] = []
        if config.sandbox:
            try:
                wrapper = sandbox.prefix(config)
            except sandbox.SandboxError as error:
                raise LaunchError(str(error)) from error
        info, info_write = os.pipe() if wrapper else (-1, -1)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                ours.setblocking(False)
                process = _start(config, theirs.fileno(), wrapper, info_write)
        except BaseException:
            ours.close()
            if wrapper:
                os.close(info)
            raise
        finally:
            if wrapper:
                os.close(info_write)
        self = cls(process, ours)
        try:
            if wrapper:
                self._init = await _first_inside(info)
            received = await self._receive()
            message = None if received is None else received[0]
            if message is None or "ready" not in message:
                text = message["failed"] if message else "it ended without a word"
                raise LaunchError(f"the server's worker processes cannot be prepared: {text}")
            if not config.sandbox:  # there it is a path of the sandbox's own, and gone with that
                self._scratch = message["scratch"]
        except BaseException:
            await self.aclose()
            raise
        return self

    def begin(self, number: int, fds: list[int], ended: Callable[[int], None], grant: Grant = EVERYTHING) -> None:
        """Begin a session; ``ended`` is called with its wait status, -1 if the launcher itself has gone.

        Raises:
            OSError: the launcher has gone.
            PermissionDeniedError: the grant is too long to be told.
        """
        message = json.dumps({"start": number, "grant": grant.to_json()}).encode()
        if len(message) > MESSAGE_NBYTES:
            raise PermissionDeniedError(f"the server's policy has patterns of more than {MESSAGE_NBYTES >> 10} KiB")
        socket.send_fds(self._control, [message], fds)
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
        while (received := await self._receive()) is not None:
            message, _ = received
            ended = self._ended.pop(message["ended"], None)
            if ended is not None:
                ended(message["status"])
        self.alive = False
        self.gone.set()
        for ended in list(self._ended.values()):
            ended(-1)
        self._ended.clear()
        self._clear_up()

    async def aclose(self) -> None:
        """End it and all its workers, within two seconds; also when cancelled."""
        await self._end(_GRACE)  # one that still imports is killed, with what imports have started in its group
        self._clear_up()

    async def _wait(self) -> None:
        await super()._wait()
        if self._init is not None:  # all that is in a sandbox is gone with the first process in it
            try:
                await anyio.wait_readable(self._init)
            finally:
                os.close(self._init)
                self._init = None

    def _clear_up(self) -> None:
        """Remove the folder that it could not remove if it was killed."""
        if self._scratch is not None:
            remove_tree(self._scratch)


async def _first_inside(info: int) -> int | None:
    """A handle of the first process in a sandbox, which has been said at ``info``; None if it is gone. Closes that."""
    data = b""
    try:
        while True:
            await anyio.wait_readable(info)
            more = os.read(info, 4096)
            if not more:
                break
            data += more
            if data.rstrip().endswith(b"}"):
                return os.pidfd_open(json.loads(data)["child-pid"])
    except ProcessLookupError:
        pass  # it has ended already
    finally:
        os.close(info)
    return None  # its standard error says why


def _start(config: WorkerConfig, control: int, wrapper: list[str], info: int) -> subprocess.Popen[bytes]:
    """Begin its process. By this thread and no other: the kernel's notice of a parent's death, which the launcher
    asks for, is about the thread that began it, and threads of a pool end when they are idle."""
    with tempfile.TemporaryFile() as file:
        pickle.dump(config, file)
        file.flush()
        # Threads of a BLAS would not survive a fork.
        environment = {"OPENBLAS_NUM_THREADS": "1", **python_environment(config.sys_path)}
        return subprocess.Popen(
            [
                *(sandbox.reporting(wrapper, info) if wrapper else ()),
                sys.executable,
                *(["-X", "dev"] if sys.flags.dev_mode else []),
                "-m",
                "rpcflow.server.launcher",
                str(control),
                str(file.fileno()),
                str(os.getpid() if not wrapper else SANDBOXED),
            ],
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=(control, file.fileno(), *((info,) if wrapper else ())),
            start_new_session=True,
            env=environment,
        )
