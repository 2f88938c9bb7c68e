# SPDX-License-Identifier: Apache-2.0
"""A tracker and servers as programs, to be killed and started again, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import rpcflow
from rpcflow import sync

from .boards import BOARD

HOST = "127.0.0.1"
KEY = "board:1"
PATIENCE = 60.0
"""Seconds after which something is taken to hang; far more than anything here takes."""
ROOT = Path(__file__).resolve().parents[2]


def wait_until(condition: Callable[[], Any], what: str) -> float:
    """Wait for a condition; how long it took, in seconds.

    Raises:
        TimeoutError: for too long.
    """
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > PATIENCE:
            raise TimeoutError(f"{what}: not within {PATIENCE:g} s")
        time.sleep(0.005)
    return time.monotonic() - start


def relatives(pid: int) -> list[int]:
    """The living processes below one, nearest first."""
    found = [pid]
    for one in found:
        try:
            words = Path(f"/proc/{one}/task/{one}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += map(int, words)
    return found[1:]


class Household:
    """A tracker, and boards with a server each.

    Args:
        folder: an empty folder for what they write.
        boards: how many.
    """

    def __init__(self, folder: Path, boards: int) -> None:
        self._word = f"RPCFLOW_HOUSEHOLD={folder}"
        self._boards = [folder / f"board-{number}" for number in range(boards)]
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self._log = open(folder / "log", "wb")  # noqa: SIM115 (closed with the household)
        self.servers: list[subprocess.Popen[bytes]] = []
        self.port = 0
        self._tracker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start_tracker()
        self.servers = [self.start_server(board) for board in range(len(self._boards))]
        self.wait_free(len(self._boards))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in [*self.servers, *([self._tracker] if self._tracker is not None else [])]:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._log.close()

    # ---- the tracker

    def start_tracker(self) -> None:
        """Start it, at the port it had before; until it is in service."""
        ports = ["--port", "0"] if not self.port else ["--port", str(self.port), "--port-end", str(self.port + 1)]
        self._tracker = self._start(["tracker", "--silent", *ports], {}, subprocess.PIPE)
        assert self._tracker.stdout is not None
        ready = self._tracker.stdout.readline().decode()
        assert ready.startswith(f"READY tcp://{HOST}:"), ready
        self.port = int(ready.rpartition(":")[2])

    def kill_tracker(self) -> None:
        """As ``kill -9`` does."""
        assert self._tracker is not None
        self._tracker.kill()
        self._tracker.wait()
        if self._tracker.stdout is not None:
            self._tracker.stdout.close()

    def queue(self) -> tuple[int, int]:
        """How many boards are free and how many requests wait; none while there is no tracker."""
        try:
            with sync.connect_tracker(HOST, self.port) as asking:
                found = asking.summary()["queue_info"].get(KEY, {"free": 0, "pending": 0})
        except rpcflow.ConnectionLostError:
            return 0, 0
        return found["free"], found["pending"]

    def wait_free(self, boards: int) -> float:
        """Until so many boards are free, and nobody waits; how long it took, in seconds."""
        return wait_until(lambda: self.queue() == (boards, 0), f"{boards} boards being free")

    # ---- servers

    def start_server(self, board: int) -> subprocess.Popen[bytes]:
        """Begin to start one."""
        words = ["server", "--port", "0", "--key", KEY, "--tracker", f"{HOST}:{self.port}", "--silent"]
        words += ["--import", "tests.fleet.boards"]
        return self._start(words, {BOARD: str(self._boards[board])}, subprocess.DEVNULL)

    def _start(self, words: list[str], more: dict[str, str], stdout: int) -> subprocess.Popen[bytes]:
        name, _, value = self._word.partition("=")
        path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
        environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(self.temporary), name: value, **more}
        command = [sys.executable, "-m", "rpcflow.cli", *words]
        return subprocess.Popen(command, stdout=stdout, stderr=self._log, env=environment, cwd=ROOT)

    def strike(self, board: int, how: str) -> int:
        """End a board's server: "terminate" it, "kill" it, or kill it and all its processes with "kill all". Its exit
        status, once it is gone."""
        process = self.servers[board]
        if how == "terminate":
            process.terminate()
        else:
            below = relatives(process.pid) if how == "kill all" else []
            process.kill()
            for pid in below:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it has gone with the one above it
        return process.wait(PATIENCE)

    def restart(self, board: int) -> None:
        """Start a board's server that has ended."""
        self.servers[board] = self.start_server(board)

    def stop(self) -> list[int]:
        """Tell all servers to end; their exit statuses."""
        for process in self.servers:
            process.terminate()
        return [process.wait(PATIENCE) for process in self.servers]

    # ---- what is left

    def processes(self) -> list[int]:
        """All that run, the tracker too: whatever has our word in its environment."""
        found = []
        for name in os.listdir("/proc"):
            if not name.isdecimal():
                continue
            try:
                words = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if self._word.encode() in words and state not in "ZX":
                found.append(int(name))
        return found

    def log(self) -> str:
        """What all of them said, for when something is wrong."""
        return (self._boards[0].parent / "log").read_text(errors="replace")
