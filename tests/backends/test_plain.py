# SPDX-License-Identifier: Apache-2.0
"""Devices and kernels where apache-tvm-ffi is not installed."""

from __future__ import annotations

import subprocess
import sys

from .rigs import prepared

_PROGRAM = """
import sys
sys.modules["tvm_ffi"] = None  # as where it is not installed
import numpy as np
import rpcflow
from rpcflow import sync

seen = []
rpcflow.register("keep", lambda tensor: seen.append(tensor) or tensor)
with sync.LocalSession() as session:
    device = session.cl()
    data = np.arange(100, dtype="float32")
    x, z = device.tensor(data), device.empty(100)
    session.upload(sys.stdin.buffer.read(), "kernels.cl")
    module = session.load_module("kernels.cl")
    module["vadd"](x, x, z, 100, grid=2, block=64)
    returned = session.get_function("keep")(z.view((50,), byte_offset=200))
    assert seen[0].shape == (50,) and seen[0].__dlpack_device__() == (4, 0)
    assert returned.device == device
    module["scale"](z, 0.5, 100, grid=2, block=64)
    assert np.array_equal(returned.numpy(), data[50:])
    try:
        module["vadd"](x, session.cpu().tensor(data), z, 100, grid=2, block=64)
    except rpcflow.RemoteError as error:
        assert "argument 1" in str(error), error
    assert module.time_evaluator("vadd", device)(x, x, z, 100, grid=2, block=64).mean > 0
print("right")
"""


def test_without_tvm_ffi() -> None:
    rig = prepared("opencl")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], input=rig.files["vadd"][1], capture_output=True, timeout=100, check=False
    )
    assert done.stdout == b"right\n", done.stderr.decode()
