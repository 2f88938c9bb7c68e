# SPDX-License-Identifier: Apache-2.0
"""WebGPU on whatever driver there is; Mesa's lavapipe in CI."""

from __future__ import annotations

from rpcflow.backends.webgpu import WebGPUBackend

from .rigs import Rig

_SOURCE = b"""
// Each kernel takes what it uses, in order of group and binding.
struct Length { n: i32 }
struct Factor { alpha: f32, n: u32 }

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
@group(0) @binding(3) var<uniform> length: Length;
@group(1) @binding(0) var<storage, read_write> x: array<f32>;
@group(1) @binding(1) var<uniform> factor: Factor;

@compute @workgroup_size(64)
fn vadd(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = i32(id.x);
    if (i < length.n) { c[i] = a[i] + b[i]; }
}

const SIDE = 8u;
var<workgroup> ta: array<array<f32, SIDE>, SIDE>;
var<workgroup> tb: array<array<f32, SIDE>, SIDE>;

@compute @workgroup_size(SIDE, SIDE)
fn matmul(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let n = u32(length.n);
    var sum = 0.0f;
    for (var k = 0u; k < n; k += SIDE) {
        ta[local.y][local.x] = a[id.y * n + k + local.x];
        tb[local.y][local.x] = b[(k + local.y) * n + id.x];
        workgroupBarrier();
        for (var i = 0u; i < SIDE; i++) { sum += ta[local.y][i] * tb[i][local.x]; }
        workgroupBarrier();
    }
    c[id.y * n + id.x] = sum;
}

@compute @workgroup_size(64)
fn scale(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < factor.n) { x[id.x] *= factor.alpha; }
}
"""
_HALF = b"""
enable f16;
@group(0) @binding(0) var<storage, read_write> x: array<f16>;
@group(0) @binding(1) var<uniform> n: u32;
@compute @workgroup_size(64)
fn half_(@builtin(global_invocation_id) id: vec3<u32>) { if (id.x < n) { x[id.x] *= 2.0h; } }
"""
_BROKEN = b"""
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@compute @workgroup_size(1) fn f() { x[0] = undeclared_thing; }
"""


def make() -> Rig:
    backend = WebGPUBackend()
    absent = backend.absence()
    if absent is not None:
        return Rig("webgpu", absent=absent)
    if backend.found()[0].info["backend_type"] == "OpenGL":
        return Rig("webgpu", absent="only by way of OpenGL, whose limits are others (Debian: mesa-vulkan-drivers)")
    half = "shader-f16" in backend.found()[0].features
    files = dict.fromkeys(("vadd", "matmul", "scale"), ("kernels.wgsl", _SOURCE))
    if half:
        files["half_"] = ("half.wgsl", _HALF)
    return Rig("webgpu", files, ("broken.wgsl", _BROKEN, "undeclared_thing"), float16=half)
