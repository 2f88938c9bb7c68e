# SPDX-License-Identifier: Apache-2.0
"""Many sessions one after another: nothing grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rpcflow

from .conftest import Host
from .support import Raw, Traces, call, children, connect, exists, hello, init, line, script, until


def one(server: Any, number: int) -> None:
    """A session that does a little of all, and ends this way or that."""
    kind = number % 5
    if kind == 3:
        Raw(server, hello() + init()).socket.close()
        return
    with connect(server) as session:
        assert call(session, "t.echo", number) == number
        session.upload(b"data", "folder/file")
        tensor = session.cpu().tensor(np.arange(100, dtype="float32"))
        assert tensor.numpy()[7] == 7
        if kind == 1:
            call(session, "t.child")
        elif kind == 2:
            with pytest.raises(rpcflow.SessionCrashedError):
                call(session, "t.exit", 1)
        elif kind == 4:
            with pytest.raises(rpcflow.RemoteError):
                call(session, "t.fail", "MemoryError")


def fds(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def sessions(server: Any, traces: Traces, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        one(server, number)


def test_fifty(host: Host, traces: Traces, no_fork: bool) -> None:
    import os

    with host(no_fork=no_fork) as server:
        launcher = server._launcher.pid
        sessions(server, traces, 5)

        def counts() -> tuple[int, int, int, int, int]:
            return (
                len(traces.processes()),
                len(os.listdir(traces.folder / traces.files()[0])),
                len(traces.files()),
                fds(launcher),
                fds(os.getpid()),
            )

        until(lambda: server._connections == 0)
        until(lambda: len(traces.processes()) == (1 if no_fork else 2))
        before = counts()
        sessions(server, traces, 50 if not no_fork else 15, 5)
        until(lambda: server._connections == 0)
        until(lambda: len(traces.processes()) == (1 if no_fork else 2))
        assert counts() == before
        assert server._launcher.pid == launcher


SERVER = """
import sys
import anyio
import rpcflow
from tests.server.functions import offer

async def main():
    async with rpcflow.Server(port=0, server_init_callback=offer(), silent=True) as server:
        print(server.port, flush=True)
        await anyio.sleep_forever()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.long
@pytest.mark.soak
def test_five_hundred(backend: str, traces: Traces) -> None:
    """The supervisor in a process of its own, whose memory is its own too."""

    class At:
        def __init__(self, port: int) -> None:
            self.port = port

    def rss(pid: int) -> int:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * 4096

    with script(SERVER, backend) as process:
        server = At(int(line(process)))
        sessions(server, traces, 20)
        launcher = children(process.pid)[0]

        def quiet() -> bool:
            return len(traces.processes()) == 3

        until(quiet)
        before = (fds(process.pid), fds(launcher), len(traces.files()))
        memory, launchers = rss(process.pid), rss(launcher)
        sessions(server, traces, 500, 20)
        until(quiet)
        until(lambda: (fds(process.pid), fds(launcher), len(traces.files())) == before)
        assert rss(process.pid) - memory < 5 << 20
        assert rss(launcher) - launchers < 5 << 20
        process.kill()
        until(traces.none)
        assert not exists(launcher)
