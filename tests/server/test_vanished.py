# SPDX-License-Identifier: Apache-2.0
"""A client whose machine falls off the network says nothing, and is found all the same. The machine is a network
namespace of its own, so this needs root and the command ``ip``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import attrs
import pytest

from rpcflow import sync

from .conftest import Host
from .support import PATIENCE

_CLIENT = """
import sys
from rpcflow import sync
session = sync.connect(sys.argv[1], int(sys.argv[2]))
function = session.get_function(sys.argv[3])
print("in", flush=True)
function(*map(float, sys.argv[4:]))
print("waiting", flush=True)
sys.stdin.read()
"""


@attrs.frozen
class Machine:
    """Another machine on a cable."""

    name: str
    host: str
    cable: str

    def popen(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def unplug(self) -> None:
        _ip("link", "set", self.cable, "down")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machine() -> Iterator[Machine]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network namespace needs root and the command ip (Debian: apt-get install iproute2)")
    number = os.getpid()
    name, near, far = f"rpcflow{number}", f"rfn{number}", f"rff{number}"
    subnet = f"10.{200 + number // 250 % 50}.{number % 250}"
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.strip()}")
    try:
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        _ip("addr", "add", f"{subnet}.1/30", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", name, "addr", "add", f"{subnet}.2/30", "dev", far)
        _ip("-n", name, "link", "set", far, "up")
        yield Machine(name, f"{subnet}.1", near)
    finally:
        subprocess.run(["ip", "link", "del", near], capture_output=True)  # it may not have come to be
        _ip("netns", "del", name)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_machine_that_vanishes(host: Host, machine: Machine, busy: bool) -> None:
    """Its device is free again once ``peer_timeout`` has passed."""
    call = ["t.block", "1000"] if busy else ["t.pid"]
    with host(host=machine.host, insecure=True, peer_timeout=2.0) as server:
        with machine.popen(sys.executable, "-c", _CLIENT, machine.host, str(server.port), *call) as client:
            try:
                assert client.stdout is not None
                assert client.stdout.readline() == "in\n"
                if not busy:
                    assert client.stdout.readline() == "waiting\n"
                machine.unplug()
                with sync.connect(machine.host, server.port, wait_timeout=PATIENCE) as session:
                    assert session.get_function("t.pid")()
            finally:
                client.kill()
