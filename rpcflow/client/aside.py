# SPDX-License-Identifier: Apache-2.0
"""What an operation does on the host between two requests: work for a thread, and other programs.

The line stays the operation's meanwhile, as during the work of a server. In the async API neither blocks the event
loop, and a program is killed when its task is cancelled.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Final

import attrs

from rpcflow.minrpc.files import Files

if TYPE_CHECKING:
    from anyio.abc import Process

_GROUP: Final = hasattr(os, "killpg")


class Aside:
    """Something an operation yields in place of a request; its result is sent back."""

    def run(self, seconds: float | None) -> Any:
        """Do it.

        Raises:
            TimeoutError: it took longer than so many seconds.
        """
        raise NotImplementedError

    async def arun(self) -> Any:
        """Do it without blocking the event loop."""
        raise NotImplementedError


@attrs.frozen
class Work(Aside):
    """A function that takes milliseconds; the result is what it returns."""

    function: Callable[[], Any]

    def run(self, seconds: float | None) -> Any:
        return self.function()

    async def arun(self) -> Any:
        from anyio import to_thread

        return await to_thread.run_sync(self.function)


@attrs.frozen
class Program(Aside):
    """A program; the result is its exit status and what it printed.

    Args:
        command: the program and its arguments.
        files: what it reads and writes.
    """

    command: Sequence[str]
    files: Files

    def run(self, seconds: float | None) -> tuple[int, str]:
        with TemporaryFile() as printed:
            process = subprocess.Popen(self.command, stdout=printed, **self._options())
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                _kill(process)
                process.wait()
                raise TimeoutError from None
            except BaseException:  # KeyboardInterrupt, say
                _kill(process)
                process.wait()
                raise
            return status, _text(printed)

    async def arun(self) -> tuple[int, str]:
        import anyio

        with TemporaryFile() as printed:
            process = await anyio.open_process(self.command, stdout=printed, **self._options())
            try:
                status = await process.wait()
            except BaseException:  # cancelled
                _kill(process)
                with anyio.CancelScope(shield=True):
                    await process.wait()
                raise
            return status, _text(printed)

    def _options(self) -> dict[str, Any]:
        return {
            "stdin": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
            "env": {**os.environ, "LC_ALL": "C"},
            **self.files.options(),
            "start_new_session": True,  # compilers start others: all are killed at once
        }


def _kill(process: "subprocess.Popen[bytes] | Process") -> None:
    if process.returncode is None:
        try:
            if _GROUP:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        except ProcessLookupError:
            pass  # it has just ended


def _text(printed: IO[bytes]) -> str:
    printed.seek(0)
    return printed.read().decode(errors="replace")
