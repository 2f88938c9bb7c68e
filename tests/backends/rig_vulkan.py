# SPDX-License-Identifier: Apache-2.0
"""Vulkan on whatever driver there is; Mesa's lavapipe in CI."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from rpcflow.backends import BackendError

from .rigs import Rig

_VADD = """#version 450
layout(local_size_x = 64) in;
layout(binding = 0) readonly buffer A { float a[]; };
layout(binding = 1) readonly buffer B { float b[]; };
layout(binding = 2) buffer C { float c[]; };
layout(push_constant) uniform P { int n; };
void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i < n) c[i] = a[i] + b[i];
}
"""
_MATMUL = """#version 450
layout(local_size_x = 8, local_size_y = 8) in;
layout(binding = 0) readonly buffer A { float a[]; };
layout(binding = 1) readonly buffer B { float b[]; };
layout(binding = 2) buffer C { float c[]; };
layout(push_constant) uniform P { int n; };
shared float ta[8][8], tb[8][8];
void main() {
    uint x = gl_LocalInvocationID.x, y = gl_LocalInvocationID.y;
    uint column = gl_GlobalInvocationID.x, row = gl_GlobalInvocationID.y;
    float sum = 0.0;
    for (int k = 0; k < n; k += 8) {
        ta[y][x] = a[row * n + k + x];
        tb[y][x] = b[(k + y) * n + column];
        barrier();
        for (int i = 0; i < 8; i++) sum += ta[y][i] * tb[i][x];
        barrier();
    }
    c[row * n + column] = sum;
}
"""
_SCALE = """#version 450
layout(local_size_x = 64) in;
layout(binding = 0) buffer X { float x[]; };
layout(push_constant) uniform P { float alpha; uint n; };
void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i < n) x[i] *= alpha;
}
"""
_HALF = """#version 450
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_EXT_shader_16bit_storage : require
layout(local_size_x = 64) in;
layout(binding = 0) buffer X { float16_t x[]; };
layout(push_constant) uniform P { uint n; };
void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i < n) x[i] *= 2.0hf;
}
"""


@functools.cache
def compiled(source: str, name: str = "main", *options: str) -> bytes:
    """GLSL as SPIR-V, with ``main`` under another name."""
    command = ["glslangValidator", "-V", "-e", name, "--source-entrypoint", "main", *options]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel.comp").write_text(source)
        subprocess.run([*command, "-o", "kernel.spv", "kernel.comp"], cwd=folder, stdout=subprocess.PIPE, check=True)
        return Path(folder, "kernel.spv").read_bytes()


def make() -> Rig:
    from rpcflow.backends.vulkan_api import Api

    if shutil.which("glslangValidator") is None:
        return Rig("vulkan", absent="no glslangValidator (Debian: glslang-tools)")
    try:
        api = Api()
    except BackendError as error:
        return Rig("vulkan", absent=str(error))
    half = api.devices[0].features >= {"shaderFloat16", "storageBuffer16BitAccess"}
    api.close()
    sources = {"vadd": _VADD, "matmul": _MATMUL, "scale": _SCALE}
    if half:
        sources["half_"] = _HALF
    files = {name: (f"{name}.spv", compiled(source, name)) for name, source in sources.items()}
    return Rig("vulkan", files, ("broken.spv", files["vadd"][1][:-4], "cut off"), float16=half)
