# SPDX-License-Identifier: Apache-2.0
"""Processes on a line of their own: what reaches them, what comes back, and that nothing of them is left."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from rpcflow.errors import ConnectionLostError
from rpcflow.transports import Url, async_popen, child, find_transport, popen
from rpcflow.transports.async_popen import AsyncPopenChannel
from rpcflow.transports.child import Child, start, start_in_thread
from rpcflow.transports.popen import BlockingPopenChannel
from tests.children import quick_script, quick_source, write_script
from tests.server.support import Traces, descriptors, exists, line, script, until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes on a pipe are for POSIX systems")
MIB = 1 << 20

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
LOUD = """
def shout():
    left = 1 << 20
    while left:
        left -= os.write(2, b"z" * min(left, 65536))
"""


@pytest.fixture(autouse=True)
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    """Nothing may be left of what a test has started."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    found = Traces(folder, monkeypatch)
    before = descriptors()
    yield found
    gc.collect()
    assert found.none(), (found.processes(), found.files())
    until(lambda: descriptors() <= before, "closing all descriptors")
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # no zombie either


def zombie_or_alive(pid: int) -> bool:
    """Whether there is anything of a process."""
    return Path(f"/proc/{pid}").exists()


Receive = Callable[[int], Awaitable[bytes]]


