# SPDX-License-Identifier: Apache-2.0
"""The proxy in a process of its own: the blocking API and the command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rpcflow import sync
from tests.server.support import HOST, PATIENCE, ROOT, Traces, call, children, exists, until

from .conftest import free_port


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    folder = tmp_path / "temporary"
    folder.mkdir()
    found = Traces(folder, monkeypatch)
    yield found
    until(lambda: not found.processes(), "ending all processes")
    assert not found.files()


def echo(url: str, **options: Any) -> None:
    with sync.connect(url, key="k", wait_timeout=PATIENCE, **options) as session:
        assert call(session, "testing.echo", 7) == 7


def test_blocking_api(traces: Traces) -> None:
    web = free_port()
    with sync.Proxy(HOST, 9091, 9199, web) as proxy:
        assert (proxy.host, proxy.web_port) == (HOST, web)
        assert f"{HOST}:{proxy.port}" in repr(proxy)
        with sync.Server(HOST, proxy.port, is_proxy=True, key="k", silent=True):
            for _ in range(3):
                echo(f"tcp://{HOST}:{proxy.port}")
            echo(f"ws://{HOST}:{web}/ws")
        with sync.Server(f"ws://{HOST}:{web}/ws", is_proxy=True, key="k", silent=True):
            for _ in range(3):
                echo(f"ws://{HOST}:{web}")
            echo(f"tcp://{HOST}:{proxy.port}")


def test_files_are_found_from_the_current_folder(traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    (traces.folder.parent / "index.html").write_text("hello")
    (traces.folder.parent / "a.js").write_text("1")
    monkeypatch.chdir(traces.folder.parent)
    web = free_port()
    with sync.Proxy(HOST, 9091, web_port=web, index_page="index.html", resource_files=[("x", "a.js")]):
        for path, text in (("/", b"hello"), ("/x/a.js", b"1")):
            with urllib.request.urlopen(f"http://{HOST}:{web}{path}") as answer:
                assert answer.read() == text


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        ({"port": 70000}, ValueError, "port"),
        ({"timeout_client": -1}, ValueError, "timeout_client"),
        ({"web_port": 1, "index_page": "nowhere.html"}, ValueError, "nowhere"),
    ],
)
def test_wrong_options(traces: Traces, options: dict[str, Any], kind: type[Exception], word: str) -> None:
    with pytest.raises(kind, match=word):
        sync.Proxy(HOST, **options)


def test_collected(traces: Traces) -> None:
    proxy = sync.Proxy(HOST)
    assert traces.processes()
    del proxy
    until(lambda: not traces.processes(), "ending the process")


def command(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])}
    return subprocess.Popen(
        [sys.executable, "-m", "rpcflow", "proxy", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command(traces: Traces, number: int) -> None:
    web = free_port()
    with command("--port", "0", "--web-port", str(web)) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        found = re.fullmatch(rf"READY tcp://{re.escape(HOST)}:(\d+)\n", ready)
        assert found, ready
        with sync.Server(HOST, int(found[1]), is_proxy=True, key="k", silent=True):
            echo(f"tcp://{HOST}:{found[1]}")
            echo(f"ws://{HOST}:{web}/ws")
            with sync.connect(HOST, int(found[1]), "k", wait_timeout=PATIENCE) as session:
                assert call(session, "testing.echo", 1) == 1
                process.send_signal(number)
                out, _ = process.communicate(timeout=PATIENCE)
        assert out == ""
        assert process.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--host", "0.0.0.0"),
        ("--port", "99999"),
        ("--web-port", "x"),
        ("--tracker", "nonsense://"),
        ("--no-such-option",),
    ],
)
def test_bad_options(traces: Traces, arguments: tuple[str, ...]) -> None:
    with command(*arguments) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (2, "")
    assert len(err.strip().splitlines()) == 1


def test_an_address_in_use(traces: Traces) -> None:
    with sync.Proxy(HOST) as proxy:
        with command("--port", str(proxy.port), "--port-end", str(proxy.port + 1)) as process:
            out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (2, "")
    assert len(err.strip().splitlines()) == 1


def test_it_dies_with_its_parent(traces: Traces) -> None:
    code = (
        "import os, time; from rpcflow import sync; p = sync.Proxy('127.0.0.1'); print(1, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (child,) = children(process.pid)
        process.kill()
        until(lambda: not exists(child), "the proxy's end")
