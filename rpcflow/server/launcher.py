# SPDX-License-Identifier: Apache-2.0
"""The launcher: a process of one thread, warm with all imports, that forks a worker for each session.

It is told what to do over a socket of whole messages, each a JSON object:

======================================================  =====================================================
``{"start": id, "grant": text}`` and four descriptors   begin a session: client's socket, where to say that it is
                                                        ready, where its errors go, its status page
``{"kill": id}``                                        end it
``{"ready": pid, "scratch": path}``                     (to the supervisor) imports are done; sessions' folders are
                                                        in this one
``{"failed": text}``                                    (to the supervisor) imports have failed
``{"ended": id, "status": wait status}``                (to the supervisor) a worker and all it started are gone
======================================================  =====================================================

End of stream means that the supervisor is gone: everything is killed and removed.
"""

import array
import gc
import json
import os
import select
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import attrs

from rpcflow.processes import (
    SANDBOXED,
    adopt_orphans,
    children,
    close_others,
    descriptors,
    die_with_parent,
    kill_group,
    open_devices,
    python_environment,
    restore_environment,
    threads,
)
from rpcflow.security.grant import Grant

from .config import WorkerConfig
from .confine import give_up, remove_cgroup
from .folder import remove_tree
from .status import StatusPage
from .worker import enter, prepare, read_config, redirect, run_and_end, serve

_MESSAGE_NBYTES: Final = 1 << 16
_FDS: Final = 4
_SPARE: Final = 0
"""Number of a worker that waits for a session."""
_SCRATCH_PREFIX: Final = "rpcflow-"


@attrs.define
class _Session:
    """A worker that runs."""

    number: int
    pid: int
    folder: str


