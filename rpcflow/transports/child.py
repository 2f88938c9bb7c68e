# SPDX-License-Identifier: Apache-2.0
"""A process that we start and that serves a session on a line of its own.

It is told two descriptors by its last two arguments, decimal numbers: the one to read from and the one to write to. Of
ours it gets nothing else: its standard input is empty, and what it writes to its standard output and error comes to us
by a pipe.
"""

import errno
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, Final, Literal

from rpcflow.errors import SessionCrashedError

from .words import LastWords

Binary = str | os.PathLike[str] | bytes | bytearray | memoryview
"""A program: the path of a file, or what would stand in it."""
GRACE: Final = 1.0
"""Seconds a process has to end by itself, once its line is closed, before it is killed."""
_REAP_SECONDS: Final = 5.0
_BUSY_SECONDS: Final = 1.0
_PAUSE: Final = 0.01
"""Seconds between looks where nothing tells."""
_BUFFER_NBYTES: Final = 1 << 20


class Child:
    """A process that runs. It is killed and reaped by :meth:`end`, when nothing refers to this object any more, and at
    the interpreter's end; whoever it has started in its process group goes with it.

    Attributes:
        line: our end of its line, in blocking mode.
        words: what it says beside the protocol.
        watch: a descriptor that becomes readable when it ends: one that it has started may hold its line open. None
            where the system has none.
        name: of the program, for messages.
        pid: of the process.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", line: socket.socket, words: LastWords, program: "_Program"):
        self.line = line
        self.words = words
        self.name = program.name
        self.pid = process.pid
        self._process = process
        self._program = program
        self._fallen: tuple[int | None, str] | None = None
        watch = _open_process(self.pid)
        self.watch = None if watch is None else open(watch, "rb", buffering=0)  # noqa: SIM115
        self._end = weakref.finalize(self, _end, process, line, words, self.watch, program, os.getpid())

    def serves(self) -> None:
        """It has answered: what it was started from is not needed any more."""
        self._program.release()

    def wait(self, seconds: float) -> bool:
        """Wait for its end, and take what it says meanwhile; whether it has ended. It is not reaped yet."""
        deadline = time.monotonic() + seconds
        watch = _open_process(self.pid)
        try:
            poller = select.poll()
            if watch is not None:
                poller.register(watch, select.POLLIN)
            while _state(self._process) == "runs":
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                fd = self.words.fd
                if not self.words.ended and fd >= 0:  # another thread may close it in between
                    poller.register(fd, select.POLLIN)
                ready = poller.poll((left if watch is not None else min(left, _PAUSE)) * 1000)
                for fd, _ in ready:
                    if fd != watch:
                        self.words.look()
                        poller.unregister(fd)
            return True
        finally:
            if watch is not None:
                os.close(watch)

    def fall(self) -> None:
        """Its line has ended though we did not close it: see why, and end what is left of it. Takes as long as the
        process takes to end, at most :data:`GRACE`."""
        ended = self.wait(GRACE)
        if self._fallen is None and self._end.alive:  # else it was our doing after all
            text = self.words.finish()
            _bury(self._process, self.words, self._program)
            self._fallen = (self._process.returncode if ended else None, text)

    def crashed(self, call: str = "") -> SessionCrashedError | None:
        """What to say of its end if it was not our doing; None if it was, or if it runs."""
        if self._fallen is None:
            return None
        code, words = self._fallen
        how = "closed its line, and was killed because it did not end" if code is None else describe_exit(code)
        text = f"the process {self.name} {how}{f' during {call!r}' if call else ''}"
        if words:
            text += f"; its last words:\n{words}"
        return SessionCrashedError(
            text,
            signal=-code if code is not None and code < 0 else None,
            status=code if code is not None and code >= 0 else None,
            call=call or None,
            last_words=words,
        )

    def end(self) -> None:
        """Kill and reap it, and close all there was between it and us."""
        self._end()


def _end(
    process: "subprocess.Popen[bytes]",
    line: socket.socket,
    words: LastWords,
    watch: IO[bytes] | None,
    program: "_Program",
    owner: int,
) -> None:
    line.close()
    if watch is not None:
        watch.close()
    if os.getpid() == owner:
        _bury(process, words, program)
    else:  # we are a fork of its parent, who alone can end it
        words.close()
        process.returncode = 0


def _bury(process: "subprocess.Popen[bytes]", words: LastWords, program: "_Program") -> None:
    words.close()
    program.release()
    if _state(process) != "reaped":
        for kill in (os.killpg, os.kill):
            try:
                kill(process.pid, signal.SIGKILL)
            except OSError:
                pass  # it has ended, and nobody is left in its group
    try:
        process.wait(_REAP_SECONDS)
    except subprocess.TimeoutExpired:
        pass  # the system does not let go of it; subprocess reaps it when it starts something else


def _state(process: "subprocess.Popen[bytes]") -> Literal["runs", "ended", "reaped"]:
    """How it is with a process, looked at without reaping it where the system can do that: until then its number is
    nobody else's, nor that of its group."""
    if process.returncode is not None:
        return "reaped"
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        return "runs" if process.poll() is None else "reaped"
    try:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return "reaped"  # the program we are part of reaps whatever ends
    return "ended" if ended else "runs"


