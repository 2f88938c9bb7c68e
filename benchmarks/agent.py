# SPDX-License-Identifier: Apache-2.0
"""A process of its own that holds one server or client and does what it is told.

The parent names a class, ``"package.module:Class"``, and its options; the agent makes one, enters its context
and then runs its methods on request, until the parent closes the line. A class with the attribute
``event_loop`` ("trio" or "asyncio") has coroutine methods and an async context.
"""

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Mapping
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT = 60.0
CALL_LIMIT = 300.0
STOP_LIMIT = 10.0


class AgentError(Exception):
    """What an agent was told to do failed there; the text ends with its traceback."""


class Agent:
    """The parent's end. A context manager: leaving it ends the process and all it started."""

    def __init__(
        self,
        target: str,
        options: Mapping[str, Any],
        env: Mapping[str, str] | None = None,
        cores: Iterable[int] = (),
    ) -> None:
        self.target = target
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close())
        self._line, theirs = Pipe()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.agent", str(theirs.fileno()), target, *map(str, cores)],
            env={**os.environ, **(env or {}), "PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        theirs.close()
        try:
            self._line.send(dict(options))
            self._answer("start", START_LIMIT)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, method: str, *args: Any) -> Any:
        try:
            self._line.send((method, args))
        except OSError as error:
            raise AgentError(f"{self.target} is gone before {method}{self._last_words()}") from error
        return self._answer(method, CALL_LIMIT)

    def _answer(self, what: str, limit: float) -> Any:
        if not self._line.poll(limit):
            self._line.close()
            raise AgentError(f"{self.target}: {what} gave no answer within {limit:g} s{self._last_words()}")
        try:
            good, value = self._line.recv()
        except (EOFError, OSError) as error:
            raise AgentError(f"{self.target} died in {what}{self._last_words()}") from error
        if not good:
            raise AgentError(f"{value}\n(in {what} of {self.target})")
        return value

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()[-8:]
        return "".join(f"\n  | {line}" for line in lines)

    def close(self) -> None:
        family = _family(self._process.pid)
        self._line.close()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _, left = psutil.wait_procs(family, timeout=2)
        for process in left:
            name = self.target.partition(":")[2]
            print(f"benchmarks: {name} left process {process.pid} behind; ended", file=sys.stderr)
            process.kill()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _family(pid: int) -> list[psutil.Process]:
    try:
        family: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return family
    except psutil.NoSuchProcess:
        return []


def _failure(error: BaseException) -> str:
    head = "".join(traceback.format_exception_only(error)).strip()
    return f"{head}\n{''.join(traceback.format_tb(error.__traceback__)[-4:])}".rstrip()


def _serve(line: Connection, make: Any, options: Mapping[str, Any]) -> None:
    with make(**options) as held:
        line.send((True, None))
        while True:
            method, args = line.recv()
            try:
                answer = (True, getattr(held, method)(*args))
            except Exception as error:
                answer = (False, _failure(error))
            line.send(answer)


async def _serve_async(line: Connection, make: Any, options: Mapping[str, Any]) -> None:
    async with make(**options) as held:
        line.send((True, None))
        while True:
            method, args = line.recv()  # blocks the loop on purpose: between requests nothing else is to run
            try:
                answer = (True, await getattr(held, method)(*args))
            except Exception as error:
                answer = (False, _failure(error))
            line.send(answer)


def main(descriptor: int, target: str) -> None:
    line = Connection(descriptor)
    try:
        options = line.recv()
        module, _, name = target.partition(":")
        make = getattr(import_module(module), name)
        loop = getattr(make, "event_loop", None)
        if loop is None:
            _serve(line, make, options)
        else:
            import anyio

            anyio.run(_serve_async, line, make, options, backend=loop)
    except EOFError:
        return
    except BaseException as error:
        line.send((False, _failure(error)))
        raise


if __name__ == "__main__":
    if cores := [int(word) for word in sys.argv[3:]]:
        os.sched_setaffinity(0, cores)  # before anything is imported or started, so that all of it inherits this
    main(int(sys.argv[1]), sys.argv[2])
