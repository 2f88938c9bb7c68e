# SPDX-License-Identifier: Apache-2.0
"""What a worker gives up before it runs anything of its client's: new rights for ever, and more than its grant of
memory, processor time, processes and file sizes. Hard limits, so that nothing it runs can take them back."""

import errno
import os
import resource
from typing import Final

from rpcflow.errors import PermissionDeniedError
from rpcflow.security.grant import Grant

from .processes import prctl

_PR_SET_NO_NEW_PRIVS: Final = 38
_CGROUPS: Final = "/sys/fs/cgroup/pids"
"""Where version 1 has the controller that counts processes."""


def confine(grant: Grant) -> None:
    """Do it to this process and all it will start.

    Raises:
        PermissionDeniedError: a limit cannot be had here.
    """
    prctl(_PR_SET_NO_NEW_PRIVS, 1)  # no program with the set-user-id bit gives its runner more from here on
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the session's data
    if grant.file_nbytes is not None:
        _limit(resource.RLIMIT_FSIZE, grant.file_nbytes)  # Python has SIGXFSZ ignored: writing fails with EFBIG
    if grant.cpu_seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + grant.cpu_seconds)
    if grant.memory_nbytes is not None:
        # Private memory that can be written: unlike RLIMIT_AS it does not count what a driver of an accelerator
        # reserves without using it, nor libraries. What the warm process has already is not the session's.
        _limit(resource.RLIMIT_DATA, _data_nbytes() + grant.memory_nbytes)
    if grant.processes is not None:
        _limit_processes(grant.processes)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _data_nbytes() -> int:
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"VmData:"):
                return int(line.split()[1]) * 1024
    return 0


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
        if error.errno not in (errno.EBUSY, errno.ENOTDIR):
            raise
