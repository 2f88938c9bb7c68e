# SPDX-License-Identifier: Apache-2.0
"""Programs for sessions on a pipe: scripts, so that tests need no compiler."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.support import Traces, descriptors, until

ROOT = Path(__file__).resolve().parents[1]

CAT = """
while data := os.read(reading, 1 << 20):
    data = memoryview(data)
    while data:
        data = data[os.write(writing, data) :]
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(writing, b"!")
time.sleep(600)
"""

_SERVER = """#!{python}
# Serves TVM's protocol on the two descriptors named by its last arguments.
import os, sys, tempfile
tempfile.tempdir = {scratch!r}
sys.path[:0] = {path!r}
from rpcflow import register
from rpcflow.server.local import LocalChannel

reading, writing = int(sys.argv[-2]), int(sys.argv[-1])

def flood(nbytes, fd):
    line = b"more and more and more\\n" * 1000
    while nbytes > 0:
        nbytes -= os.write(fd, line[:nbytes])

def descriptors():
    # That of the listing itself is closed again when we look.
    return ",".join(name for name in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + name))

def signalled(number):
    import signal
    signal.signal(number, signal.SIG_DFL) if number not in (9, 19) else None
    os.kill(os.getpid(), number)

def block(mark):
    import time
    open(mark, "w").close()
    time.sleep(600)

def grandchild():
    import subprocess
    return subprocess.Popen(["sleep", "600"]).pid

def fail(text):
    raise ValueError(text)

def hang_up():
    import time
    os.closerange(reading, writing + 1)
    time.sleep(600)

functions = dict(
    echo=lambda value: value, pid=os.getpid, args=lambda: ",".join(sys.argv[1:-2]), cwd=os.getcwd, exit=os._exit,
    signal=signalled, flood=flood, descriptors=descriptors, block=block, grandchild=grandchild, fail=fail,
    stdin=lambda: os.read(0, 10), hang_up=hang_up, lines=lambda: ",".join(sys.argv[-2:]),
    say=lambda text: os.write(2, text.encode()), print=lambda text: os.write(1, text.encode()),
    half=lambda: os.write(writing, b"\\x20" + bytes(7) + b"\\x04") and os._exit(3),
    garbage=lambda: os.write(writing, b"\\xff" * 64) and None,
)
for name, function in functions.items():
    register("t." + name, function)
channel = LocalChannel()
answer = memoryview(bytearray(1 << 18))
try:
    while data := os.read(reading, 1 << 18):
        channel.send([data])
        while channel._answers:
            left = answer[: channel.receive_into(answer)]
            while left:
                left = left[os.write(writing, left) :]
        if channel._executor.machine.state.name == "CLOSED":
            break
finally:
    channel.close()
{end}
"""

_QUICK = """#!{python} -S
# With nothing imported but what this needs.
import os, sys
reading, writing = int(sys.argv[-2]), int(sys.argv[-1])
"""


def write_script(path: Path, source: str) -> Path:
    """An executable file."""
    path.write_text(source)
    path.chmod(0o755)
    return path


def server_source(scratch: Path, end: str = "") -> str:
    """A server that offers ``t.*``; at the end of its session it runs ``end``. It keeps its own files in ``scratch``,
    where they are left if it is killed."""
    path = [str(ROOT), *(entry for entry in sys.path if entry)]
    return _SERVER.format(python=sys.executable, path=path, end=end, scratch=str(scratch))


def server_script(folder: Path, end: str = "") -> Path:
    """A file of it."""
    return write_script(folder / "server.py", server_source(folder, end))


def quick_source(body: str) -> str:
    """A script that starts in a few milliseconds, with ``os``, ``sys``, ``reading`` and ``writing``."""
    return _QUICK.format(python=sys.executable) + body


def quick_script(folder: Path, body: str) -> Path:
    """A file of it."""
    return write_script(folder / "quick.py", quick_source(body))


_BEFORE: set[int] = set()


def ours() -> list[int]:
    """Our children, those of all our threads, zombies too; without those from before :func:`nothing_left`, which other
    tests' fixtures keep."""
    return [pid for pid in _children() if pid not in _BEFORE]


def _children() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(word) for word in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            pass  # that thread has just ended
    return found


@contextlib.contextmanager
def nothing_left(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Traces]:
    """Around a test: at its end there is no process, zombie, file or descriptor more than before."""
    temporary = folder / "temporary"
    temporary.mkdir()
    found = Traces(temporary, patch)
    gc.collect()  # what other tests have dropped is not to end during this one
    before = descriptors()
    _BEFORE.clear()
    _BEFORE.update(_children())
    yield found
    gc.collect()
    assert found.none(), (found.processes(), found.files())
    until(lambda: descriptors() <= before, "closing all descriptors")
    assert not ours()
