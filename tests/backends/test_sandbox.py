# SPDX-License-Identifier: Apache-2.0
"""Devices inside a sandbox: those that are the processor itself need nothing granted."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

from rpcflow import sync

from .rigs import prepared


@pytest.fixture(autouse=True)
def _bubblewrap() -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("no bubblewrap: devices in a sandbox are NOT TESTED")


@pytest.mark.parametrize("kind", ["opencl", "vulkan", "webgpu"])
def test_a_kernel(kind: str) -> None:
    rig = prepared(kind)
    with sync.Server("127.0.0.1", 0, silent=True, sandbox=True) as server:
        with sync.connect("127.0.0.1", server.port) as session:
            device = session.device(kind)
            x, z = device.tensor(np.ones(64, "float32")), device.empty(64)
            rig.load(session, "vadd")["vadd"](x, x, z, 64, grid=1, block=64)
            assert z.numpy().sum() == 128


_GRANTED = """
from rpcflow import sync
with sync.Server("127.0.0.1", 0, silent=True, sandbox=True, sandbox_grant=["/sys"]) as server:
    with sync.connect("127.0.0.1", server.port) as session:
        assert session.cl().exist in (True, False)
"""


def test_devices_of_the_system_granted() -> None:
    """As for GPUs, whose drivers look into /sys: the launcher ends well, with nothing to say."""
    done = subprocess.run([sys.executable, "-c", _GRANTED], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
