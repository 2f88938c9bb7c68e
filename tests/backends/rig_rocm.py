# SPDX-License-Identifier: Apache-2.0
"""ROCm: on a real device where there is one, else on a fake of HIP (test_rocm.py says so)."""

from __future__ import annotations

from rpcflow.backends.rocm import RocmBackend

from .fakes import gpu, hip
from .rigs import Rig

SIGNATURE = {
    "vadd": "float32*, float32*, float32*, int32",
    "matmul": "float32*, float32*, float32*, int32",
    "scale": "float32*, float32, uint32",
}


def real_absence() -> str | None:
    """Why there is no real device here."""
    return RocmBackend().absence()


def make() -> Rig:
    files = dict.fromkeys(("vadd", "matmul", "scale"), ("kernels.hip", gpu.SOURCE.encode()))
    broken = ("broken.hip", gpu.BROKEN.encode(), "undeclared_thing")
    prepare = None if real_absence() is None else hip.install
    return Rig("rocm", files, broken, SIGNATURE, prepare=prepare)
