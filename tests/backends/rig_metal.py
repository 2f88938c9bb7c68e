# SPDX-License-Identifier: Apache-2.0
"""Metal: the real one on a Mac that has pyobjc, elsewhere the fake."""

from __future__ import annotations

import importlib.util
import sys

from .fakes import metal
from .rigs import Rig

_SOURCE = b"""
#include <metal_stdlib>
using namespace metal;

kernel void vadd(device const float *a [[buffer(0)]], device const float *b [[buffer(1)]],
                 device float *c [[buffer(2)]], constant int &n [[buffer(3)]],
                 uint i [[thread_position_in_grid]]) {
    if (int(i) < n) c[i] = a[i] + b[i];
}

kernel void matmul(const device float *a [[buffer(0)]], const device float *b [[buffer(1)]],
                   device float *c [[buffer(2)]], constant int &n [[buffer(3)]],
                   uint2 at [[thread_position_in_grid]], uint2 in [[thread_position_in_threadgroup]]) {
    threadgroup float ta[8][8], tb[8][8];
    float sum = 0.0f;
    for (int k = 0; k < n; k += 8) {
        ta[in.y][in.x] = a[at.y * n + k + in.x];
        tb[in.y][in.x] = b[(k + in.y) * n + at.x];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int i = 0; i < 8; i++) sum += ta[in.y][i] * tb[i][in.x];
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    c[at.y * n + at.x] = sum;
}

kernel void scale(device float *x [[buffer(0)]], constant float &alpha [[buffer(1)]], constant uint &n [[buffer(2)]],
                  uint i [[thread_position_in_grid]]) {
    if (i < n) x[i] *= alpha;
}

kernel void half_(device half *x [[buffer(0)]], constant uint &n [[buffer(1)]], uint i [[thread_position_in_grid]]) {
    if (i < n) x[i] *= 2.0h;
}
"""


def make() -> Rig:
    real = sys.platform == "darwin" and importlib.util.find_spec("Metal") is not None
    files = dict.fromkeys(("vadd", "matmul", "scale", "half_"), ("kernels.metal", _SOURCE))
    broken = b"kernel void scale(device float *x [[buffer(0)]]) { x[0] = undeclared_thing; }"
    return Rig(
        "metal",
        files,
        ("broken.metal", broken, "undeclared_thing"),
        float16=True,
        prepare=None if real else metal.install,
    )