def start(binary: Binary, args: Sequence[str] = (), poll: bool | None = None) -> Child:
    """Start a process on a line. Blocks for as long as a fork and the reading of the program take; no signal handler of
    Python may come in between, so it is best run in a thread (:func:`start_in_thread`).

    Args:
        binary: the program.
        args: arguments before the two descriptors.
        poll: False asks it, by the variable RPCFLOW_POLL, not to poll for requests either.

    Raises:
        OSError: it cannot be started: FileNotFoundError, PermissionError, IsADirectoryError ...
        ValueError, TypeError: there is no such program.
    """
    if os.name != "posix":
        raise OSError(errno.ENOSYS, "sessions with a process on a pipe are for POSIX systems")
    import fcntl

    with ExitStack() as ours, ExitStack() as theirs:
        environment = None if poll is not False else {**os.environ, "RPCFLOW_POLL": "0"}
        program = _Program(binary)
        ours.callback(program.release)
        program.prepare()
        line, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.callback(line.close)
        theirs.callback(end.close)
        for sock in (line, end):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_NBYTES)
        # Above the three standard ones, should we have been started without those.
        reading = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3)
        theirs.callback(os.close, reading)
        writing = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3)
        theirs.callback(os.close, writing)
        errors, errors_writing = os.pipe()
        words = LastWords(errors)
        ours.callback(words.close)
        theirs.callback(os.close, errors_writing)
        os.set_blocking(errors, False)
        process = program.spawn(list(args), reading, writing, errors_writing, environment)
        child = Child(process, line, words, program)
        ours.pop_all()
    return child


def start_in_thread(binary: Binary, args: Sequence[str] = (), poll: bool | None = None) -> Child:
    """As :func:`start`, whole or not at all: what signal handlers raise, they raise in the main thread alone."""
    made: list[Child | BaseException] = []
    done, given_up = threading.Event(), threading.Event()

    def work() -> None:
        try:
            made.append(start(binary, args, poll))
        except BaseException as error:
            made.append(error)
        done.set()
        if given_up.is_set():
            leave()

    def leave() -> None:
        for one in made:
            if isinstance(one, Child):
                one.end()

    try:
        threading.Thread(target=work).start()
        done.wait()  # a join that is interrupted takes the thread for ended (CPython below 3.13)
    except BaseException:
        given_up.set()
        leave()  # else the thread does
        raise
    (result,) = made
    if isinstance(result, Child):
        return result
    try:
        raise result
    finally:
        made.clear()
        del result


def check(binary: Binary, args: Sequence[str] = ()) -> str:
    """What a program is called in messages, if that can be one, and its arguments can be some.

    Raises:
        TypeError: it is neither a path nor bytes, or the arguments are not a list of text.
        ValueError: it is empty.
    """
    if isinstance(args, str | bytes) or not all(isinstance(arg, str) for arg in args):
        raise TypeError(f"a program's arguments are a list of text, not {args!r}")
    if not isinstance(binary, str | os.PathLike | bytes | bytearray | memoryview):
        raise TypeError(f"a program is a path or the bytes of one, not a {type(binary).__name__}")
    if isinstance(binary, bytes | bytearray | memoryview):
        name = "given as bytes" if memoryview(binary).nbytes else ""
    else:
        name = os.fsdecode(binary)
    if not name:
        raise ValueError("a program is a path or the bytes of one, not nothing")
    return name


