# SPDX-License-Identifier: Apache-2.0
"""Linux's means to let no process outlive the one it belongs to."""

import ctypes
import os
import signal
from collections.abc import Collection, Sequence
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
SANDBOXED: Final = 0
"""Told to a launcher for its supervisor's process: a sandbox, which ends with that, does not let it be seen."""


def prctl(option: int, value: int) -> None:
    """Linux's prctl, where there is one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl") and libc.prctl(option, value, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send us a signal when our parent ends; 0 for none. Ends at once if ``parent`` has gone."""
    prctl(_PR_SET_PDEATHSIG, number)
    if number and os.getppid() != parent:
        os._exit(0)


def adopt_orphans() -> None:
    """Descendants whose parents end become our children."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


_KEPT_PYTHONPATH: Final = "RPCFLOW_PYTHONPATH"


def python_environment(sys_path: Sequence[str]) -> dict[str, str]:
    """The environment for a process of ours, which must find the modules that we find."""
    path = os.pathsep.join(entry for entry in sys_path if entry)
    return {**os.environ, "PYTHONPATH": path, _KEPT_PYTHONPATH: os.environ.get("PYTHONPATH", "")}


def restore_environment() -> None:
    """In such a process: programs that user code starts see the environment that our user has."""
    kept = os.environ.pop(_KEPT_PYTHONPATH, None)
    if kept:
        os.environ["PYTHONPATH"] = kept
    elif kept is not None:
        os.environ.pop("PYTHONPATH", None)


def children() -> list[int]:
    """Process ids of our children."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:
        return _children_by_scan()


def _children_by_scan() -> list[int]:
    own = os.getpid()
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            if int(fields[1]) == own:
                found.append(int(name))
    return found


def kill_group(pid: int) -> None:
    """End a process, which may not lead its group yet or any more, and whoever is in that."""
    for kill in (os.kill, os.killpg):
        try:
            kill(pid, signal.SIGKILL)
        except OSError:
            pass  # there is none, or what is left in it has become another user's


def descriptors() -> list[int]:
    """All descriptors that this process has open."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            os.fstat(fd)
        except OSError:
            continue  # the listing's own
        found.append(fd)
    return found


def close_others(kept: Collection[int]) -> None:
    """Close all descriptors but these and the standard ones."""
    for fd in descriptors():
        if fd > 2 and fd not in kept:
            os.close(fd)


def threads() -> int:
    """How many threads this process has."""
    return len(os.listdir("/proc/self/task"))


def open_devices() -> list[str]:
    """Accelerators this process has open: contexts on them do not survive a fork."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the listing's own descriptor
        if target.startswith(("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/accel")):
            found.append(target)
    return found


def describe_status(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return "was ended: the processor time that the server's policy gives it is used up"
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "unknown"
        if number == signal.SIGXCPU:
            return f"has used up its limit of processor time (signal {number}, {name})"
        return f"was killed by signal {number} ({name})"
    return f"exited with status {os.WEXITSTATUS(status)}"
