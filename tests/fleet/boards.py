# SPDX-License-Identifier: Apache-2.0
"""What a server of these tests offers (`rpcflow server --import tests.fleet.boards`): a board that notices when two
hold it at once, also across the ends of servers. The lock on a file goes with the process that has it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

import rpcflow

BOARD = "RPCFLOW_TEST_BOARD"
"""Environment variable: the board's file."""
_held: list[IO[str]] = []


@rpcflow.register("board.take")
def take() -> str:
    """Hold the board; its name. An error if somebody else does."""
    file = open(os.environ[BOARD], "a")  # noqa: SIM115 (held until it is given back)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RuntimeError("HELD TWICE") from None
    _held.append(file)
    return Path(file.name).name


@rpcflow.register("board.give")
def give() -> None:
    """Let it go."""
    _held.pop().close()


@rpcflow.register("board.run")
def run(begun: str, end: str) -> str:
    """A kernel that runs from when it makes one file until it finds another."""
    Path(begun).touch()
    while not os.path.exists(end):
        time.sleep(0.01)
    return "ran to its end"
