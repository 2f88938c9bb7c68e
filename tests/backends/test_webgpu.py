# SPDX-License-Identifier: Apache-2.0
"""What WebGPU has of its own: bindings, layouts, folded grids, SPIR-V, which adapters are devices."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rpcflow import sync
from rpcflow.backends import BackendError
from rpcflow.backends.webgpu import WebGPUBackend, choose
from rpcflow.backends.webgpu_memory import words
from rpcflow.errors import RemoteError

from .rigs import Rig, prepared

RNG = np.random.default_rng(7)


@pytest.fixture(scope="module", params=["webgpu"])
def rig(request: pytest.FixtureRequest) -> Rig:
    return prepared(request.param)


def loaded(session: sync.RPCSession, text: str, **how: Any) -> Any:
    session.upload(text.encode(), "own.wgsl")
    return session.load_module("own.wgsl", **how)


# ------------------------------------------------------------------------------------------------ kernels


def test_scalars_are_laid_out(session: sync.RPCSession, device: Any) -> None:
    text = """
    struct Others { @size(8) d: i32, @align(16) e: f32 }
    @group(0) @binding(0) var<uniform> s: S;
    struct S { a: i32, b: u32, c: f32 }
    @group(2) @binding(1) var<storage, read_write> out: array<f32>;
    @group(2) @binding(0) var<uniform> others: Others;
    @compute @workgroup_size(1) fn f() {
        out[0] = f32(s.a); out[1] = f32(s.b); out[2] = s.c; out[3] = f32(others.d); out[4] = others.e;
    }
    """
    out = device.empty(5)
    f = loaded(session, text)["f"]
    for values in ((-3, 4, 0.5, -6, 1e30), (-3, 4, 0.5, -6, float("inf")), (1, 2, 3, 4, 5)):
        f(*values, out, grid=1)
        assert np.array_equal(out.numpy(), np.array(values, "float32"))
    with pytest.raises(RemoteError, match=r"argument 1 \(b: uint32\) must be from 0"):
        f(1, -1, 1.0, 1, 1.0, out, grid=1)


def test_float16_scalars(rig: Rig, session: sync.RPCSession, device: Any) -> None:
    if not rig.float16:
        pytest.skip("the device has no float16")
    text = """
    enable f16;
    struct S { a: f16, b: f16, c: f32 }
    @group(0) @binding(0) var<uniform> s: S;
    @group(0) @binding(1) var<storage, read_write> out: array<f32>;
    @compute @workgroup_size(1) fn f() { out[0] = f32(s.a); out[1] = f32(s.b); out[2] = s.c; }
    """
    out = device.empty(3)
    loaded(session, text)["f"](65504.0, -0.5, 1e9, out, grid=1)
    assert np.array_equal(out.numpy(), np.array([65504, -0.5, 1e9], "float32"))


FOLDED = """
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
struct PODArgs { step: f32, packGridDimX: u32 }
@group(0) @binding(1) var<uniform> podArgs: PODArgs;
@compute @workgroup_size(1, 1, 1)
fn f(@builtin(workgroup_id) blockIdx: vec3<u32>, @builtin(num_workgroups) gridDim: vec3<u32>) {
    if (blockIdx.z * gridDim.x + blockIdx.x > podArgs.packGridDimX) { return; }
    let i = blockIdx.z * gridDim.x + blockIdx.x;
    x[i] += podArgs.step;
}
"""


def test_grids_are_folded(session: sync.RPCSession, device: Any) -> None:
    """As the code that TVM makes for WebGPU has it."""
    f = loaded(session, FOLDED)["f"]
    for count in (1, 65535, 65536, 70001, 200000):
        x = device.tensor(np.zeros(count + 10, "float32"))
        f(x, 2.0, grid=count, block=1)
        assert np.array_equal(x.numpy(), [2.0] * count + [0.0] * 10)
    with pytest.raises(RemoteError, match="2 blocks in z"):
        f(x, 2.0, grid=(4, 1, 2))
    with pytest.raises(RemoteError, match="too long even folded"):
        f(x, 2.0, grid=1 << 33)
    plain = loaded(session, FOLDED.replace("packGridDimX", "last"))["f"]
    with pytest.raises(RemoteError, match="at most 65535 blocks in x"):
        plain(x, 2.0, 65535, grid=65536)


BUFFERS = """
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
@group(0) @binding(3) var<storage, read_write> d: array<f32>;
@compute @workgroup_size(64) fn reverse(@builtin(local_invocation_id) i: vec3<u32>) { c[i.x] = a[63 - i.x] + b[i.x]; }
@compute @workgroup_size(1) fn both() { c[0] = 1; d[0] = 2; }
@compute @workgroup_size(1) fn none() { }
"""


def test_the_same_memory_twice(session: sync.RPCSession, device: Any) -> None:
    module = loaded(session, BUFFERS)
    data = RNG.random(128).astype("float32")
    x, y = device.tensor(data), device.tensor(np.zeros(64, "float32"))
    for _ in range(3):  # what is read is what was there before
        module["reverse"](x, x, x, grid=1)
        data[:64] = data[63::-1] + data[:64]
        assert np.array_equal(x.numpy(), data)
    module["reverse"](x.view((64,), byte_offset=256), x, x, grid=1)
    data[:64] = data[:63:-1] + data[:64]
    assert np.array_equal(x.numpy(), data)
    module["reverse"](x, x, y, grid=1)
    assert np.array_equal(y.numpy(), data[63::-1] + data[:64])
    module["both"](x, y, grid=1)
    assert (x.numpy()[0], y.numpy()[0]) == (1, 2)
    with pytest.raises(RemoteError, match=r"arguments 0 \(c\) and 1 \(d\) are in the same memory"):
        module["both"](x, x.view((64,), byte_offset=256), grid=1)
    module["none"](grid=(2, 2, 2))
    device.sync()


def test_views_that_cannot_be_bound(session: sync.RPCSession, device: Any) -> None:
    both = loaded(session, BUFFERS)["both"]
    x, y = device.empty(128), device.empty(1)
    for offset, text in ((4, "begins 4 bytes into"), (512, "view of no bytes")):
        with pytest.raises(RemoteError, match=rf"argument 0 \(c\).*{text}"):
            both(x.view((0,), byte_offset=offset), y, grid=1)
    both(x.view((64,), byte_offset=256), y, grid=1)
    assert x.numpy()[64] == 1


def test_memory_that_is_too_short_or_too_long(session: sync.RPCSession, device: Any) -> None:
    text = """
    @group(0) @binding(0) var<storage, read_write> x: array<f32, 100>;
    @compute @workgroup_size(1) fn f() { x[99] = 1; }
    """
    f = loaded(session, text)["f"]
    x = device.empty(100)
    for _ in range(2):
        with pytest.raises(RemoteError, match="expects 400"):
            f(device.empty(99), grid=1)
        f(x, grid=1)  # nothing is left behind
    assert x.numpy()[99] == 1
    f(x.view((100,)), grid=1)
    most = int(WebGPUBackend().found()[0].limits["max-storage-buffer-binding-size"])
    if most < 1 << 30:
        with pytest.raises(RemoteError, match="lets kernels see"):
            f(device.empty(most // 4 + 1, "float32"), grid=1)


def test_tensors_of_no_elements(session: sync.RPCSession, device: Any) -> None:
    loaded(session, BUFFERS)["both"](device.empty(0), device.empty((3, 0)), grid=1)
    device.sync()


def test_options_are_constants(session: sync.RPCSession, device: Any) -> None:
    text = """
    override N: u32 = 8u; override half: f32 = 1;
    @group(0) @binding(0) var<storage, read_write> x: array<f32>;
    @compute @workgroup_size(N) fn f(@builtin(local_invocation_id) i: vec3<u32>) { x[i.x] = half; }
    """
    x = device.tensor(np.zeros(64, "float32"))
    loaded(session, text)["f"](x, grid=1, block=8)
    assert x.numpy().sum() == 8
    module = loaded(session, text, options=["N=32", "half = 5e-1"])
    with pytest.raises(RemoteError, match=r"blocks of \(32, 1, 1\)"):
        module["f"](x, grid=1, block=8)
    module["f"](x, grid=1, block=32)
    assert x.numpy().sum() == 16
    for option in ("-O3", "N=", "N=2x", "N=" + "9" * 5000):
        with pytest.raises(RemoteError, match="KernelError"):
            loaded(session, text, options=[option])


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        ("uint32*, int32", None),
        ("int32*, uint32", None),
        ("float32*", "has 1 parameters; it takes 2"),
        ("float32*, int32, int32", "has 3 parameters"),
        ("int32, float32*", "says int32 where it takes x: uint32"),
        ("float32*, float32", "says float32 where it takes n: int32"),
        ("float32*, int64", "says int64 where it takes n: int32"),
        ("float32*, local", "says local memory"),
    ],
)
def test_signatures_must_agree(session: sync.RPCSession, device: Any, signature: str, words: str | None) -> None:
    text = """
    @group(0) @binding(0) var<storage, read_write> x: array<u32>;
    @group(0) @binding(1) var<uniform> n: i32;
    @compute @workgroup_size(1) fn f() { x[0] = u32(n); }
    """
    if words is not None:
        with pytest.raises(RemoteError, match=words):
            loaded(session, text, signature={"f": signature})
        return
    x = device.empty(1, "uint32")
    value = 4000000000 if signature.endswith("uint32") else -1
    loaded(session, text, signature={"f": signature})["f"](x, value, grid=1)
    assert x.numpy()[0] == value % (1 << 32)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("@group(0) @binding(0) var t: texture_2d<f32>;", "takes 't', of the type texture_2d<f32>"),
        ("@group(0) @binding(0) var<uniform> t: vec4<f32>;", "takes 't' of the type vec4<f32>"),
        ("fn g() {", "does not compile"),
    ],
)
def test_files_that_are_refused(session: sync.RPCSession, text: str, words: str) -> None:
    with pytest.raises(RemoteError, match=f"own.wgsl.*{words}"):
        loaded(session, f"{text}\n@compute @workgroup_size(1) fn f() {{ _ = {'t' if '(0)' in text else '1'}; }}")
    with pytest.raises(RemoteError, match="holds no kernels"):
        loaded(session, "fn f() {}")
    with pytest.raises(RemoteError, match="zero byte"):
        loaded(session, "@compute @workgroup_size(1) fn f() {}\0@compute @workgroup_size(1) fn g() {}")
    with pytest.raises(RemoteError, match="workgroup size"):
        loaded(session, "@compute @workgroup_size(1024, 1024) fn f() {}")


GLSL = """#version 450
layout(local_size_x = 64) in;
layout(std430, set = 0, binding = 0) buffer A { float x[]; };
layout(std430, set = 0, binding = 1) buffer B { float y[]; };
%s
void main() { y[gl_GlobalInvocationID.x] = x[gl_GlobalInvocationID.x] * %s; }
"""


def test_spirv(session: sync.RPCSession, device: Any, tmp_path: Path) -> None:
    compiler = shutil.which("glslangValidator")
    if compiler is None:
        pytest.skip("no glslangValidator")

    def compiled(name: str, *parts: str) -> Any:
        (tmp_path / "k.comp").write_text(GLSL % parts)
        subprocess.run([compiler, "-V", "k.comp", "-o", name], cwd=tmp_path, check=True, capture_output=True)
        session.upload((tmp_path / name).read_bytes(), name)
        return session.load_module(name, backend="webgpu")

    x, y = device.tensor(np.ones(64, "float32")), device.empty(64)
    compiled("plain.spv", "", "3.0")["main"](x, y, grid=1, block=64)
    assert np.array_equal(y.numpy(), np.full(64, 3))
    with pytest.raises(RemoteError, match="push constants"):
        compiled("push.spv", "layout(push_constant) uniform P { float f; };", "f")
    data = (tmp_path / "plain.spv").read_bytes()
    for broken in (b"", data[:100], data[:-4], b"\x03\x02\x23\x07" + bytes(64)):
        session.upload(broken, "broken.spv")
        with pytest.raises(RemoteError, match=r"KernelError.*broken\.spv"):
            session.load_module("broken.spv", backend="webgpu")


def test_many_launches_with_changing_arguments(session: sync.RPCSession, device: Any) -> None:
    """More than are remembered; and a scalar is the launch's own, however many are in the queue."""
    text = """
    @group(0) @binding(0) var<storage, read_write> x: array<u32>;
    @group(0) @binding(1) var<uniform> n: u32;
    @compute @workgroup_size(1) fn f() { x[n] = n * n; }
    """
    f = loaded(session, text)["f"]
    tensors = [device.tensor(np.zeros(50, "uint32")) for _ in range(50)]
    for n in range(50):
        for x in tensors:
            f(x, n, grid=1)
    for x in tensors:
        assert np.array_equal(x.numpy(), np.arange(50) ** 2)
    del tensors
    for n in range(100):  # new memory where old was
        x = device.tensor(np.zeros(50, "uint32"))
        f(x, n % 50, grid=1)
        assert x.numpy()[n % 50] == (n % 50) ** 2