class Line:
    """Either channel, with awaits in front."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self._blocking = isinstance(channel, BlockingPopenChannel)

    async def _run(self, method: Callable[..., Any], *args: Any) -> Any:
        if self._blocking:
            return await anyio.to_thread.run_sync(method, *args)
        return await method(*args)

    async def send(self, *parts: Any) -> None:
        await self._run(self.channel.send, parts)

    async def take(self, count: int) -> bytes:
        """So many bytes, or fewer at the end."""
        view, got = memoryview(bytearray(count)), 0
        while got < count:
            more = await self._run(self.channel.receive_into, view[got:])
            if not more:
                break
            got += more
        return bytes(view[:got])

    async def finish(self) -> None:
        await self._run(self.channel.finish)


@pytest.fixture(params=["blocking", "trio", "asyncio", "trio without epoll", "asyncio without epoll"])
def api(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name, _, without = request.param.partition(" ")
    if without:
        monkeypatch.setattr(async_popen, "_new_epoll", None)
    return str(name)


@pytest.fixture
def anyio_backend(api: str) -> str:
    return "trio" if api == "blocking" else api


@pytest.fixture
async def opened(api: str, tmp_path: Path) -> Any:
    """Starts quick scripts."""
    lines = []

    async def begin(body: str, poll: bool | None = None) -> Line:
        path = quick_script(tmp_path, body)
        if api == "blocking":
            made = Line(BlockingPopenChannel(start_in_thread(path, poll=poll), poll))
        else:
            made = Line(await AsyncPopenChannel.start(path, poll=poll))
        lines.append(made)
        return made

    yield begin
    for made in lines:
        made.channel.close()


@pytest.mark.anyio
@pytest.mark.parametrize("poll", [None, False])
async def test_bytes_there_and_back(opened: Any, poll: bool | None) -> None:
    cat = await opened(CAT, poll)
    for size in (1, 5, 100_000):
        await cat.send(b"a" * size)
        assert await cat.take(size) == b"a" * size
    data = os.urandom(16 * MIB)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cat.send, data[: 7 * MIB], bytearray(data[7 * MIB : 7 * MIB + 1]), data[7 * MIB + 1 :])
        if isinstance(cat.channel, AsyncPopenChannel):
            assert await cat.take(len(data)) == data
        else:  # that is for one thread at a time, so it has sent all before it takes any: cat must hold it
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("fd", [1, 2])
async def test_what_it_prints_holds_nobody_up(opened: Any, fd: int, capfd: pytest.CaptureFixture[str]) -> None:
    """It prints far more than a pipe holds: while we receive, while we send, and when it ends."""
    body = LOUD.replace("os.write(2", f"os.write({fd}") + (
        "os.read(reading, 1); shout(); os.write(writing, b'1'); shout()\n"
        "left = 8 << 20\n"
        "while left: left -= len(os.read(reading, left))\n"
        "os.write(writing, b'2'); shout(); os.write(writing, b'3'); shout()"
    )
    loud = await opened(body)
    await loud.send(b"g")
    assert await loud.take(1) == b"1"
    await loud.send(bytes(8 * MIB))
    assert await loud.take(2) == b"23"
    assert await loud.take(1) == b""
    crash = loud.channel.crashed("f")
    assert (crash.status, crash.signal, crash.call) == (0, None, "f")
    assert capfd.readouterr().err.count("z") == 4 * MIB


@pytest.mark.anyio
@pytest.mark.parametrize(("poll", "told"), [(None, b"None"), (True, b"None"), (False, b"0")])
async def test_polling_is_for_both_ends_or_none(
    opened: Any, poll: bool | None, told: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RPCFLOW_POLL", raising=False)
    tells = await opened("os.write(writing, str(os.environ.get('RPCFLOW_POLL')).encode())", poll)
    assert await tells.take(10) == told


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("ending", "status", "number", "says"),
    [
        ("sys.exit(7)", 7, None, "exited with status 7"),
        ("os.kill(os.getpid(), 9)", None, 9, "was killed by signal 9 (SIGKILL)"),
        ("os.abort()", None, 6, "was killed by signal 6 (SIGABRT)"),
        ("raise ValueError('on purpose')", 1, None, "ValueError: on purpose"),
    ],
)
async def test_how_it_ended(opened: Any, ending: str, status: int, number: int, says: str) -> None:
    ends = await opened(f"print('one'); print('two', file=sys.stderr); sys.stdout.flush()\n{ending}")
    assert ends.channel.crashed() is None
    assert await ends.take(1) == b""
    assert await ends.take(1) == b""
    crash = ends.channel.crashed("some.call")
    assert (crash.status, crash.signal, crash.call) == (status, number, "some.call")
    assert says in str(crash)
    assert "during 'some.call'" in str(crash)
    assert {"one", "two"} <= set(crash.last_words.splitlines())
    assert not zombie_or_alive(ends.channel.child.pid)


@pytest.mark.anyio
async def test_it_closes_its_line_and_runs_on(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GRACE", 0.05)
    ends = await opened("os.closerange(reading, writing + 1)\nimport time; time.sleep(600)")
    assert await ends.take(1) == b""
    crash = ends.channel.crashed()
    assert (crash.status, crash.signal, crash.call) == (None, None, None)
    assert "closed its line" in str(crash)
    assert not zombie_or_alive(ends.channel.child.pid)


@pytest.mark.anyio
async def test_sending_to_one_that_has_gone(opened: Any) -> None:
    ends = await opened("sys.exit(3)")
    with pytest.raises(ConnectionLostError):
        while True:
            await ends.send(bytes(100_000))
    try:
        assert await ends.take(1) == b""
    except ConnectionLostError:
        pass  # it went with our bytes unread
    assert ends.channel.crashed().status == 3


@pytest.mark.anyio
async def test_asked_to_end_it_does(opened: Any, tmp_path: Path) -> None:
    cat = await opened(CAT + f"open({str(tmp_path / 'ended')!r}, 'w').close()")
    await cat.send(b"x")
    assert await cat.take(1) == b"x"
    await cat.finish()
    assert (tmp_path / "ended").exists()
    assert cat.channel.crashed() is None
    assert not zombie_or_alive(cat.channel.child.pid)
    await cat.finish()
    with pytest.raises(ConnectionLostError, match="closed"):
        await cat.send(b"x")
    with pytest.raises(ConnectionLostError, match="closed"):
        await cat.take(1)


@pytest.mark.anyio
async def test_one_that_does_not_end_is_killed(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (popen, async_popen):
        monkeypatch.setattr(module, "GRACE", 0.05)
    stubborn = await opened(STUBBORN)
    assert await stubborn.take(1) == b"!"
    await stubborn.finish()
    assert not zombie_or_alive(stubborn.channel.child.pid)
    assert stubborn.channel.crashed() is None


@pytest.mark.anyio
async def test_closed_while_somebody_waits(opened: Any) -> None:
    waits = await opened("os.write(writing, b'!'); os.read(reading, 1)")
    assert await waits.take(1) == b"!"
    async with anyio.create_task_group() as tasks:

        async def receive() -> None:
            with pytest.raises(ConnectionLostError, match="closed"):
                await waits.take(1)

        tasks.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        waits.channel.close()
    assert waits.channel.crashed() is None


# ------------------------------------------------------------------------------------------- the process itself


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
    begun = []

    def slow(*args: Any) -> Child:
        made = start(*args)
        begun.append(made.pid)
        os.kill(os.getpid(), signal.SIGINT)
        return made

    monkeypatch.setattr(child, "start", slow)
    with pytest.raises(KeyboardInterrupt):
        start_in_thread(quick_script(tmp_path, STUBBORN))
        time.sleep(10)  # where the signal comes a moment later
    gc.collect()
    assert not zombie_or_alive(begun[0])


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
    assert descriptors() == before + 2
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


# --------------------------------------------------------------------------------------------------- addresses


def url(path: Path, query: str = "") -> Url:
    return Url.parse(f"popen://{path}{query}")


def test_by_url(tmp_path: Path) -> None:
    body = "os.write(writing, repr(sys.argv[1:-2]).encode())"
    found = find_transport("popen")
    assert not getattr(found, "greets", True)
    (tmp_path / "a b").mkdir()
    path = quick_script(tmp_path / "a b", body)
    channel = found.connect_blocking(url(Path(str(path).replace(" ", "%20")), "?arg=one&arg=two%20words"))
    room = memoryview(bytearray(100))
    assert eval(bytes(room[: channel.receive_into(room, time.monotonic() + 30)])) == ["one", "two words"]
    channel.close()


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_script(tmp_path, CAT)
    monkeypatch.chdir(tmp_path)
    for text in ("popen:./quick.py", "popen:quick.py"):
        address = Url.parse(text)
        assert str(address) == text
        find_transport("popen").connect_blocking(address).close()


@pytest.mark.parametrize("text", ["popen://host/path", "popen://host:9/path", "popen:///path?argument=1"])
def test_addresses_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match="popen"):
        find_transport("popen").connect_blocking(Url.parse(text))


def test_a_deadline(tmp_path: Path) -> None:
    channel = BlockingPopenChannel(start(quick_script(tmp_path, STUBBORN)))
    room = memoryview(bytearray(10))
    assert channel.receive_into(room) == 1
    with pytest.raises(TimeoutError):
        channel.receive_into(room, time.monotonic() + 0.01)
    with pytest.raises(TimeoutError):
        while True:
            channel.send([bytes(MIB)], time.monotonic() + 0.05)
    channel.close()


def test_a_file_is_sent_from_where_it_lies(tmp_path: Path) -> None:
    from rpcflow.protocol.values import FilePayload

    body = LOUD + "shout()\nleft = 8 << 20\nwhile left: left -= len(os.read(reading, left))\nos.write(writing, b'!')"
    path = tmp_path / "data"
    path.write_bytes(bytes(8 * MIB))
    channel = BlockingPopenChannel(start(quick_script(tmp_path, body)))
    with open(path, "rb") as file:
        channel.send([FilePayload(file.fileno(), 8 * MIB)])
    room = memoryview(bytearray(10))
    assert channel.receive_into(room) == 1
    channel.close()


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


@pytest.mark.anyio
async def test_asyncio_cancels_its_own_way(tmp_path: Path, api: str) -> None:
    """A task that asyncio itself cancels does not wait for the thread that starts the process."""
    if api != "asyncio":
        return
    import asyncio

    release, pids = threading.Event(), []

    def slow(*args: Any) -> Child:
        release.wait(20)
        made = start(*args)
        pids.append(made.pid)
        return made

    task = asyncio.create_task(
        async_popen._in_thread(partial(slow, quick_script(tmp_path, STUBBORN)))  # what AsyncPopenChannel.start awaits
    )
    while not task._fut_waiter:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    del task
    with anyio.fail_after(20):
        while not pids or zombie_or_alive(pids[0]):
            gc.collect()
            await anyio.sleep(0.01)


assert sys.platform != "win32" or pytestmark
