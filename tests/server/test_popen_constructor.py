# SPDX-License-Identifier: Apache-2.0
"""The session constructors rpc.PopenSession and rpc.CreatePipeClient: a program of the client's, run by the server."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rpcflow
from rpcflow import sync
from tests.children import quick_script, quick_source, server_script, server_source
from tests.interop.conftest import need_tvm

from .conftest import Host
from .support import (
    HOST,
    Raw,
    Traces,
    call,
    connect,
    exists,
    find,
    hello,
    init,
    invoke,
    line,
    script,
    text,
    until,
    works,
)


@pytest.fixture
def backend() -> str:
    """What is tried here happens in the session's process, which knows no event loop."""
    return "trio"


def quiet(traces: Traces) -> bool:
    """Whether the server has neither a session nor anything that one has started; it keeps its own processes."""
    return not any(b"server.py" in command or b"quick.py" in command for command in commands(traces))


def commands(traces: Traces) -> list[bytes]:
    found = []
    for pid in traces.processes():
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def start(server: Any, *constructor: Any, **options: Any) -> sync.RPCSession:
    return connect(server, session_constructor_args=list(constructor), **options)


@pytest.mark.parametrize("how", ["bytes", "long bytes", "path", "pipe client", "popen url"])
def test_a_session(host: Host, tmp_path: Path, how: str) -> None:
    path = server_script(tmp_path)
    data = path.read_bytes()
    constructor: list[Any] = {
        "bytes": ["rpc.PopenSession", data],
        "long bytes": ["rpc.PopenSession", data + b"\n#" + b"x" * (20 << 20)],
        "path": ["rpc.PopenSession", str(path)],
        "pipe client": ["rpc.CreatePipeClient", str(path), "one", "two"],
        "popen url": ["rpc.Connect", f"popen://{path}", 0, "", False],
    }[how]
    with host() as server:
        with start(server, *constructor) as session:
            for value in (None, 7, "text", bytes(300_000)):
                assert call(session, "t.echo", value) == value
            tensor = session.cpu().tensor(np.arange(1 << 20, dtype="int32"))
            assert (tensor.numpy() == np.arange(1 << 20)).all()
            assert call(session, "t.args") == ("one,two" if how == "pipe client" else "")
            folder, pid = call(session, "t.cwd"), call(session, "t.pid")
            assert "/session-" in folder
            assert os.listdir(folder) in ([], [".rpcflow-tmp"])  # its bytes are in no file
            assert set(call(session, "t.descriptors").split(",")) == {
                "0",
                "1",
                "2",
                *call(session, "t.lines").split(","),
            }
            with pytest.raises(rpcflow.RemoteError, match="on purpose"):
                call(session, "t.fail", "on purpose")
            assert call(session, "t.echo", 5) == 5
        until(lambda: not exists(pid), "the end of the program")
        works(server)


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [("exit", (7,), "exited with status 7"), ("signal", (9,), r"signal 9 \(SIGKILL\)")],
)
def test_it_dies(host: Host, tmp_path: Path, name: str, args: tuple[int, ...], says: str) -> None:
    with host() as server:
        with start(server, "rpc.PopenSession", server_source(tmp_path).encode()) as session:
            call(session, "t.say", "its last words\n")
            with pytest.raises(rpcflow.SessionCrashedError, match=says) as caught:
                call(session, f"t.{name}", *args)
            assert str(caught.value).endswith("its last words")
            with pytest.raises(rpcflow.RPCError):
                call(session, "t.echo", 1)
        works(server)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this system does not tell of ends")
def test_it_dies_and_another_holds_its_line(host: Host, tmp_path: Path) -> None:
    source = server_source(tmp_path).replace('["sleep", "600"]', '["sleep", "600"], pass_fds=(reading, writing)')
    with host() as server:
        with start(server, "rpc.PopenSession", source.encode()) as session:
            pid = call(session, "t.grandchild")
            with pytest.raises(rpcflow.SessionCrashedError, match="exited with status 7"):
                call(session, "t.exit", 7)
        until(lambda: not exists(pid), "the other's end")
        works(server)


def test_it_dies_between_calls(host: Host, tmp_path: Path) -> None:
    with host() as server:
        with start(server, "rpc.PopenSession", str(server_script(tmp_path))) as session:
            echo, pid = session.get_function("t.echo"), call(session, "t.pid")
            os.kill(pid, signal.SIGTERM)
            until(lambda: not exists(pid), "its end")
            with pytest.raises(rpcflow.SessionCrashedError, match="SIGTERM"):
                while True:
                    echo(1)
        works(server)


def test_it_dies_in_the_middle_of_an_answer(host: Host, tmp_path: Path) -> None:
    """Words of the server may not go there: the line is closed."""
    with host() as server:
        with start(server, "rpc.PopenSession", str(server_script(tmp_path))) as session:
            with pytest.raises(rpcflow.ConnectionLostError):
                call(session, "t.half")
        works(server)


