# SPDX-License-Identifier: Apache-2.0
"""However a server ends, nothing of it is left."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
from pathlib import Path

import anyio
import pytest

import rpcflow
from rpcflow import sync

from .conftest import Host, Run
from .functions import offer
from .support import (
    HOST,
    PATIENCE,
    Traces,
    call,
    call_async,
    children,
    connect,
    descriptors,
    exists,
    line,
    script,
    until,
    until_async,
    works,
)


class Boom(Exception):
    """What the body of a block may raise."""


@pytest.mark.parametrize("doing", ["nothing", "an idle session", "t.spin", "t.block"])
@pytest.mark.parametrize("how", ["normally", "by an exception", "by cancellation"])
def test_block_is_left(run: Run, traces: Traces, tmp_path: Path, how: str, doing: str) -> None:
    mark = tmp_path / "mark"

    async def client(port: int) -> None:
        try:
            async with rpcflow.connect(HOST, port) as session:
                if doing == "an idle session":
                    await call_async(session, "t.echo", 1)
                    mark.touch()
                    await call_async(session, "t.block", str(tmp_path / "second"))
                await call_async(session, doing, str(mark))
        except (rpcflow.ConnectionLostError, rpcflow.SessionCrashedError):
            pass

    async def main() -> None:
        before = descriptors()
        async with anyio.create_task_group() as clients:
            with pytest.raises(Boom) if how == "by an exception" else contextlib.nullcontext():
                with anyio.CancelScope() as scope:
                    async with rpcflow.Server(port=0, server_init_callback=offer()) as server:
                        if doing != "nothing":
                            clients.start_soon(client, server.port)
                            await until_async(mark.exists)
                        assert traces.processes()
                        assert traces.files()
                        if how == "by an exception":
                            raise Boom
                        if how == "by cancellation":
                            scope.cancel()
                            await anyio.sleep_forever()
            assert scope.cancelled_caught == (how == "by cancellation")
            assert traces.none()
        assert descriptors() <= before

    run(main)


def test_body_error_survives_cancelling(run: Run, traces: Traces) -> None:
    """An error that meets a cancelled scope on its way out stays that error."""

    async def main() -> None:
        with anyio.CancelScope() as scope:
            with pytest.raises(Boom) as caught:
                async with rpcflow.Server(port=0):
                    scope.cancel()
                    raise Boom
            assert type(caught.value) is Boom
        assert traces.none()

    run(main)


def test_cancelled_while_it_starts(run: Run, traces: Traces, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")

    def hang() -> None:
        import subprocess
        import time
        from pathlib import Path

        subprocess.Popen(["sleep", "600"])
        Path(mark).touch()
        time.sleep(600)

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def cancel() -> None:
                    await until_async(Path(mark).exists)
                    scope.cancel()

                tasks.start_soon(cancel)
                async with rpcflow.Server(port=0, server_init_callback=hang):
                    pytest.fail("it cannot have started")
        await until_async(traces.none)

    run(main)


def test_cancelled_at_any_moment(run: Run, traces: Traces) -> None:
    """While it starts, while a client connects, while a worker dies, while it ends: the later, the more has begun."""

    async def life() -> None:
        async with rpcflow.Server(port=0, max_sessions=2, server_init_callback=offer()) as server:
            for _ in range(50):
                async with rpcflow.connect(HOST, server.port) as session:
                    with contextlib.suppress(rpcflow.SessionCrashedError):
                        await call_async(session, "t.exit", 3)

    async def main() -> None:
        before = descriptors()
        for i in range(14):
            with anyio.move_on_after(i * i * 0.005):
                await life()
            assert traces.none()
        assert descriptors() <= before

    run(main)


def test_out_of_descriptors_for_a_session(host: Host, traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that cannot be begun gives back what it had of it, and its turn."""
    with host() as server:
        works(server)
        for what in ("rpcflow.server.session.os.pipe", "rpcflow.server.status.os.memfd_create"):
            until(lambda: server._connections == 0)
            before = descriptors()

            def fail(*_: object) -> int:
                raise OSError(errno.EMFILE, "too many open files")

            with monkeypatch.context() as patch:
                patch.setattr(what, fail)
                with pytest.raises(rpcflow.ConnectionLostError):
                    connect(server)
            until(lambda: server._connections == 0)
            assert descriptors() <= before
            works(server)


def test_runs_once(run: Run) -> None:
    async def main() -> None:
        server = rpcflow.Server(port=0)
        async with server:
            pass
        with pytest.raises(RuntimeError, match="once"):
            async with server:
                pass

    run(main)


