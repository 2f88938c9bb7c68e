# SPDX-License-Identifier: Apache-2.0
"""Starting a process and ending it: what it inherits, what cannot be started, and that nothing of it is left."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rpcflow.transports import child
from rpcflow.transports.child import Child, start, start_in_thread
from rpcflow.transports.popen import BlockingPopenChannel
from tests.children import CAT, STUBBORN, nothing_left, quick_script, quick_source, write_script
from tests.server.support import Traces, descriptors, exists, line, script, until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes on a pipe are for POSIX systems")
MIB = 1 << 20


@pytest.fixture(autouse=True)
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    """Nothing may be left of what a test has started."""
    with nothing_left(tmp_path, monkeypatch) as found:
        yield found


def zombie_or_alive(pid: int) -> bool:
    """Whether there is anything of a process."""
    return Path(f"/proc/{pid}").exists()


def test_what_it_inherits(tmp_path: Path) -> None:
    """Its line and the three that every program has; whatever of ours may be inherited is not."""
    body = "import stat\nnames = sorted(int(name) for name in os.listdir('/proc/self/fd'))[:-1]\n" + (
        "os.write(writing, repr([names, sys.argv[1:], os.read(0, 1)]).encode())"
    )
    ours = os.open(os.devnull, os.O_RDONLY)
    high = os.dup2(ours, 200, inheritable=True)
    os.set_inheritable(ours, True)
    try:
        made = start(quick_script(tmp_path, body), ["first", "second"])
        text = b""
        while data := made.line.recv(4096):
            text += data
        names, args, stdin = eval(text)
        assert args[:2] == ["first", "second"]
        assert len(args) == 4
        assert set(names) <= {0, 1, 2, *map(int, args[2:]), min(set(range(3, 20)) - set(map(int, args[2:])))}
        assert high not in names
        assert stdin == b""
        made.end()
    finally:
        os.close(ours)
        os.close(high)


def test_whom_it_has_started_goes_with_it(tmp_path: Path) -> None:
    body = "import subprocess\npid = subprocess.Popen(['sleep', '600']).pid\n" + (
        "os.write(writing, str(pid).encode()); os.read(reading, 1)"
    )
    made = start(quick_script(tmp_path, body))
    pid = int(made.line.recv(100))
    assert exists(pid)
    made.end()
    until(lambda: not exists(pid), "the end of the wrapper's child")


def test_dropped_without_a_word(tmp_path: Path) -> None:
    made: Child | None = start(quick_script(tmp_path, STUBBORN))
    assert made is not None
    pid = made.pid
    assert made.line.recv(1) == b"!"
    made = None
    gc.collect()
    assert not zombie_or_alive(pid)


def test_a_fork_of_ours_lets_go_of_its_copy_only(tmp_path: Path) -> None:
    made = start(quick_script(tmp_path, CAT))
    pid = os.fork()
    if not pid:
        made.end()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    made.line.send(b"still here")
    assert made.line.recv(100) == b"still here"
    made.end()


def test_interrupted_while_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    noticed = threading.Event()

    def interrupt(*_: Any) -> None:
        noticed.set()
        raise KeyboardInterrupt

    def slow(*args: Any) -> Child:
        made = start(*args)
        os.kill(os.getpid(), signal.SIGINT)
        noticed.wait(10)
        begun.append(made.pid)
        return made

    monkeypatch.setattr(child, "start", slow)
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            start_in_thread(quick_script(tmp_path, STUBBORN))
    finally:
        signal.signal(signal.SIGINT, before)
    until(lambda: bool(begun) and not zombie_or_alive(begun[0]), "its end")


LEAVE = """
import sys, threading
from rpcflow import sync
from rpcflow.transports.child import start
kept = start(sys.argv[1])
kept.line.recv(1)
print(kept.pid, flush=True)
if sys.argv[2] == "kill":
    threading.Event().wait()
if sys.argv[2] == "raise":
    raise SystemExit(3)
