# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of a process (Linux)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MIB = 1 << 20


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"no {field} in the status of process {pid}")


def resident(pid: int) -> int:
    return _status(pid, "VmRSS")


def own_memory(pid: int) -> int:
    """Bytes no other process shares with this one (USS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


class PeakMemory:
    """How far processes rise above what they held when this was made::

    peak = PeakMemory([os.getpid(), worker])
    ...                                        # some work
    client, server = peak.extra()              # the worst of it
    ...                                        # other work
    client, server = peak.extra()              # the worst since; what is kept from before still counts
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = tuple(pids)
        self._before = [resident(pid) for pid in self._pids]
        self._restart()

    def _restart(self) -> None:
        for pid in self._pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak starts again from what is held now

    def extra(self) -> list[int]:
        pairs = zip(self._pids, self._before, strict=True)
        found = [max(0, _status(pid, "VmHWM") - before) for pid, before in pairs]
        self._restart()
        return found


@dataclass(frozen=True)
class Household:
    """All descendants of a process together, and the files in its temporary folder."""

    processes: int
    descriptors: int
    resident: int
    files: int

    @classmethod
    def of(cls, pid: int, folder: Path) -> "Household":
        family = psutil.Process(pid).children(recursive=True)
        return cls(
            processes=len(family),
            descriptors=sum(one.num_fds() for one in family),
            resident=sum(one.memory_info().rss for one in family),
            files=sum(len(folders) + len(files) for _, folders, files in os.walk(folder)),
        )
