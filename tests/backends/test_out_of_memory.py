# SPDX-License-Identifier: Apache-2.0
"""The driver has no more room: an error in words, and the session goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .rigs import prepared

_PROGRAM = """
import resource
import numpy as np
import rpcflow
from rpcflow import sync

written = {written}
with sync.LocalSession() as session:
    device = session.device({kind!r})
    assert device.tensor(np.ones(10)).numpy().sum() == 10
    resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))
    data, held = np.zeros(1 << 28, "uint8"), []
    try:
        for _ in range(64):
            held.append(device.tensor(data) if written else device.empty(1 << 28, "uint8"))
    except rpcflow.RemoteError as error:
        assert "MemoryError" in str(error), error
    else:
        raise AssertionError("there is no limit")
    assert len(held) > 1
    assert device.tensor(np.ones(10)).numpy().sum() == 10
    held.clear()
    assert device.tensor(data).numpy().sum() == 0
print("right")
"""


@pytest.mark.parametrize("written", [False, True], ids=["allocated", "written"])
@pytest.mark.parametrize("kind", ["opencl", "vulkan", "webgpu"])
def test_no_more_room(kind: str, written: bool) -> None:
    prepared(kind)
    run = [sys.executable, "-c", _PROGRAM.format(kind=kind, written=written)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("right\n")
