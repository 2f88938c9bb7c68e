# SPDX-License-Identifier: Apache-2.0
"""``rpcflow.sync.Tracker`` and the commands: a tracker in a process of its own."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rpcflow import sync
from tests.server.support import ROOT, Traces, children, descriptors, exists, line, script, until

from .support import HOST, PATIENCE, PING, STOP, Raw

COMMAND = [sys.executable, "-m", "rpcflow"]


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    folder = tmp_path / "temporary"
    folder.mkdir()
    found = Traces(folder, monkeypatch)
    before = descriptors()
    yield found
    assert not found.processes()
    assert not found.files()
    until(lambda: descriptors() <= before, "closing all descriptors")


class TestTracker:
    def test_with(self, traces: Traces) -> None:
        with sync.Tracker(HOST, 0) as tracker:
            assert tracker.host == HOST
            with Raw(tracker) as peer:
                assert peer.ask(PING) == 0
            assert repr(tracker) == f"<rpcflow.sync.Tracker {HOST}:{tracker.port}>"
            assert len(traces.processes()) == 1
        assert "terminated" in repr(tracker)

    def test_terminate_twice(self, traces: Traces) -> None:
        tracker = sync.Tracker(HOST, 0)
        with Raw(tracker) as peer:
            tracker.terminate()
            assert peer.ended()
        tracker.terminate()

    def test_collected(self, traces: Traces) -> None:
        tracker = sync.Tracker(HOST, 0)
        peer = Raw(tracker)
        del tracker
        gc.collect()
        assert peer.ended()
        peer.close()

    def test_it_ends_with_its_program(self, traces: Traces) -> None:
        source = """
import signal
from rpcflow import sync

tracker = sync.Tracker("127.0.0.1", 0)
print(tracker.port, flush=True)
signal.pause()
"""
        with script(source) as program:
            with Raw(int(line(program))) as peer:
                (child,) = children(program.pid)
                program.kill()
                assert peer.ended()
            until(lambda: not exists(child))

    def test_stopped_over_the_wire_is_no_matter(self, traces: Traces) -> None:
        with sync.Tracker(HOST, 0) as tracker:
            with Raw(tracker) as peer:
                assert peer.ask(STOP, "guess") == -1
                assert peer.ask(PING) == 0

    def test_address_in_use_and_bad_options(self, traces: Traces) -> None:
        with sync.Tracker(HOST, 0) as tracker:
            with pytest.raises(OSError, match="free"):
                sync.Tracker(HOST, tracker.port, tracker.port + 1)
        with pytest.raises(ValueError, match="port"):
            sync.Tracker(HOST, 7, 7)
        with pytest.raises(ValueError, match="timeout"):
            sync.Tracker(HOST, 0, timeout=-1)

    def test_open_addresses_are_warned_of(self, traces: Traces, caplog: pytest.LogCaptureFixture) -> None:
        with sync.Tracker(HOST, 0):
            assert not caplog.records
        with sync.Tracker("0.0.0.0", 0) as tracker, Raw(tracker):
            assert [record.levelno for record in caplog.records] == [logging.WARNING]

    def test_it_needs_no_more_than_it_uses(self, traces: Traces) -> None:
        """Neither arrays nor a server: a tracker is to be small."""
        with sync.Tracker(HOST, 0) as tracker:
            maps = Path(f"/proc/{tracker._service.pid}/maps").read_text()
            assert "numpy" not in maps
            limits = Path(f"/proc/{tracker._service.pid}/limits").read_text()
            soft, hard = next(row.split()[3:5] for row in limits.splitlines() if row.startswith("Max open files"))
            assert soft == hard


@contextmanager
def command(*words: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])}
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=cwd
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready(process: subprocess.Popen[str]) -> int:
    """The port, once in service."""
    word, _, url = line(process).partition(" ")
    assert word == "READY"
    assert url.startswith("tcp://127.0.0.1:")
    return int(url.rpartition(":")[2])


class TestCommand:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ready_and_end(self, traces: Traces, number: int) -> None:
        with command("tracker", "--port", "0") as process:
            with Raw(ready(process)) as peer:
                peer.register("k", "k:1")
                process.send_signal(number)
                out, errors = process.communicate(timeout=PATIENCE)
                assert peer.ended()
        assert process.returncode == 0
        assert out == ""
        assert "tracking at" in errors

    def test_silent(self, traces: Traces) -> None:
        with command("tracker", "--port", "0", "--silent") as process:
            ready(process)
            process.terminate()
            assert process.communicate(timeout=PATIENCE) == ("", "")

    @pytest.mark.parametrize(
        "words",
        [
            ("--host", "0.0.0.0"),
            ("--port", "70000"),
            ("--port", "5", "--port-end", "5"),
            ("--host", "unix:/tmp/x"),
            ("--what",),
            ("--host", "192.0.2.1", "--insecure"),
        ],
    )
    def test_bad_options(self, traces: Traces, words: tuple[str, ...]) -> None:
        with command("tracker", "--silent", *words) as process:
            out, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert out == ""
        assert len([row for row in errors.splitlines() if "--insecure: whoever" not in row]) == 1

    def test_address_in_use(self, traces: Traces) -> None:
        with socket.create_server((HOST, 0)) as taken:
            port = taken.getsockname()[1]
            with command("tracker", "--port", str(port), "--port-end", str(port + 1)) as process:
                out, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert out == ""
        assert len(errors.splitlines()) == 1
        assert "free" in errors

    def test_query(self, traces: Traces) -> None:
        with sync.Tracker(HOST, 0) as tracker, Raw(tracker) as server:
            server.register("rpi4", "rpi4:1")
            with command("query", "--port", str(tracker.port)) as process:
                out, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0
            assert "server:rpi4" in out
            with command("query", "--host", f"tcp://{HOST}:{tracker.port}") as process:
                assert process.communicate(timeout=PATIENCE)[0] == out

    def test_query_where_no_tracker_is(self, traces: Traces) -> None:
        with socket.create_server((HOST, 0)) as taken:
            port = taken.getsockname()[1]
        with command("query", "--port", str(port)) as process:
            out, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert out == ""
        assert len(errors.splitlines()) == 1
        with command("query", "--host", "nonsense://x") as process:
            _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert len(errors.splitlines()) == 1
