# SPDX-License-Identifier: Apache-2.0
"""Sessions with a program that is started for them, by each API: what they do, and what is said when it dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import rpcflow
from rpcflow import sync
from tests.children import nothing_left, ours, quick_script, quick_source, server_script, server_source, write_script
from tests.server.support import Traces, exists, until
from tests.transcripts import DATA

from .lifted import Lifted

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name != "posix", reason="processes on a pipe are for POSIX systems"),
]
Open = Callable[..., Any]

INIT_AND_FEATURE = """
import struct
def packet():
    head = b""
    while len(head) < 8:
        head += os.read(reading, 8 - len(head)) or sys.exit(0)
    size, = struct.unpack("<Q", head)
    body = b""
    while len(body) < size:
        body += os.read(reading, size - len(body))
    return body
def answer(*values):
    body = struct.pack("<ii", 4, len(values)) + b"".join(values)
    os.write(writing, struct.pack("<Q", len(body)) + body)
none, zero = struct.pack("<i", 0), struct.pack("<iQ", 4, 0)
packet(); answer(none)
packet(); answer(zero)
"""


@pytest.fixture(autouse=True)
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    """Nothing may be left of what a test has started."""
    with nothing_left(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def opened(api: str) -> Open:
    """A session with a program; a URL goes through connect."""

    @asynccontextmanager
    async def begin(binary: Any, **options: Any) -> AsyncIterator[Any]:
        by_url = isinstance(binary, str) and binary.startswith("popen:")
        if api == "sync":
            with (sync.connect if by_url else sync.PopenSession)(binary, **options) as blocking:
                yield Lifted(blocking)
        else:
            async with (rpcflow.connect if by_url else rpcflow.PopenSession)(binary, **options) as session:
                yield session

    return begin


async def call(session: Any, name: str, *args: Any) -> Any:
    """Call one of the program's functions."""
    return await (await session.get_function(f"t.{name}"))(*args)


async def appears(path: Path) -> None:
    with anyio.fail_after(30):
        while not path.exists():
            await anyio.sleep(0.005)


# -------------------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize(
    ("how", "poll"), [("path", None), ("path", False), ("pathlike", None), ("bytes", None), ("url", False)]
)
async def test_a_session(opened: Open, tmp_path: Path, how: str, poll: bool | None) -> None:
    path = server_script(tmp_path)
    binary = {"path": str(path), "pathlike": path, "bytes": path.read_bytes(), "url": f"popen://{path}"}[how]
    async with opened(binary, poll=poll) as session:
        assert await call(session, "pid") in ours()
        for value in (None, True, 7, 1.5, "text", b"bytes", "ä" * 100_000, bytes(300_000)):
            assert await call(session, "echo", value) == value
        array = np.arange(1 << 20, dtype="float32")
        tensor = await session.cpu().tensor(array)
        assert (await tensor.numpy() == array).all()
        with pytest.raises(rpcflow.RemoteError, match="on purpose"):
            await call(session, "fail", "on purpose")
        with pytest.raises(rpcflow.FunctionNotFoundError):
            await session.get_function("t.missing")
        await session.upload(b"contents", "file")
        assert await session.download("file") == b"contents"
        assert await call(session, "args") == ""
    assert not ours()


async def test_arguments(opened: Open, tmp_path: Path) -> None:
    path = server_script(tmp_path)
    async with opened(path, args=["one", "two words"]) as session:
        assert await call(session, "args") == "one,two words"
    async with opened(f"popen://{path}?arg=one&arg=two+words") as session:
        assert await call(session, "args") == "one,two words"


async def test_nothing_of_ours_reaches_it(opened: Open, tmp_path: Path) -> None:
    ours = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(ours, True)
    try:
        async with opened(server_script(tmp_path)) as first, opened(server_source(tmp_path).encode()) as second:
            for session in (first, second):
                line = set((await call(session, "lines")).split(","))
                assert set((await call(session, "descriptors")).split(",")) == {"0", "1", "2"} | line
            assert await call(first, "stdin") == b""
    finally:
        os.close(ours)


