# SPDX-License-Identifier: Apache-2.0
"""Servers with trackers and proxies, each a program of its own: told to stop, killed, started again."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rpcflow
from rpcflow import sync

from .functions import offer
from .support import PATIENCE, Traces, call, exists, line, script, until


class TestCommand:
    def test_told_to_stop_it_leaves_the_tracker(self, traces: Traces) -> None:
        with sync.Tracker("127.0.0.1", 0, silent=True) as running:
            client = sync.connect_tracker("127.0.0.1", running.port)
            source = "import sys; from rpcflow.cli import main; sys.argv[0] = 'rpcflow'; main()"
            where = f"127.0.0.1:{running.port}"
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
                with script(source, "server", "--port", 0, "--key", "k", "--tracker", where) as process:
                    assert process.stdout is not None
                    assert process.stdout.readline().startswith("READY tcp://127.0.0.1:")
                    assert client.summary()["queue_info"]["k"]["free"] == 1, "READY comes after registration"
                    process.send_signal(number)
                    status = process.wait(PATIENCE)
                    assert status == (0 if number != signal.SIGKILL else -signal.SIGKILL)
                    until(lambda: client.summary()["queue_info"]["k"]["free"] == 0, "leaving")
                    assert client.summary()["server_info"] == []
            until(lambda: len(traces.processes()) == 1, "the tracker being the only one left")
            client.close()
        until(traces.none, "tidying up")

    def test_its_tracker_is_killed_and_started_again(self, traces: Traces) -> None:
        """All that are idle come back; the session that runs does not notice."""
        source = "import sys; from rpcflow.cli import main; sys.argv[0] = 'rpcflow'; main()"
        options: dict[str, Any] = {"key": "k", "silent": True, "server_init_callback": offer()}
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(script(source, "tracker", "--port", 0, "--silent"))
            port = int(line(first).rpartition(":")[2])
            for sessions in (1, 3):
                options["max_sessions"] = sessions
                stack.enter_context(sync.Server("127.0.0.1", 0, tracker_addr=("127.0.0.1", port), **options))
            client = stack.enter_context(sync.connect_tracker("127.0.0.1", port))
            held = stack.enter_context(client.request("k", wait_timeout=PATIENCE))
            first.kill()
            first.wait(PATIENCE)
            with pytest.raises(rpcflow.ConnectionLostError):
                client.summary()
            assert call(held, "t.echo", 1) == 1
            words = ("tracker", "--port", port, "--port-end", port + 1, "--silent")
            second = stack.enter_context(script(source, *words))
            assert line(second) == f"READY tcp://127.0.0.1:{port}"
            until(lambda: client.summary()["queue_info"].get("k") == {"free": 3, "pending": 0}, "coming back")
            assert call(held, "t.echo", 2) == 2
            held.close()
            until(lambda: client.summary()["queue_info"]["k"] == {"free": 4, "pending": 0}, "being free again")
            second.terminate()
            second.wait(PATIENCE)
        until(traces.none, "tidying up")

    @pytest.mark.parametrize(
        "words",
        [
            ["--tracker", "127.0.0.1:9190", "--proxy", "127.0.0.1:9091"],
            ["--custom-addr", "x"],
            ["--tracker", "pigeon://x"],
            ["--tracker", "127.0.0.1:0"],
            ["--proxy", "127.0.0.1:99999"],
            ["--proxy", "192.0.2.1:9091"],
        ],
    )
    def test_bad_options(self, words: list[str], traces: Traces, capfd: pytest.CaptureFixture[str]) -> None:
        source = "import sys; from rpcflow.cli import main; sys.argv[0] = 'rpcflow'; main()"
        with script(source, "server", *words) as process:
            assert process.wait(PATIENCE) == 2
            assert process.stdout is not None
            assert process.stdout.read() == ""
        assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_blocking_server(traces: Traces) -> None:
    with sync.Tracker("127.0.0.1", 0, silent=True) as running:
        addresses: list[Callable[[], Any]] = [
            lambda: ("127.0.0.1", running.port),
            lambda: f"tcp://127.0.0.1:{running.port}",
        ]
        for address in addresses:
            options: dict[str, Any] = {"tracker_addr": address(), "key": "k", "silent": True}
            with sync.Server("127.0.0.1", 0, **options), sync.connect_tracker("127.0.0.1", running.port) as client:
                with client.request("k", wait_timeout=PATIENCE) as session:
                    assert Path(session.get_function("tvm.rpc.server.workpath")("x")).name == "x"
                assert exists(running._service.pid)