# ------------------------------------------------------------------------------------------------ memory


def test_bytes_at_any_place(device: Any) -> None:
    data = RNG.integers(0, 256, (9 << 20) + 1).astype("uint8")
    whole = device.tensor(data)
    for offset, count in ((1, 9 << 20), ((8 << 20) - 2, 5), (3, 65536), (3, 65537), (2, (8 << 20) + 1)):
        assert np.array_equal(whole.view((count,), byte_offset=offset).numpy(), data[offset : offset + count])
        piece = RNG.integers(0, 256, count).astype("uint8")
        whole.view((count,), byte_offset=offset).copyfrom(piece)
        data[offset : offset + count] = piece
    assert np.array_equal(whole.numpy(), data)


@pytest.mark.parametrize(("start", "to", "count"), [(0, 1, 40), (5, 4, 40), (1, 5, 41), (8, 0, 40), (0, 0, 64)])
def test_copies_that_overlap(device: Any, start: int, to: int, count: int) -> None:
    data = np.arange(64, dtype="uint8")
    whole = device.tensor(data)
    whole.view((count,), byte_offset=start).copyto(whole.view((count,), byte_offset=to))
    data[to : to + count] = data[start : start + count].copy()
    assert np.array_equal(whole.numpy(), data)


def test_a_long_write_without_a_launch(device: Any) -> None:
    data = RNG.integers(0, 1 << 30, 20 << 20, dtype="uint32")  # 80 MiB
    assert np.array_equal(device.tensor(data).numpy(), data)


