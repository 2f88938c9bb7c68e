# SPDX-License-Identifier: Apache-2.0
"""Sessions with this process that use devices come and go without a trace."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .rigs import prepared

MANY = """
import gc, os
import numpy as np
from rpcflow import sync
from tests.backends.rigs import prepared

rig = prepared({kind!r})

def once():
    with sync.LocalSession() as session:
        device = session.device({kind!r})
        x = device.tensor(np.ones(1 << 16, "float32"))
        device.set_stream(device.create_stream())
        z = x.copyto(device)
        if {kernel}:
            rig.load(session, "vadd")["vadd"](x, x, z, 1 << 16, grid=1 << 10, block=64)
        device.sync()
        assert z.numpy().sum() == (2 if {kernel} else 1) << 16

def household():
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * 4096
    return resident, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

for _ in range(8):
    once()
seen = [household()]
for _ in range(4):
    for _ in range(10):
        once()
    seen.append(household())
# What is kept grows every time; allocators take more now and then.
assert min(after[0] - before[0] for before, after in zip(seen, seen[1:])) < 3 << 20, seen
assert seen[-1][1:] <= seen[0][1:], seen
print("right")
"""


@pytest.mark.parametrize("kind", ["cpu", "opencl", "vulkan", "webgpu"])
def test_many_one_after_another(kind: str) -> None:
    """Each opens the device, uses what there is and closes it: no growth in memory, threads or descriptors."""
    kernel = bool(prepared(kind).files)
    run = [sys.executable, "-c", MANY.format(kind=kind, kernel=kernel)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("right\n")
