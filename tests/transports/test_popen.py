# SPDX-License-Identifier: Apache-2.0
"""Processes on a line of their own: what reaches them, what comes back, and that nothing of them is left."""

from __future__ import annotations

import gc
import os
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
from tests.children import CAT, STUBBORN, nothing_left, quick_script
from tests.server.support import Traces

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes on a pipe are for POSIX systems")
MIB = 1 << 20

LOUD = """
def shout():
    left = 1 << 20
    while left:
        left -= os.write(2, b"z" * min(left, 65536))
"""


@pytest.fixture(autouse=True)
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    """Nothing may be left of what a test has started."""
    with nothing_left(tmp_path, monkeypatch) as found:
        yield found


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
@pytest.mark.parametrize("prints", [True, False])
async def test_it_ends_and_another_holds_its_line(api: str, opened: Any, prints: bool) -> None:
    """All it has said comes first."""
    if not hasattr(os, "pidfd_open") or async_popen._new_epoll is None:
        return  # a system that does not tell of ends, or one that is to be like that
    quiet = "" if prints else "os.close(1); os.close(2)"
    ends = await opened(
        f"{quiet}\nimport time\nif not os.fork(): time.sleep(600)\n"
        "os.read(reading, 1); os.write(writing, b'a' * 100_000); os._exit(3)"
    )
    await ends.send(b"!")
    assert await ends.take(100_000) == b"a" * 100_000
    with pytest.raises(ConnectionLostError):
        await ends.take(1)
    crash = ends.channel.crashed()
    assert (crash.status, crash.signal) == (3, None)


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


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"100%\xff#?.py")
    os.rename(quick_script(tmp_path, CAT), tmp_path / name)
    found = find_transport("popen").connect_blocking(url(tmp_path / "100%25%FF%23%3F.py"))
    found.close()


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