class Launcher:
    """The loop, its workers and their folders.

    Args:
        control: the supervisor's end of things.
        config: what workers are told.
        config_fd: the file it came from, for workers that are spawned.
        supervisor: becomes readable when the supervisor has ended. The control socket alone would not tell if the
            program has forked: its children have the supervisor's end of it too.
    """

    def __init__(
        self, control: socket.socket, config: WorkerConfig, config_fd: int, supervisor: int | None = None
    ) -> None:
        self._control = control
        self._supervisor = supervisor
        self._config = config
        self._config_fd = config_fd
        # What imports have opened is for sessions too; nothing else that is open here is.
        ours = {control.fileno(), config_fd, supervisor}
        self._kept = [fd for fd in descriptors() if fd not in ours]
        self._by_pid: dict[int, _Session] = {}
        self._own = set(children())  # what the callback has started lives as long as the server
        self._scratch = tempfile.mkdtemp(prefix=_SCRATCH_PREFIX)
        self._wakeup, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._spare: tuple[int, socket.socket] | None = None
        self._wants_spare = False

    def run(self) -> None:
        """Serve until the supervisor is gone."""
        signal.signal(signal.SIGCHLD, lambda *_: None)  # so that the wakeup descriptor hears of it
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        try:
            if not self._config.no_fork:
                self._fork_spare()
            self._tell({"ready": os.getpid(), "scratch": self._scratch})
            poller = select.poll()
            poller.register(self._control, select.POLLIN)
            poller.register(self._wakeup, select.POLLIN)
            if self._supervisor is not None:
                poller.register(self._supervisor, select.POLLIN)
            while True:
                events = poller.poll(0 if self._wants_spare else None)
                if not events:
                    self._renew_spare()
                for fd, _ in events:
                    if fd == self._wakeup:
                        os.read(self._wakeup, 4096)
                        self._reap()
                    elif fd == self._supervisor or not self._command():
                        return
        except ConnectionError:
            return
        finally:
            self._end_all()

    def _command(self) -> bool:
        data, ancillary, _, _ = self._control.recvmsg(_MESSAGE_NBYTES, socket.CMSG_SPACE(_FDS * 4))
        if not data:
            return False
        fds = array.array("i")
        for _, _, payload in ancillary:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        for fd in fds:
            os.set_inheritable(fd, False)
        message = json.loads(data)
        if "start" in message:
            self._start(message["start"], message["grant"], list(fds))
        else:
            for session in self._by_pid.values():
                if session.number == message["kill"]:
                    os.kill(session.pid, signal.SIGKILL)
        return True

    def _start(self, number: int, grant: str, fds: list[int]) -> None:
        try:
            if self._config.no_fork:
                folder = self._new_folder()
                try:
                    pid = self._spawn(folder, grant, fds)
                except OSError:
                    remove_tree(folder)
                    raise
                self._by_pid[pid] = _Session(number, pid, folder)
            else:
                self._hand_over(number, grant, fds)
        except OSError as error:
            os.write(fds[2], f"a worker cannot be started: {error}\n".encode())
            self._tell({"ended": number, "status": 1 << 8})
        finally:
            for fd in fds:
                os.close(fd)
        self._wants_spare = not self._config.no_fork and self._spare is None

    def _renew_spare(self) -> None:
        """When nobody waits for us: a fork takes as long as a short session, whose end has to be seen to first."""
        self._wants_spare = False
        try:
            self._fork_spare()
        except OSError:
            pass  # the next session tries again, and says so if it still cannot be

    def _hand_over(self, number: int, grant: str, fds: list[int]) -> None:
        """Give a session to the worker that waits for one; to a new one if that has died."""
        for _ in range(2):
            pid, line = self._spare or self._fork_spare()
            self._spare = None
            with line:
                try:
                    socket.send_fds(line, [grant.encode()], fds)
                except ConnectionError:
                    continue
            if pid in self._by_pid:
                self._by_pid[pid].number = number
                return
        raise OSError("new workers die at once")

    def _new_folder(self) -> str:
        return tempfile.mkdtemp(prefix="session-", dir=self._scratch)

    def _fork_spare(self) -> tuple[int, socket.socket]:
        """Fork the next session's worker ahead of its client, who need not wait for that then."""
        folder = self._new_folder()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        with theirs:
            try:
                pid = os.fork()
            except BaseException:
                ours.close()
                remove_tree(folder)
                raise
            if pid:
                self._by_pid[pid] = _Session(_SPARE, pid, folder)
                self._spare = (pid, ours)
                return self._spare
            self._be_worker(parent, folder, ours, theirs)

    def _be_worker(self, parent: int, folder: str, ours: socket.socket, theirs: socket.socket) -> NoReturn:
        def work() -> None:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._control.detach()
            ours.detach()
            close_others({*self._kept, theirs.fileno()})
            enter(parent, folder)
            grant, fds, _, _ = socket.recv_fds(theirs, _MESSAGE_NBYTES, _FDS)
            theirs.close()
            if not fds:
                os._exit(0)  # no client came before the server ended
            sock_fd, ready_fd, stderr_fd, page_fd = fds
            for fd in fds:
                os.set_inheritable(fd, False)
            redirect(stderr_fd)
            page = StatusPage(page_fd)
            os.close(page_fd)
            right = Grant.from_json(grant.decode())
            give_up(right)
            if self._config.init_in_worker:
                prepare(self._config)
            serve(socket.socket(fileno=sock_fd), page, ready_fd, folder, self._config, right)

        run_and_end(work)  # nothing may get back into the launcher's own code

    def _spawn(self, folder: str, grant: str, fds: list[int]) -> int:
        handed = [*fds, self._config_fd]
        for fd in handed:
            os.set_inheritable(fd, True)
        try:
            return os.posix_spawn(
                sys.executable,
                [
                    sys.executable,
                    *_interpreter_flags(),
                    "-m",
                    "rpcflow.server.worker",
                    *map(str, handed),
                    str(os.getpid()),
                    folder,
                    grant,
                ],
                python_environment(self._config.sys_path),
                setsid=True,
                setsigdef=[signal.SIGCHLD, signal.SIGINT],
            )
        finally:
            for fd in handed:
                os.set_inheritable(fd, False)

    def _reap(self) -> None:
        while True:
            try:
                gone = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if gone is None:
                return
            pid = gone.si_pid
            session = self._by_pid.get(pid)
            if session is not None:
                kill_group(pid)  # before it is reaped: until then its number is nobody else's
            _, status = os.waitpid(pid, 0)
            self._own.discard(pid)
            if session is not None:
                del self._by_pid[pid]
                self._kill_strays()
                remove_cgroup(pid)
                remove_tree(session.folder)
                if session.number == _SPARE:
                    if self._spare is not None and self._spare[0] == pid:
                        self._spare[1].close()
                        self._spare = None
                    continue
                self._tell({"ended": session.number, "status": status})

    def _kill_strays(self) -> None:
        """A worker is gone: so shall be all it started. Its descendants have become our children by now, and killing
        one may bring us more."""
        while True:
            strays = [pid for pid in children() if pid not in self._by_pid and pid not in self._own]
            if not strays:
                return
            for pid in strays:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _end_all(self) -> None:
        for pid in self._by_pid:
            kill_group(pid)
        pids = list(self._by_pid)
        for pid in pids:
            os.waitpid(pid, 0)
        self._by_pid.clear()
        self._own.clear()
        self._kill_strays()
        for pid in pids:
            remove_cgroup(pid)
        remove_tree(self._scratch)

    def _tell(self, message: dict[str, Any]) -> None:
        self._control.send(json.dumps(message).encode())


