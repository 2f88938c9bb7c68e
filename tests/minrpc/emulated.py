# SPDX-License-Identifier: Apache-2.0
"""Boards that QEMU emulates, each with its UART on a pseudo-terminal."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .building import need

_PTY: Final = re.compile(rb"char device redirected to (\S+)")
_MACHINES: Final[dict[str, tuple[str, ...]]] = {
    "lm3s6965evb": ("qemu-system-arm", "-M", "lm3s6965evb"),
    "mps2-an386": ("qemu-system-arm", "-M", "mps2-an386", "-icount", "shift=auto"),
    "riscv-virt": ("qemu-system-riscv32", "-M", "virt", "-bios", "none"),
}
_PACKAGES: Final = {"qemu-system-arm": "qemu-system-arm", "qemu-system-riscv32": "qemu-system-misc"}


@contextmanager
def running(board: str, firmware: Path) -> Iterator[str]:
    """Start a board with a firmware; gives the path of its serial line."""
    program, *options = _MACHINES[board]
    command = [need(program, _PACKAGES[program]), *options, "-kernel", str(firmware)]
    command += ["-display", "none", "-monitor", "none", "-serial", "pty"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            said = b""
            assert process.stdout is not None
            while not (found := _PTY.search(said)):
                line = process.stdout.readline()
                assert line, f"{program} ended: {said.decode()}"
                said += line
            yield found[1].decode()
        finally:
            process.kill()