def describe_exit(code: int) -> str:
    """How a process ended, by its exit status, or less the number of the signal that killed it."""
    if code >= 0:
        return f"exited with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    return f"was killed by signal {-code} ({name})"


class _Program:
    """What is executed: a file of the user's; or bytes, in a file that has no name where the system can do that, so
    that there is nothing to remove whatever happens.

    Bytes are kept until :meth:`release`: the interpreter of a script opens it some time after it was started.
    """

    def __init__(self, binary: Binary) -> None:
        self._folder: str | None = None
        self._memory = -1
        self._data: bytes | bytearray | memoryview | None = None
        self._path = ""
        self.name = check(binary)
        if isinstance(binary, bytes | bytearray | memoryview):
            self._data = binary

    def prepare(self) -> None:
        """Have something that can be executed.

        Raises:
            OSError: there is nothing.
        """
        if self._data is not None:
            self._path = self._in_memory() or self._in_folder()
            return
        self._path = os.path.abspath(self.name)
        try:
            mode = os.stat(self._path).st_mode
            if stat.S_ISDIR(mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(mode) or not os.access(self._path, os.X_OK):
                raise OSError(errno.EACCES, "not an executable file")
        except OSError as error:
            raise self._refused(error) from None

    def spawn(
        self, args: list[str], reading: int, writing: int, errors: int, environment: dict[str, str] | None
    ) -> "subprocess.Popen[bytes]":
        """Start it."""
        try:
            try:
                return self._spawn(args, reading, writing, errors, environment)
            except (FileNotFoundError, PermissionError):
                if self._memory < 0:
                    raise
                self.release()  # there is no /proc, say: that such a file can be made does not mean that it can be run
                self._path = self._in_folder()
                return self._spawn(args, reading, writing, errors, environment)
        except OSError as error:
            raise self._refused(error) from None
        finally:
            self._data = None

    def _spawn(
        self, args: list[str], reading: int, writing: int, errors: int, environment: dict[str, str] | None
    ) -> "subprocess.Popen[bytes]":
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return subprocess.Popen(
                    [self.name, *args, str(reading), str(writing)],
                    executable=self._path,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    pass_fds=(reading, writing),
                    process_group=0,  # Ctrl-C is for us; and what it starts in its group can be ended with it
                )
            except OSError as error:
                # Another thread has forked while we wrote the file, and its child has not let go of our descriptor yet.
                if error.errno != errno.ETXTBSY or time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE)

    def _refused(self, error: OSError) -> OSError:
        text = error.strerror or str(error)
        if error.errno == errno.ENOEXEC:
            text = "not a program that this system can run"
        elif error.errno == errno.ENOENT and os.path.exists(self._path):
            text = "the interpreter or loader that it names does not exist"
        return OSError(error.errno, text, self.name)  # of the subclass for that number

    def _in_memory(self) -> str | None:
        if not hasattr(os, "memfd_create"):
            return None
        try:
            self._memory = os.memfd_create("rpcflow-program", os.MFD_CLOEXEC)
        except OSError:
            return None  # forbidden here
        self._write(self._memory)
        # Not /proc/self: the new process closes what it is not to have before it executes this.
        return f"/proc/{os.getpid()}/fd/{self._memory}"

    def _in_folder(self) -> str:
        self._folder = tempfile.mkdtemp(prefix="rpcflow-program-")
        path = os.path.join(self._folder, "server.minrpc")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
        try:
            self._write(fd)
        finally:
            os.close(fd)
        return path

    def release(self) -> None:
        """Let go of the bytes."""
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _write(self, fd: int) -> None:
        assert self._data is not None
        rest = memoryview(self._data).cast("B")
        while rest:
            rest = rest[os.write(fd, rest) :]


def _open_process(pid: int) -> int | None:
    """A descriptor that becomes readable when a process ends; None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