def _watch_process(pid: int) -> int | None:
    """A descriptor that becomes readable when a process ends; None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _interpreter_flags() -> list[str]:
    return ["-X", "dev"] if sys.flags.dev_mode else []


def main(argv: Sequence[str]) -> int:
    """``control_fd config_fd supervisor_pid [late]``. ``late``: imports are left to the workers."""
    control_fd, config_fd, supervisor = (int(word) for word in argv[:3])
    late = len(argv) > 3
    for fd in (control_fd, config_fd):
        os.set_inheritable(fd, False)
    if supervisor != SANDBOXED:
        die_with_parent(supervisor)  # while imports run, which nobody can be asked to stop
    control = socket.socket(fileno=control_fd)
    config = read_config(config_fd)
    sys.path[:] = config.sys_path
    restore_environment()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if config.no_fork:
            pass  # each worker does it for itself
        elif late:
            config = attrs.evolve(config, init_in_worker=True)
            prepare(attrs.evolve(config, imports=(), callback=None))
        else:
            prepare(config)
            if threads() > 1 or open_devices():
                print(
                    "rpcflow: what was imported left threads or a device behind, which a fork does not survive; "
                    "imports and server_init_callback run in each session's process instead",
                    file=sys.stderr,
                )
                for fd in (control_fd, config_fd):
                    os.set_inheritable(fd, True)
                _flush()
                flags = [sys.executable, *_interpreter_flags(), "-m", "rpcflow.server.launcher"]
                os.execve(sys.executable, [*flags, *argv[:3], "late"], python_environment(config.sys_path))
    except (Exception, SystemExit):
        text = traceback.format_exc()
        control.send(json.dumps({"failed": text[-3000:]}).encode())
        return 1
    import rpcflow.backends.cpu  # noqa: F401

    from . import forward  # noqa: F401  # warm for the workers

    watched = None
    if supervisor != SANDBOXED:
        die_with_parent(supervisor, 0)
        if os.getppid() != supervisor:
            return 1
        watched = _watch_process(supervisor)
    adopt_orphans()
    if late:
        _end_children()
    _flush()  # what stood in a buffer would be every worker's
    gc.collect()
    gc.freeze()
    Launcher(control, config, config_fd, watched).run()
    return 0


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more


def _end_children() -> None:
    """What the callback had started before it was left to the workers, who start their own."""
    for pid in children():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