async def test_what_it_prints(opened: Open, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It comes out at our standard error, however much it is, and holds nobody up."""
    async with opened(server_script(tmp_path)) as session:
        await call(session, "say", "to standard error\n")
        await call(session, "print", "to standard output\n")
        await call(session, "flood", 1 << 20, 2)
        await call(session, "flood", 1 << 20, 1)
        assert await call(session, "echo", 5) == 5
    out, err = capfd.readouterr()
    assert not out
    assert "to standard error\n" in err
    assert "to standard output\n" in err
    assert err.count("more and more and more") > 90_000


async def test_it_ends_by_itself(opened: Open, tmp_path: Path) -> None:
    mark = tmp_path / "ended"
    async with opened(server_script(tmp_path, f"open({str(mark)!r}, 'w').close()")) as session:
        assert await call(session, "echo", 1) == 1
    assert mark.exists()


async def test_logging(opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "rpcflow.session")
    async with opened(server_script(tmp_path), enable_logging=True) as session:
        await call(session, "echo", 1)
    assert any("t.echo: done" in record.message for record in caplog.records)


# ----------------------------------------------------------------------------------------------------- its death


@pytest.mark.parametrize(
    ("name", "args", "status", "number"),
    [("exit", (7,), 7, None), ("signal", (9,), None, 9), ("signal", (11,), None, 11), ("half", (), 3, None)],
)
async def test_it_dies_in_a_call(
    opened: Open, tmp_path: Path, name: str, args: tuple[int, ...], status: int | None, number: int | None
) -> None:
    async with opened(server_script(tmp_path)) as session:
        await call(session, "say", "first\nlast words\n")
        echo = await session.get_function("t.echo")
        function = await session.get_function(f"t.{name}")
        with pytest.raises(rpcflow.SessionCrashedError) as caught:
            await function(*args)
        error = caught.value
        assert (error.status, error.signal, error.call) == (status, number, f"t.{name}")
        assert error.last_words == "first\nlast words"
        assert f"during 't.{name}'" in str(error)
        assert str(error).endswith("last words")
        for later in (lambda: echo(1), lambda: session.get_function("t.echo")):
            with pytest.raises(rpcflow.SessionCrashedError, match=name):
                await later()
        assert not ours()
    del caught, error


async def test_it_dies_between_calls(opened: Open, tmp_path: Path) -> None:
    async with opened(server_script(tmp_path)) as session:
        pid = await call(session, "pid")
        echo = await session.get_function("t.echo")
        os.kill(pid, 15)
        until(lambda: not exists(pid))
        with pytest.raises(rpcflow.SessionCrashedError, match="SIGTERM") as caught:
            await echo(1)
        assert caught.value.call == "t.echo"
        del caught


async def test_it_dies_in_the_middle_of_a_copy(opened: Open, tmp_path: Path) -> None:
    """While it has much of ours still to read."""
    async with opened(server_script(tmp_path)) as session:
        array = np.zeros(64 << 20, "uint8")
        tensor = await session.cpu().empty(array.shape, "uint8")
        pid = await call(session, "pid")
        os.kill(pid, signal.SIGSTOP)
        killer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(rpcflow.SessionCrashedError) as caught:
            await tensor.copyfrom(array)
        assert caught.value.signal == 9
        killer.join()
        del caught


async def test_it_hangs_up_and_runs_on(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rpcflow.transports import child

    monkeypatch.setattr(child, "GRACE", 0.05)
    async with opened(server_script(tmp_path)) as session:
        with pytest.raises(rpcflow.SessionCrashedError, match="closed its line"):
            await call(session, "hang_up")
        assert not ours()


async def test_it_says_what_is_no_protocol(opened: Open, tmp_path: Path) -> None:
    async with opened(server_script(tmp_path)) as session:
        with pytest.raises(rpcflow.ProtocolError):
            await call(session, "garbage")


@pytest.mark.parametrize(
    ("source", "status", "says"),
    [
        ("#!/bin/sh\nexit 3\n", 3, ""),
        ("#!/bin/sh\necho no such model >&2; exit 4\n", 4, "no such model"),
        (quick_source("os.read(reading, 5); sys.exit(5)"), 5, ""),
        (quick_source("os.write(writing, b'\\x0c' + bytes(5)); sys.exit(6)"), 6, ""),
        (quick_source(INIT_AND_FEATURE + "packet(); sys.exit(7)"), 7, ""),
    ],
)
@pytest.mark.parametrize("as_bytes", [False, True])
async def test_it_ends_too_soon(
    opened: Open, tmp_path: Path, source: str, status: int, says: str, as_bytes: bool
) -> None:
    binary = source.encode() if as_bytes else write_script(tmp_path / "program", source)
    with pytest.raises(rpcflow.SessionCrashedError) as caught:
        async with opened(binary) as session:
            await session.get_function("any")
    assert caught.value.status == status
    assert says in caught.value.last_words
    del caught


@pytest.mark.parametrize("how", ["path", "bytes", "url"])
async def test_it_never_answers(opened: Open, tmp_path: Path, how: str) -> None:
    path = quick_script(tmp_path, "import time; time.sleep(600)")
    binary = {"path": path, "bytes": path.read_bytes(), "url": f"popen://{path}"}[how]
    with pytest.raises(rpcflow.WaitTimeoutError) as caught:
        async with opened(binary, wait_timeout=0.1):
            pytest.fail("it cannot have begun")
    assert caught.value.wait_timeout == 0.1
    del caught


async def test_what_cannot_be(opened: Open, tmp_path: Path) -> None:
    cases: list[tuple[Any, dict[str, Any], type[Exception]]] = [
        (tmp_path / "missing", {}, FileNotFoundError),
        (tmp_path, {}, IsADirectoryError),
        (b"no program", {}, OSError),
        ("", {}, ValueError),
        (b"", {}, ValueError),
        (7, {}, TypeError),
        ("x", {"args": "--text"}, TypeError),
        ("x", {"args": [1]}, TypeError),
        ("x", {"wait_timeout": 0}, ValueError),
        ("x", {"call_timeout": -1}, ValueError),
        ("popen:///no/such", {}, FileNotFoundError),
        ("popen:///bin/true", {"key": "some"}, ValueError),
    ]
    for binary, options, kind in cases:
        with pytest.raises(kind):
            async with opened(binary, **options):
                pytest.fail("it cannot have begun")


# ------------------------------------------------------------------------------------------------- time and cancel


SILENT = INIT_AND_FEATURE + "packet()\nimport time; time.sleep(600)"


async def test_call_timeout(opened: Open, tmp_path: Path) -> None:
    """It bounds calls, not the start."""
    async with opened(quick_script(tmp_path, SILENT), call_timeout=0.05) as session:
        with pytest.raises(rpcflow.CallTimeoutError):
            await session.get_function("any")
    assert not ours()


async def test_session_timeout(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(rpcflow.RPCSessionTimeoutError) as caught:
        async with opened(f"popen://{quick_script(tmp_path, SILENT)}", session_timeout=0.5) as session:
            await session.get_function("any")
    assert (caught.value.budget, caught.value.call) == (0.5, "any")
    del caught
    assert not ours()


async def test_cancelled_in_a_call(api: str, opened: Open, tmp_path: Path) -> None:
    """Leaving then does not wait for a program that does not listen."""
    if api == "sync":
        return  # tests/sync/test_popen.py
    mark = tmp_path / "mark"
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            async with opened(server_script(tmp_path)) as session:
                await call(session, "block", str(mark))

        tasks.start_soon(run)
        await appears(mark)
        tasks.cancel_scope.cancel()
    assert not ours()


async def test_left_while_another_task_calls(api: str, opened: Open, tmp_path: Path) -> None:
    if api == "sync":
        return  # as above
    mark, failed = tmp_path / "mark", []
    async with anyio.create_task_group() as tasks:
        async with opened(server_script(tmp_path)) as session:

            async def run() -> None:
                try:
                    await call(session, "block", str(mark))
                except rpcflow.ConnectionLostError as error:
                    failed.append(error)

            tasks.start_soon(run)
            await appears(mark)
        assert not ours()
    assert failed


class Canceller:
    """Runs a coroutine and cancels a scope as it waits for the ``number``th time; counts how often it waits."""

    def __init__(self, number: int, scope: anyio.CancelScope) -> None:
        self._number = number
        self._scope = scope
        self.waited = 0

    @types.coroutine
    def run(self, work: Awaitable[Any]) -> Generator[Any, Any, Any]:
        steps = work.__await__()
        resume: Callable[[], Any] = partial(next, steps)
        while True:
            try:
                wanted = resume()
            except StopIteration as stop:
                return stop.value
            self.waited += 1
            if self.waited == self._number:
                self._scope.cancel()
            try:
                resume = partial(steps.send, (yield wanted))
            except BaseException as error:
                resume = partial(steps.throw, error)


async def test_cancelled_wherever_it_waits(api: str, opened: Open, tmp_path: Path) -> None:
    """From before it starts until after it has gone: nothing is left (the fixture looks, and we do each time)."""
    if api == "sync":
        return
    source = quick_source(INIT_AND_FEATURE + "packet(); answer(zero)\nwhile os.read(reading, 100): pass").encode()

    async def run() -> None:
        async with opened(source, poll=False) as session:
            try:
                await session.get_function("any")
            except rpcflow.FunctionNotFoundError:
                pass

    for number in range(1, 1000):
        with anyio.CancelScope() as scope:
            canceller = Canceller(number, scope)
            await canceller.run(run())
        assert not ours(), number
        if canceller.waited < number:
            assert number > 5
            return
    pytest.fail("it never ended")


# ------------------------------------------------------------------------------------------------ stock's minrpc


class TestRecorded:
    """The recording of a stock minrpc server, played to us by a program that only looks up what was answered."""

    @pytest.fixture
    def program(self, tmp_path: Path) -> Path:
        events = json.loads((DATA / "wire" / "pipe-minrpc.json").read_text())["events"]
        answers: dict[str, list[str]] = {}
        request = ""
        for event in events:
            if event["dir"] == "c2s":
                request = event["hex"][16:]
            else:
                answers.setdefault(request, []).append(event["hex"])
        body = (
            INIT_AND_FEATURE[: INIT_AND_FEATURE.index("packet(); answer(none)")]
            + f"answers = {answers!r}\n"
            + """
while True:
    body = packet()
    if body[:4] == bytes([1, 0, 0, 0]):
        sys.exit(0)
    key = body.hex()
    if answers.get(key):
        said = answers[key]
        os.write(writing, bytes.fromhex(said.pop(0) if len(said) > 1 else said[0]))
    elif body[0] == 9:  # a name that nobody had asked that server for
        answer(zero)
    elif body[0] in (10, 14):
        answer(none)
    else:
        os.write(2, ("not recorded: " + key).encode())
        sys.exit(9)
"""
        )
        return quick_script(tmp_path, body)

    async def test_the_same_again(self, opened: Open, program: Path) -> None:
        async with opened(program) as session:
            tensor = await session.cpu().tensor(np.array([0, 1, 2], "float32"))
            assert (await tensor.numpy()).tolist() == [0, 1, 2]
            shape = await (await session.get_function("ffi.Shape"))(2, 3)
            assert await (await session.get_function("rpc.testing.GetShapeSize"))(shape) == 2
            element = await session.get_function("rpc.testing.GetShapeElem")
            with pytest.raises(rpcflow.RemoteError, match=r"idx < shape.size\(\) \(9 vs. 2\)"):
                await element(shape, 9)
            await session.system_lib()
        assert not ours()