# ------------------------------------------------------------------------------------------------ devices


def info(backend: str, kind: str, number: int = 1) -> dict[str, Any]:
    return {"backend_type": backend, "adapter_type": kind, "vendor_id": 1, "device_id": number}


@pytest.mark.parametrize(
    ("infos", "chosen"),
    [
        ([], []),
        ([info("Vulkan", "CPU"), info("OpenGL", "CPU")], [0]),
        ([info("OpenGL", "DiscreteGPU", 0), info("Vulkan", "CPU")], [1]),
        ([info("OpenGL", "CPU")], [0]),
        ([info("D3D12", "DiscreteGPU"), info("Vulkan", "DiscreteGPU"), info("D3D12", "CPU", 9)], [1, 2]),
        ([info("Vulkan", "CPU", 3), info("Vulkan", "DiscreteGPU"), info("Vulkan", "DiscreteGPU")], [1, 2, 0]),
        ([info("Vulkan", "Other", 3), info("Vulkan", "IntegratedGPU", 2), info("Metal", "CPU")], [1, 0, 2]),
    ],
)
def test_which_adapters_are_devices(infos: list[dict[str, Any]], chosen: list[int]) -> None:
    assert choose(infos) == chosen


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wgpu", None)
    backend = WebGPUBackend()
    assert "pip install 'rpcflow[webgpu]'" in str(backend.absence())
    with pytest.raises(BackendError, match="rpcflow"):
        backend.device(0)


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = ModuleType("wgpu")
    fake.gpu = fake
    fake.GPUError = type("GPUError", (Exception,), {})
    fake.enumerate_adapters_sync = list
    monkeypatch.setitem(sys.modules, "wgpu", fake)
    assert "mesa-vulkan-drivers" in str(WebGPUBackend().absence())


