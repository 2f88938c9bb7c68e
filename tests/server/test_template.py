# SPDX-License-Identifier: Apache-2.0
"""The warm template that workers are forked from, and what runs in it before."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import rpcflow
from rpcflow import sync
from rpcflow.server.launching import LaunchError

from .conftest import Host, Run
from .functions import offer
from .support import HOST, call, connect, works


def test_template_has_one_thread_and_workers_come_from_it(host: Host) -> None:
    with host() as server:
        pids = set()
        for _ in range(3):
            with connect(server) as session:
                launcher = call(session, "t.parent")
                assert launcher == server._launcher.pid
                assert call(session, "t.threads") == 1
                assert len(os.listdir(f"/proc/{launcher}/task")) == 1
                pids.add(call(session, "t.pid"))
                assert call(session, "t.born") == launcher  # the callback ran there, once
        assert len(pids) == 3


def test_callback_runs_once(host: Host, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    captured = {"value": 41}

    def callback() -> None:
        import rpcflow

        with open(log, "a") as file:
            file.write("ran\n")
        captured["value"] += 1
        rpcflow.register("test.captured", lambda: captured["value"])

    with host(callback) as server:
        for _ in range(3):
            with connect(server) as session:
                assert call(session, "test.captured") == 42
    assert Path(log).read_text() == "ran\n"
    assert captured == {"value": 41}


def test_callback_that_leaves_a_thread(host: Host, tmp_path: Path) -> None:
    """It runs in each session's process then, and what its first run has started is gone."""
    log = str(tmp_path / "log")

    def callback() -> None:
        import os
        import subprocess
        import threading
        import time

        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {subprocess.Popen(['sleep', '600']).pid}\n")

    with host(callback, max_sessions=2) as server:
        for _ in range(2):
            with connect(server) as session, connect(server) as other:
                for each in (session, other):
                    pid = call(each, "t.pid")
                    assert call(each, "t.born") == pid
                    assert call(each, "t.threads") == 2
                    assert any(line.startswith(f"{pid} ") for line in Path(log).read_text().splitlines())
                assert len(os.listdir(f"/proc/{server._launcher.pid}/task")) == 1
                child_of_the_first_run = Path(log).read_text().split()[1]
                assert not Path(f"/proc/{child_of_the_first_run}").exists()
        assert len(Path(log).read_text().splitlines()) == 5


def test_no_fork_runs_everything_in_each_session(host: Host) -> None:
    with host(no_fork=True) as server:
        for _ in range(2):
            with connect(server) as session:
                assert call(session, "t.born") == call(session, "t.pid")
                assert call(session, "t.parent") == server._launcher.pid


def test_output_of_the_callback_is_not_every_sessions(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    """What stands in a buffer when workers are forked must not be written by each of them."""

    def callback() -> None:
        print("loaded", end=" ")

    with host(callback) as server:
        for _ in range(2):
            with connect(server) as session:
                call(session, "t.say", "hello")
                with pytest.raises(rpcflow.SessionCrashedError) as caught:
                    call(session, "t.signal", 9)
                assert "loaded" not in caught.value.last_words
    assert capfd.readouterr().err.count("loaded") == 1


# ---------------------------------------------------------------------------------------------- what fails


def failing(kind: str) -> None:
    if kind == "exits":
        raise SystemExit("not today")
    raise LookupError("no such board: \N{SNOWMAN}" * 300)


@pytest.mark.parametrize("kind", ["raises", "exits"])
def test_callback_that_fails(run: Run, kind: str) -> None:
    async def main() -> None:
        with pytest.raises(LaunchError, match="not today" if kind == "exits" else "no such board"):
            async with rpcflow.Server(port=0, server_init_callback=lambda: failing(kind)):
                pass

    run(main)


def test_callback_that_ends_the_process(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(LaunchError, match="without a word"):
            async with rpcflow.Server(port=0, server_init_callback=lambda: os._exit(1)):
                pass

    run(main)


def test_import_that_fails(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(LaunchError, match="no_such_module_of_ours"):
            async with rpcflow.Server(port=0, imports=["no_such_module_of_ours"]):
                pass

    run(main)


def test_sync_server_says_what_failed(traces: object) -> None:
    with pytest.raises(rpcflow.RPCError, match="no_such_module_of_ours"):
        sync.Server(HOST, 0, imports=["no_such_module_of_ours"])
    with pytest.raises(rpcflow.RPCError, match="not today"):
        sync.Server(HOST, 0, server_init_callback=lambda: failing("exits"))


# ---------------------------------------------------------------------------------------------- imports, libraries


def test_imports(host: Host, no_fork: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rpcflow_test_board.py").write_text(
        "import os\nimport rpcflow\nPID = os.getpid()\n@rpcflow.register('board.pid')\ndef pid():\n    return PID\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with host(no_fork=no_fork, imports=["rpcflow_test_board"]) as server:
        with connect(server) as session:
            assert call(session, "board.pid") == call(session, "t.pid" if no_fork else "t.parent")


def test_imports_from_the_current_folder(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rpcflow_test_here.py").write_text("import rpcflow\nrpcflow.register('here', lambda: 1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with host(imports=["rpcflow_test_here"]) as server, connect(server) as session:
        assert call(session, "here") == 1


def test_load_library(host: Host, no_fork: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    monkeypatch.chdir(tmp_path)
    for name, value in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.c").write_text(f"int rpcflow_test_{name}(void) {{ return {value}; }}\n")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", f"{name}.so", f"{name}.c"], check=True)

    def register() -> None:
        import ctypes

        import rpcflow

        rpcflow.register("test.sum", lambda: seen().rpcflow_test_one() + seen().rpcflow_test_two())

        def seen() -> ctypes.CDLL:
            return ctypes.CDLL(None)  # all that is globally visible

    with host(register, load_library=f"one.so:{tmp_path}/two.so", no_fork=no_fork) as server:
        monkeypatch.chdir("/")
        with connect(server) as session:
            assert call(session, "test.sum") == 3


def test_works_from_another_folder(host: Host, no_fork: bool, tmp_path: Path) -> None:
    """The folder that a server was started from may vanish."""
    gone = tmp_path / "gone"
    gone.mkdir()
    before = os.getcwd()
    os.chdir(gone)
    try:
        with host(no_fork=no_fork) as server:
            os.chdir(before)
            gone.rmdir()
            works(server)
    finally:
        os.chdir(before)


def test_unpicklable_callback() -> None:
    lock = __import__("threading").Lock()
    with pytest.raises(TypeError):
        rpcflow.Server(port=0, server_init_callback=lambda: lock.acquire())


def test_two_servers_in_one_program(run: Run) -> None:
    async def main() -> None:
        async with (
            rpcflow.Server(port=0, key="one", server_init_callback=offer()) as one,
            rpcflow.Server(port=0, key="two", server_init_callback=offer()) as two,
        ):
            async with (
                rpcflow.connect(HOST, one.port, "one") as first,
                rpcflow.connect(HOST, two.port, "two") as second,
            ):
                parents = [await (await each.get_function("t.parent"))() for each in (first, second)]
                assert len(set(parents)) == 2

    run(main)
