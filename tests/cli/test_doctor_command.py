# SPDX-License-Identifier: Apache-2.0
"""``rpcflow doctor`` as it is typed, and what it shows of this machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from rpcflow import sync

from . import strangers
from .strangers import HOST


def command(*arguments: str) -> tuple[int, str, str]:
    run = [sys.executable, "-m", "rpcflow", "doctor", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, timeout=100)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_command_here() -> None:
    status, out, err = command()
    assert status == 0
    assert not err
    assert "ok    rpcflow " in out
    assert "cpu(0)" in out


def test_command_there() -> None:
    with sync.Server(HOST, 0, silent=True) as server:
        status, out, err = command(f"{HOST}:{server.port}")
        assert (status, err) == (0, "")
        assert [line.split()[:2] for line in out.splitlines()] == [["ok", "connection"], ["ok", "answer"]]
        status, out, _ = command(f"tcp://{HOST}:{server.port}", "--key", "k")
        assert status == 0
        assert "What to do:" in out
    status, out, err = command(f"{HOST}:{server.port}")
    assert (status, err) == (1, "")
    assert out.startswith("FAIL  connection")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["https://localhost:9091"], "known are: "),
        (["tls://localhost:9091?pins=1"], "known are "),
        (["popen:///bin/true"], "no tracker or proxy behind it"),
        (["serial:///dev/null"], "no tracker or proxy behind it"),
        (["host:99999"], "not a port"),
        (["--key", "k"], "URL"),
        (["localhost", "--key", "two words"], "white space"),
        (["localhost", "--timeout", "1"], "--timeout"),
        ([""], "address"),
    ],
)
def test_wrong_options(arguments: list[str], words: str) -> None:
    status, out, err = command(*arguments)
    assert status == 2
    assert not out
    assert words in err
    assert err.count("\n") == 1


def test_a_backend_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from rpcflow.backends import registry
    from rpcflow.backends.cpu import CpuBackend
    from rpcflow.server import inventory

    class Cards(CpuBackend):
        kind = "vulkan"

        def attribute(self, dev_id: int, kind: int) -> int | str | None:
            return {0: int(dev_id < 2), 5: "Card\x1b[2J"}.get(kind)

        def version(self) -> str:
            return "driver 7"

    class Absent(Cards):
        kind = "metal"

        def absence(self) -> str | None:
            return "no metal here: pip install metal"

    monkeypatch.setattr(sys.modules[__name__], "cards", Cards, raising=False)
    monkeypatch.setattr(sys.modules[__name__], "absent", Absent, raising=False)
    points = [
        EntryPoint("cuda", "no.such.module:Backend", "rpcflow.backends"),
        EntryPoint("vulkan", f"{__name__}:cards", "rpcflow.backends"),
        EntryPoint("metal", f"{__name__}:absent", "rpcflow.backends"),
        EntryPoint("rocm", f"{__name__}:cards", "rpcflow.backends"),
        EntryPoint("abacus", f"{__name__}:cards", "rpcflow.backends"),
    ]

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        return [point for point in points if name in (None, point.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    items = {item.name: item for item in inventory.inventory()}
    assert items["backend cpu"].there
    assert items["backend cuda"].there is False
    assert "ModuleNotFoundError" in items["backend cuda"].text
    assert items["backend vulkan"].text == "vulkan(0) Card?[2J; vulkan(1) Card?[2J [driver 7]"
    assert items["backend metal"].there is None
    assert items["backend metal"].text == "no device: no metal here: pip install metal"
    assert "is one for 'vulkan'" in items["backend rocm"].text
    assert items["backend abacus"].there is False


def test_interrupted() -> None:
    """Also while several addresses are tried."""
    with strangers.listening(strangers.silent) as silent, strangers.listening(strangers.silent) as other:
        servers = [{"key": "server:k", "addr": [HOST, port]} for port in (silent, other)]
        answer = json.dumps([0, {"queue_info": {}, "server_info": servers}]).encode()
        with strangers.listening(strangers.tracker_saying(answer)) as port:
            run = [sys.executable, "-u", "-m", "rpcflow", "doctor", f"{HOST}:{port}"]
            with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                while "registration" not in process.stdout.readline():
                    pass
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