def test_nothing_on_standard_output(rig: Rig) -> None:
    """It may be a server's line to what started it."""
    code = """if True:
        from rpcflow.backends.webgpu import WebGPUBackend
        from rpcflow.backends import KernelError
        from rpcflow.backends.base import KernelSource
        backend = WebGPUBackend()
        assert backend.version().startswith("wgpu ")
        backend.synchronize(0, 0)
        try:
            backend.load(KernelSource("x.wgsl", ".wgsl", b"nonsense"))
        except KernelError:
            backend.close()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_words_of_errors() -> None:
    text = "Validation Error\n\nCaused by:\n  In wgpuDeviceCreateShaderModule\n\nShader '' parsing error: x\n  | y\n\n"
    assert words(Exception(text)) == "Shader '' parsing error: x\n  | y"
    assert words(Exception("")) == ""
    assert words(Exception("In wgpuQueueSubmit")) == "In wgpuQueueSubmit"


C = "@group(0) @binding(0) var<storage, read_write> c: array<f32>;\n@compute @workgroup_size(1) fn f() {"


@pytest.mark.parametrize(
    "body",
    [
        "c[0] = " + "(" * 3000 + "3.0" + ")" * 3000 + ";",
        "c[0] = " + "- " * 50000 + "3.0;",
        "c[0] = 1.0" + " + c[1]" * 20000 + ";",
        "var x: " + "array<" * 5000 + "f32" + ",1>" * 5000 + ";",
        "{" * 5000 + "}" * 5000,
        "if (c[0] > 1) { " * 3000 + "}" * 3000,
        "if (c[0] > 1) { c[0] = 1; }" + " else if (c[0] > 1) { c[0] = 1; }" * 20000,
        ("if (true) {}" + " else if (true) {}" * 250 + " else {") * 32 + "}" * 32,
        "c[0] = c" + ".x" * 20000 + ";",
        "} " + "".join(f"const a{i} = a{i + 1} + 1;" for i in range(30000)) + "const a30000 = 1; fn g() {",
        "} " + "".join(f"alias A{i} = A{i + 1};" for i in range(30000)) + "alias A30000 = f32; fn g() {",
    ],
    ids=["parentheses", "signs", "sum", "type", "braces", "ifs", "else ifs", "both", "members", "constants", "aliases"],
)
def test_what_a_compiler_that_recurses_cannot_stand(session: sync.RPCSession, body: str) -> None:
    with pytest.raises(RemoteError, match="KernelError"):
        loaded(session, C + body + "}")
    loaded(session, C + "c[0] = 1.0" + " + c[1]" * 500 + ";}")["f"]


@pytest.mark.parametrize(
    "body",
    [
        "c[0] = 1.0" + " + c[1] * c[2]" * 1000 + ";",
        "c[0] = " + "- " * 2000 + "1.0;",
        "if (c[0] > 1) { c[0] = 1; }" + " else if (c[0] > 1) { c[0] = 1; }" * 200,
        "if (c[0] > 1) { c[0] = 1; }" * 2000,
        "let b = c[0] < c[1] " + "&& c[2] < c[3] " * 500 + ";",
        "var x = array<f32, 3000>(" + ", ".join(["-1.0"] * 3000) + "); c[0] = x[u32(c[1])];",
        "c[0] = f32((1u << 3u) >> 1u);",
    ],
    ids=["sum", "signs", "else ifs", "ifs", "comparisons", "array", "shifts"],
)
def test_what_it_can_stand(session: sync.RPCSession, body: str) -> None:
    loaded(session, C + body + "}")["f"]
