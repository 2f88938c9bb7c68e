# SPDX-License-Identifier: Apache-2.0
"""Devices on serial lines: the C runtime as a process behind a paced pseudo-terminal, and an emulated board."""

import os
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import attrs

from rpcflow.minrpc.boards import BOARDS
from rpcflow.minrpc.building import build
from tests.line import Faults, Line, Terminal

ROOT = Path(__file__).resolve().parent.parent.parent
COUNTER = ROOT / "benchmarks" / "programs" / "counter.c"
_BOARD = BOARDS["lm3s6965evb"]
ECHO = attrs.evolve(_BOARD, sources=("hal/echo_main.c", *(s for s in _BOARD.sources if s.startswith("boards/"))))


class PacedDevice:
    """A process on a line of a certain speed, which may be a bad one.

    Args:
        baud: bits a second.
        faults: of both directions, as :class:`tests.line.Faults` takes them.
        raw: instead of the process, somebody who counts what comes, and sends as much as is wanted.
    """

    def __init__(self, baud: int, faults: dict[str, float] | None = None, raw: bool = False) -> None:
        self._baud = baud
        self._faults = Faults(**(faults or {}))
        self._raw = raw
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            self._host, self._device = stack.enter_context(Terminal()), stack.enter_context(Terminal())
            if self._raw:
                self._far = os.open(self._device.path, os.O_RDWR | os.O_NOCTTY)
                stack.callback(os.close, self._far)
            else:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                build("posix-serial", folder / "device", [COUNTER])
                process = subprocess.Popen(
                    [folder / "device", "--device", self._device.path, "--baud", str(self._baud)]
                )
                stack.callback(process.wait)
                stack.callback(process.kill)
            line = Line(self._host.fd, self._device.fd, baud=self._baud, forth=self._faults, back=self._faults, seed=1)
            stack.callback(line.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def port(self) -> str:
        return self._host.path

    def take(self, nbytes: int) -> float:
        """Read so many bytes at the far end; when the last of them came, by the clock that all processes share."""
        got = 0
        while got < nbytes:
            got += len(os.read(self._far, 65536))
        return time.monotonic()

    def give(self, nbytes: int) -> float:
        """Begin to write so many bytes at the far end; when."""
        began = time.monotonic()
        threading.Thread(target=_write, args=(self._far, nbytes), daemon=True).start()
        return began


def _write(fd: int, nbytes: int) -> None:
    data = memoryview(os.urandom(nbytes))
    while data:
        data = data[os.write(fd, data) :]


class Board:
    """QEMU's Cortex-M3 board, its UART on a pseudo-terminal.

    Args:
        echo: with a firmware that sends each byte back, instead of the runtime.
    """

    def __init__(self, echo: bool = False) -> None:
        self._echo = echo
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            build(ECHO if self._echo else "lm3s6965evb", folder / "fw.elf", [] if self._echo else [COUNTER])
            command = ["qemu-system-arm", "-M", "lm3s6965evb", "-kernel", folder / "fw.elf"]
            command += ["-display", "none", "-monitor", "none", "-serial", "pty"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            words = process.stdout.readline().split()
            self._port = next(word for word in words if word.startswith("/dev/pts/"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def port(self) -> str:
        return self._port