"""


@pytest.mark.parametrize("how", ["return", "raise"])
def test_the_interpreter_ends(tmp_path: Path, how: str) -> None:
    with script(LEAVE, quick_script(tmp_path, STUBBORN), how) as process:
        pid = int(line(process))
        process.wait()
        assert not zombie_or_alive(pid)


def test_our_process_is_killed(tmp_path: Path) -> None:
    """Nobody is left to end it; it sees the end of its line."""
    with script(LEAVE, quick_script(tmp_path, "os.write(writing, b'!'); os.read(reading, 1)"), "kill") as process:
        pid = int(line(process))
        process.kill()
        until(lambda: not exists(pid), "its end")


# ------------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("make", "kind", "number"),
    [
        (lambda path: path / "missing", FileNotFoundError, errno.ENOENT),
        (lambda path: path, IsADirectoryError, errno.EISDIR),
        (lambda path: (path / "plain").touch() or path / "plain", PermissionError, errno.EACCES),
        (lambda path: write_script(path / "x", "no program"), OSError, errno.ENOEXEC),
        (lambda path: write_script(path / "x", "#!/no/such/interpreter"), FileNotFoundError, errno.ENOENT),
        (lambda path: Path("/dev/null"), PermissionError, errno.EACCES),
        (lambda path: b"no program", OSError, errno.ENOEXEC),
        (lambda path: bytearray(b"#!/no/such/interpreter"), FileNotFoundError, errno.ENOENT),
    ],
)
@pytest.mark.parametrize("memory", [True, False])
def test_what_cannot_be_started(
    tmp_path: Path, make: Any, kind: type[OSError], number: int, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    binary = make(tmp_path)
    for begin in (start, start_in_thread):
        with pytest.raises(kind) as caught:
            begin(binary)
        assert caught.value.errno == number
        assert caught.value.filename == ("given as bytes" if isinstance(binary, bytes | bytearray) else str(binary))


@pytest.mark.parametrize(
    ("binary", "kind"), [("", ValueError), (b"", ValueError), (None, TypeError), (7, TypeError), ("a\0b", ValueError)]
)
def test_what_is_no_program(binary: Any, kind: type[Exception]) -> None:
    for begin in (start, start_in_thread):
        with pytest.raises(kind):
            begin(binary)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("memory", [True, False])
def test_bytes(traces: Traces, kind: Any, memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file without a name where the system has such; else in one that goes once it has answered."""
    if not memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    before = descriptors()
    made = start(kind(quick_source(CAT).encode()))
    assert bool(traces.files()) == (not memory)
    made.line.send(b"x")
    assert made.line.recv(1) == b"x"
    made.serves()
    assert not traces.files()
    assert descriptors() == before + 2 + (made.watch is not None)
    made.end()
    made = start(kind(quick_source(CAT).encode()))
    made.end()


def test_bytes_where_such_files_cannot_be_run(traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    def made_in_vain(program: Any) -> str:
        program._memory = os.open(os.devnull, os.O_RDONLY)
        return f"/proc/{os.getpid()}/fd/{1 << 20}"

    monkeypatch.setattr(child._Program, "_in_memory", made_in_vain)
    made = start(quick_source(CAT).encode())
    assert made.line.send(b"x") == len(made.line.recv(1))
    made.end()


def test_a_file_that_somebody_still_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = quick_script(tmp_path, CAT)
    writing = [os.open(path, os.O_WRONLY)]
    with pytest.raises(OSError, match="busy"):
        subprocess.Popen([path])
    sleep = time.sleep

    def pause(seconds: float) -> None:
        if writing:
            os.close(writing.pop())
        else:
            sleep(seconds)

    monkeypatch.setattr(time, "sleep", pause)
    made = start(path)
    assert not writing
    made.end()


def test_two_threads_start_and_end(tmp_path: Path) -> None:
    """Many at once: no descriptor of one reaches another, or its end would not be seen."""
    path = quick_script(tmp_path, CAT)
    failures = []

    def work() -> None:
        try:
            for _ in range(10):
                channel = BlockingPopenChannel(start(path))
                channel.send([b"x"])
                channel.receive_into(memoryview(bytearray(1)))
                channel.finish()
                if channel.child._process.returncode != 0:
                    failures.append(channel.child._process.returncode)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
