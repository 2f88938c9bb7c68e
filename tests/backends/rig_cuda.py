# SPDX-License-Identifier: Apache-2.0
"""CUDA: on a real device where there is one, else on a fake driver (test_cuda.py says so)."""

from __future__ import annotations

import os

from rpcflow.backends.cuda import CudaBackend, header_paths

from .fakes import cuda, gpu
from .rigs import Rig

HALF = b"""
#include <cuda_fp16.h>
extern "C" __global__ void half_(__half *x, unsigned int n) {
    unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = __hmul(x[i], __float2half(2.0f));
}
"""


def real_absence() -> str | None:
    """Why there is no real device here."""
    return CudaBackend().absence()


def make() -> Rig:
    files = dict.fromkeys(("vadd", "matmul", "scale"), ("kernels.cu", gpu.SOURCE.encode()))
    broken = ("broken.cu", gpu.BROKEN.encode(), "undeclared_thing")
    if real_absence() is not None:
        return Rig("cuda", files, broken, prepare=cuda.install)
    half = any(os.path.exists(os.path.join(path, "cuda_fp16.h")) for path in header_paths())
    if half:
        files["half_"] = ("half.cu", HALF)
    return Rig("cuda", files, broken, float16=half)