@pytest.mark.parametrize(
    ("constructor", "says"),
    [
        (["rpc.PopenSession", "/no/such/program"], "/no/such/program"),
        (["rpc.PopenSession", b"no program"], "not a program"),
        (["rpc.PopenSession", b""], "not nothing"),
        (["rpc.PopenSession"], "its path, or its bytes"),
        (["rpc.PopenSession", 7], "its path, or its bytes"),
        (["rpc.PopenSession", "a", "b"], "its path, or its bytes"),
        (["rpc.CreatePipeClient"], "a program's path and its arguments"),
        (["rpc.CreatePipeClient", "/bin/true", 7], "a program's path and its arguments"),
        (["rpc.CreatePipeClient", b"x"], "a program's path and its arguments"),
    ],
)
def test_what_cannot_be(host: Host, constructor: list[Any], says: str) -> None:
    with host() as server:
        with pytest.raises(rpcflow.RemoteError, match=says):
            start(server, *constructor)
        works(server)


def test_it_ends_before_it_answers(host: Host, tmp_path: Path) -> None:
    with host() as server:
        source = quick_source("print('no model here', file=sys.stderr); sys.exit(4)").encode()
        with pytest.raises(rpcflow.SessionCrashedError, match="exited with status 4") as caught:
            start(server, "rpc.PopenSession", source)
        assert "no model here" in str(caught.value)
        works(server)


def test_it_prints_more_than_a_pipe_holds(host: Host, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with host() as server:
        with start(server, "rpc.PopenSession", str(server_script(tmp_path))) as session:
            call(session, "t.flood", 1 << 20, 1)
            call(session, "t.flood", 1 << 20, 2)
            assert call(session, "t.echo", 5) == 5
    assert capfd.readouterr().err.count("more and more and more") > 90_000


SLEEPS = "import time\nos.write(2, b'asleep\\n'); time.sleep(600)"


@pytest.mark.parametrize("how", ["client goes", "server ends"])
def test_it_goes_with_its_session(host: Host, tmp_path: Path, how: str) -> None:
    """And whom it has started itself."""
    with host() as server:
        session = start(server, "rpc.PopenSession", str(server_script(tmp_path)))
        pids = [call(session, "t.pid"), call(session, "t.grandchild")]
        if how == "client goes":
            session._core._channel.close()
        if how != "server ends":
            until(lambda: not any(map(exists, pids)), "the end of the program")
            session.close()
            works(server)
    until(lambda: not any(map(exists, pids)), "the end of the program")
    session.close()


def test_its_time_is_up(host: Host, traces: Traces, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with host() as server:
        with pytest.raises(rpcflow.RPCSessionTimeoutError, match="budget"):
            with start(server, "rpc.PopenSession", str(server_script(tmp_path)), session_timeout=1.5) as session:
                call(session, "t.block", str(mark))
        until(lambda: quiet(traces), "the end of the program")
        works(server)


def test_it_never_answers(host: Host, traces: Traces, tmp_path: Path) -> None:
    path = quick_script(tmp_path, SLEEPS)
    with host() as server:
        with pytest.raises(rpcflow.WaitTimeoutError):
            start(server, "rpc.PopenSession", str(path), wait_timeout=0.3)
        until(lambda: quiet(traces), "the end of the program")
        works(server)


def test_not_in_a_local_session(traces: Traces) -> None:
    """There the program would be ours: PopenSession is what starts one. Tried in a process without TVM, which has a
    function of that name."""
    source = """
import rpcflow
from rpcflow.server.local import LocalChannel
from rpcflow.session.client import ClientMachine
from rpcflow.sync.connecting import initialize
from rpcflow.sync.connection import Connection

session = Connection(LocalChannel(), ClientMachine(), "this process")
try:
    initialize(session, ["rpc.PopenSession", b"x"])
except rpcflow.RemoteError as error:
    print(repr(error))
session.close()
"""
    with script(source) as process:
        assert "no session constructor" in line(process)
        assert process.wait(60) == 0
    assert traces.none()


@pytest.mark.interop
def test_a_stock_client(host: Host, tmp_path: Path) -> None:
    need_tvm()
    with host() as server:
        source = f"""
import numpy, tvm
from tvm import rpc
data = open({str(server_script(tmp_path))!r}, "rb").read()
for constructor in (["rpc.PopenSession", data], ["rpc.CreatePipeClient", {str(tmp_path / "server.py")!r}]):
    remote = rpc.connect({HOST!r}, {server.port}, session_constructor_args=constructor)
    assert remote.get_function("t.echo")(7) == 7
    tensor = tvm.runtime.tensor(numpy.arange(1000, dtype="float32"), remote.cpu(0))
    assert (tensor.numpy() == numpy.arange(1000)).all()
    remote.get_function("t.say")("its last words")
    try:
        remote.get_function("t.exit")(3)
    except tvm.error.RPCError as error:
        assert "exited with status 3" in str(error) and "its last words" in str(error), error
    else:
        raise AssertionError("it is gone, and nobody has said so")
print("good")
"""
        with script(source) as process:
            assert line(process) == "good"


def test_a_client_that_waits_is_told_when_its_time_is_up(host: Host, tmp_path: Path) -> None:
    """Behind an answer that was passed on whole there is room for the server's own words."""
    path = server_script(tmp_path)
    with host() as server:
        with Raw(server, hello(words=" -timeout=3") + init("rpc.PopenSession", str(path)) + find("t.echo")) as raw:
            assert raw.answer() is not None
            assert raw.packet() is not None
            handle = raw.handle()
            raw.send(invoke(handle, text("a call")))
            assert raw.packet() is not None
            assert raw.error().startswith("RPCSessionTimeoutError: ")
            assert raw.ended()
        works(server)
