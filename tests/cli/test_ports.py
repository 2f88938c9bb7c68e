# SPDX-License-Identifier: Apache-2.0
"""``rpcflow ports``."""

import subprocess
import sys

import pytest
from click.testing import CliRunner
from serial.tools import list_ports_common

from rpcflow.cli import cli
from rpcflow.transports import serial


def port(device: str, description: str, hardware: str) -> list_ports_common.ListPortInfo:
    made = list_ports_common.ListPortInfo(device, skip_link_detection=True)
    made.description, made.hwid = description, hardware
    return made


def test_one_line_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [port("/dev/ttyUSB10", "CP2102", "USB VID:PID=10C4:EA60"), port("/dev/ttyS0", "n/a", "PNP0501")]
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: found)
    result = CliRunner().invoke(cli, ["ports"])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "/dev/ttyS0     n/a     PNP0501",
        "/dev/ttyUSB10  CP2102  USB VID:PID=10C4:EA60",
    ]


def test_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serial.tools.list_ports.comports", list)
    result = CliRunner().invoke(cli, ["ports"])
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "no serial ports" in result.stderr


def test_without_pyserial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    result = CliRunner().invoke(cli, ["ports"])
    assert result.exit_code == 1
    assert "pip install 'rpcflow[serial]'" in result.stderr


def test_the_command_itself_says_what_this_machine_has() -> None:
    done = subprocess.run([sys.executable, "-m", "rpcflow", "ports"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    assert listed == [device for device, _, _ in serial.ports()]
    assert listed or "no serial ports" in done.stderr
