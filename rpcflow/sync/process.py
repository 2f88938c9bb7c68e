# SPDX-License-Identifier: Apache-2.0
"""A service (server, tracker, proxy) in a process of its own, as the blocking API keeps it.

This is the parent's side; the child's is :mod:`rpcflow.sync.service_main`. The child ends when the pipe to its
standard input closes, so it never outlives its parent.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import weakref
from types import TracebackType
from typing import Any, Final, Literal, Self

from rpcflow.errors import ConnectionLostError, RPCError
from rpcflow.processes import python_environment

Kind = Literal["server", "tracker", "proxy"]
_TERMINATE_SECONDS: Final = 5.0


class ServiceProcess:
    """A running service; ends with :meth:`terminate`, or when this is collected.

    Args:
        kind: which service.
        options: what it is made with; they are pickled.
        silent: whether it logs only what goes wrong.

    Attributes:
        answer: what it said once in service: ``host`` and ``port``, at the least.
        pid: the process.

    Raises:
        OSError, ValueError, TypeError, ImportError, RPCError: it did not start.
    """

    def __init__(self, kind: Kind, options: dict[str, Any], silent: bool = False) -> None:
        sys_path = [path or os.getcwd() for path in sys.path]
        process, answer = _start({"kind": kind, "options": options, "silent": silent, "sys_path": sys_path})
        self._finalizer = weakref.finalize(self, _end, process)
        self.pid = process.pid
        if answer is None or "error" in answer:
            self.terminate()
            raise _error(kind, answer)
        self.answer = answer

    @property
    def alive(self) -> bool:
        """Whether it has not been terminated."""
        return self._finalizer.alive

    def terminate(self) -> None:
        """End it and all it started; done when this returns."""
        self._finalizer()


class BlockingService:
    """What services of the blocking API have in common: they run until terminated, left, or collected."""

    _service: ServiceProcess
    host: str
    port: int

    @property
    def url(self) -> str:
        """Where it is found; with TLS, the pin of its key in it."""
        return str(self._service.answer["url"])

    def terminate(self) -> None:
        """End it and all its sessions and connections; done when this returns."""
        self._service.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def __repr__(self) -> str:
        ended = "" if self._service.alive else ", terminated"
        return f"<rpcflow.sync.{type(self).__name__} {self.host}:{self.port}{ended}>"


def _start(task: dict[str, Any]) -> tuple[subprocess.Popen[bytes], dict[str, Any] | None]:
    read, write = os.pipe()
    try:
        with tempfile.TemporaryFile() as file:
            pickle.dump(task, file)
            file.flush()
            file.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-m", "rpcflow.sync.service_main", str(file.fileno()), str(write)],
                stdin=subprocess.PIPE,
                stdout=2,
                pass_fds=(file.fileno(), write),
                start_new_session=True,
                env=python_environment(task["sys_path"]),
            )
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    try:
        with os.fdopen(read, "rb") as pipe:
            line = pipe.readline()
    except BaseException:  # Ctrl-C while its imports run
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return process, json.loads(line) if line else None


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_TERMINATE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _error(kind: Kind, answer: dict[str, Any] | None) -> Exception:
    if answer is None:
        return RPCError(f"the {kind}'s process ended without a word")
    kinds: dict[str, type[Exception]] = {"OSError": OSError, "ValueError": ValueError, "TypeError": TypeError}
    kinds |= {"ImportError": ImportError, "ConnectionLostError": ConnectionLostError}
    return kinds.get(answer["kind"], RPCError)(answer["error"])
