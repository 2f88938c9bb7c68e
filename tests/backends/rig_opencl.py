# SPDX-License-Identifier: Apache-2.0
"""OpenCL on whatever driver there is; PoCL in CI."""

from __future__ import annotations

from .rigs import Rig

_SOURCE = b"""
__kernel void vadd(__global const float *a, __global const float *b, __global float *c, int n) {
    int i = get_global_id(0);
    if (i < n) c[i] = a[i] + b[i];
}

__kernel __attribute__((reqd_work_group_size(8, 8, 1)))
void matmul(__global const float *a, __global const float *b, __global float *c, int n) {
    __local float ta[8][8], tb[8][8];
    int x = get_local_id(0), y = get_local_id(1), column = get_global_id(0), row = get_global_id(1);
    float sum = 0.0f;
    for (int k = 0; k < n; k += 8) {
        ta[y][x] = a[row * n + k + x];
        tb[y][x] = b[(k + y) * n + column];
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int i = 0; i < 8; i++) sum += ta[y][i] * tb[i][x];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    c[row * n + column] = sum;
}

__kernel void scale(__global float *x, float alpha, uint n) {
    uint i = get_global_id(0);
    if (i < n) x[i] *= alpha;
}
"""
_HALF = b"""
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
__kernel void half_(__global half *x, uint n) { uint i = get_global_id(0); if (i < n) x[i] *= (half)2.0h; }
"""


def make() -> Rig:
    try:
        import pyopencl

        devices = [device for platform in pyopencl.get_platforms() for device in platform.get_devices()]
    except Exception as error:
        return Rig("opencl", absent=f"pyopencl: {error}")
    if not devices:
        return Rig("opencl", absent="no OpenCL device")
    half = "cl_khr_fp16" in devices[0].extensions
    files = dict.fromkeys(("vadd", "matmul", "scale"), ("kernels.cl", _SOURCE))
    if half:
        files["half_"] = ("half.cl", _HALF)
    broken = b"__kernel void f(__global float *x) { x[0] = undeclared_thing; }"
    return Rig("opencl", files, ("broken.cl", broken, "undeclared_thing"), float16=half)
