# SPDX-License-Identifier: Apache-2.0
"""What a worker gives up before it runs anything of its client's: new rights for ever, and more than its grant of
memory, processor time, processes and file sizes. Hard limits, so that nothing it runs can take them back."""

import ctypes
import errno
import mmap
import os
import resource
import signal
from typing import Final

from rpcflow.errors import PermissionDeniedError
from rpcflow.processes import prctl
from rpcflow.security.grant import Grant

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAPBSET_DROP: Final = 24
_CAPABILITY_VERSION: Final = 0x20080522
_CAPABILITIES: Final = (19, 21, 24, 8)
"""SYS_PTRACE, SYS_ADMIN, SYS_RESOURCE, and last the one that allows dropping, SETPCAP."""
_CGROUPS: Final = "/sys/fs/cgroup/pids"
"""Where version 1 has the controller that counts processes."""


def give_up(grant: Grant) -> None:
    """Give up rights of this thread and all that it will start: to be called while there are no others."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)  # no program with the set-user-id bit gives its runner more from here on
    if _limits(grant):
        _drop_capabilities()


def _limits(grant: Grant) -> bool:
    limits = (grant.memory_nbytes, grant.cpu_seconds, grant.processes, grant.file_nbytes)
    return any(limit is not None for limit in limits)


def confine(grant: Grant) -> None:
    """Limit this process and all it will start.

    Raises:
        PermissionDeniedError: a limit cannot be had here.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the session's data
    if grant.file_nbytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails with EFBIG instead
        _limit(resource.RLIMIT_FSIZE, grant.file_nbytes)
    if grant.cpu_seconds is not None:
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + grant.cpu_seconds, 1)
    if grant.memory_nbytes is not None:
        _limit_memory(grant.memory_nbytes)
    if grant.processes is not None:
        _limit_processes(grant.processes)


def _limit(what: int, most: int, grace: int = 0) -> None:
    """Set both limits; the hard one, where the kernel kills without a word, ``grace`` later."""
    _, hard = resource.getrlimit(what)
    top = most + grace
    if hard != resource.RLIM_INFINITY:
        top = min(top, hard)
    resource.setrlimit(what, (min(most, top), top))


def _limit_memory(most: int) -> None:
    """Private memory that can be written: unlike RLIMIT_AS, RLIMIT_DATA does not count what a driver of an accelerator
    reserves without using it, nor libraries. What the warm process has already is not the session's."""
    _limit(resource.RLIMIT_DATA, _data_nbytes() + most)
    try:
        mmap.mmap(-1, most + mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, OverflowError):
        return
    raise PermissionDeniedError(
        "the policy limits memory, which this kernel does not do (it is older than 4.7, or was started with "
        "ignore_rlimit_data)"
    )


def _data_nbytes() -> int:
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def _drop_capabilities() -> None:
    """Those by which a process of root's raises its limits again, escapes being counted, or takes over one of ours that
    has more rights than it. Programs it runs do not get them back."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the lower halves, then the upper ones
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    if not any(sets[1] & 1 << number for number in _CAPABILITIES):
        return
    for number in _CAPABILITIES:
        prctl(_PR_CAPBSET_DROP, number)
        for half in range(3):
            sets[half] &= ~(1 << number)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def _limit_processes(most: int) -> None:
    """The kernel counts all processes and threads of a user, and does not count root's: those a control group does."""
    if os.getuid():
        _limit(resource.RLIMIT_NPROC, _own_tasks() - 1 + most)
        return
    folder = cgroup_of(os.getpid())
    try:
        os.mkdir(folder)
        for name, text in (("pids.max", str(most)), ("cgroup.procs", str(os.getpid()))):
            with open(os.path.join(folder, name), "w") as file:
                file.write(text)
    except OSError as error:
        raise PermissionDeniedError(
            "the policy limits processes, which the kernel does for root by control groups only, and those cannot be "
            f"had here ({error.strerror}): run the server as another user"
        ) from error


def _own_tasks() -> int:
    """How many processes and threads our user has."""
    count, own = 0, os.getuid()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                if os.stat(f"/proc/{name}").st_uid == own:
                    count += len(os.listdir(f"/proc/{name}/task"))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has ended meanwhile
    return count


def cgroup_of(pid: int) -> str:
    """The folder of the control group that a worker of root's makes for itself."""
    return f"{_CGROUPS}/rpcflow-{pid}"


def remove_cgroup(pid: int) -> None:
    """A worker and all it had started are gone."""
    try:
        os.rmdir(cgroup_of(pid))
    except FileNotFoundError:
        pass  # it needed none
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTDIR, errno.EROFS):  # in a sandbox that shows /sys there is none
            raise