SUPERVISOR = """
import os, sys
import anyio
import rpcflow
from tests.server.functions import offer

async def main():
    async with rpcflow.Server(port=0, server_init_callback=offer()) as server:
        child = 0
        if "forks" in sys.argv:  # a child that has all of our descriptors
            child = os.fork()
            if child == 0:
                import time
                time.sleep(600)
                os._exit(0)
        print(server.port, child, flush=True)
        await anyio.sleep_forever()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("forks", [False, True], ids=["", "forked since"])
def test_supervisor_is_killed(backend: str, traces: Traces, tmp_path: Path, forks: bool) -> None:
    with script(SUPERVISOR, backend, *(["forks"] if forks else [])) as process:
        port, child = map(int, line(process).split())
        try:
            with sync.connect(HOST, port) as session:
                call(session, "t.daemon", str(tmp_path / "daemon"))
                until((tmp_path / "daemon").exists)
                assert len(traces.processes()) >= 4
                process.kill()
                until(lambda: not [pid for pid in traces.processes() if pid != child], "ending all processes")
                until(lambda: not traces.files())
                with pytest.raises(rpcflow.RPCError):
                    call(session, "t.echo", 1)
        finally:
            if child:
                os.kill(child, signal.SIGKILL)
                until(lambda: not exists(child))


def test_supervisor_is_killed_while_it_starts(backend: str, traces: Traces, tmp_path: Path) -> None:
    source = """
import sys
import anyio
import rpcflow

def hang():
    import pathlib, time
    pathlib.Path(sys.argv[2]).touch()
    time.sleep(600)

async def main():
    async with rpcflow.Server(port=0, server_init_callback=hang):
        pass

anyio.run(main, backend=sys.argv[1])
"""
    # The callback is pickled with its module's sys, so its arguments are the launcher's: name the file in the text.
    mark = tmp_path / "mark"
    with script(source.replace("sys.argv[2]", repr(str(mark))), backend) as process:
        until(mark.exists)
        process.kill()
        until(traces.none)


@pytest.mark.long
def test_imports_take_longer_than_pool_threads_live(run: Run) -> None:
    """The launcher asks to end with the thread that began it, so that must be one that stays."""

    def slow() -> None:
        import time

        time.sleep(12)

    async def main() -> None:
        async with rpcflow.Server(port=0, server_init_callback=slow):
            pass

    run(main)


def test_launcher_is_killed_during_a_call(host: Host, traces: Traces, tmp_path: Path) -> None:
    with host() as server:
        with connect(server) as session:
            launcher = call(session, "t.parent")
            child = call(session, "t.child")
            folder = call(session, "t.cwd")
            process = call(session, "t.pid")
            os.kill(launcher, signal.SIGSTOP)  # so that it cannot do anything any more
            os.kill(launcher, signal.SIGKILL)
            with pytest.raises((rpcflow.SessionCrashedError, rpcflow.ConnectionLostError)):
                call(session, "t.block", str(tmp_path / "mark"))
        until(lambda: not any(map(exists, (launcher, child, process))))
        until(lambda: not os.path.exists(folder))
        works(server)
        assert server._launcher.pid != launcher


def test_launcher_is_killed_while_idle(host: Host, traces: Traces) -> None:
    with host() as server:
        works(server)
        for _ in range(2):
            os.kill(server._launcher.pid, signal.SIGKILL)
            works(server)
        until(lambda: len(traces.files()) == 1, "removing the killed launchers' folders")


def test_launcher_is_killed_while_clients_wait(host: Host, run: Run) -> None:
    async def main(server: rpcflow.Server) -> None:
        done = []

        async def client() -> None:
            async with rpcflow.connect(HOST, server.port) as session:
                done.append(await call_async(session, "t.pid"))

        async with anyio.create_task_group() as tasks:
            async with rpcflow.connect(HOST, server.port):
                for _ in range(3):
                    tasks.start_soon(client)
                await until_async(lambda: server._queue.waiting == 3)
                os.kill(server._launcher.pid, signal.SIGKILL)
        assert len(set(done)) == 3

    with host() as server:
        run(main, server)


# ---------------------------------------------------------------------------------------------- blocking API


def busy(server: sync.Server, tmp_path: Path) -> sync.RPCSession:
    session = connect(server)
    call(session, "t.daemon", str(tmp_path / "daemon"))
    until((tmp_path / "daemon").exists)
    return session


def test_sync_terminate(traces: Traces, tmp_path: Path) -> None:
    server = sync.Server(HOST, 0, server_init_callback=offer(), silent=True)
    session = busy(server, tmp_path)
    server.terminate()
    assert traces.none()
    server.terminate()
    session.close()
    assert "terminated" in repr(server)


def test_sync_block(traces: Traces, tmp_path: Path) -> None:
    with pytest.raises(Boom), sync.Server(HOST, 0, server_init_callback=offer(), silent=True) as server:
        with busy(server, tmp_path):
            raise Boom
    assert traces.none()


def test_sync_collected(traces: Traces) -> None:
    server = sync.Server(HOST, 0, server_init_callback=offer(), silent=True)
    works(server)
    del server
    gc.collect()
    assert traces.none()


def test_sync_program_is_killed(traces: Traces) -> None:
    source = """
import time
from rpcflow import sync
server = sync.Server("127.0.0.1", 0, silent=True)
print(server.port, flush=True)
time.sleep(600)
"""
    with script(source) as process:
        port = int(line(process))
        with sync.connect(HOST, port, wait_timeout=PATIENCE):
            process.kill()
            until(traces.none)


def test_processes_of_an_idle_server(host: Host, traces: Traces) -> None:
    """A launcher, and the worker that it has forked ahead."""
    with host() as server:
        launcher = server._launcher.pid
        assert sorted(traces.processes()) == sorted([launcher, *children(launcher)])
        assert len(children(launcher)) == 1
