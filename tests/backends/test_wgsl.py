# SPDX-License-Identifier: Apache-2.0
"""What kernels take, read from WGSL."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.backends.base import KernelError
from rpcflow.backends.wgsl import EntryPoint, Resource, Scalar, reflect
from rpcflow.backends.wgsl_constants import tokenize
from rpcflow.protocol.dtype import DataType

BUFFERS = """
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage> b: array<vec4<f32>, 4>;
@group(0) @binding(2) var<storage, read_write> c: array<atomic<u32>>;
@group(1) @binding(0) var<uniform> n: u32;
var<workgroup> tile: array<array<f32, 8>, 8>;
var<private> seed = 3u;
"""


def only(text: str, **constants: float) -> EntryPoint:
    (entry,) = reflect(text, constants)
    return entry


def names(text: str) -> list[str]:
    return [resource.name for resource in only(text).resources]


def kernel(body: str, params: str = "", size: str = "1") -> str:
    return f"@compute @workgroup_size({size}) fn main({params}) {{ {body} }}\n"


def test_an_entry_point() -> None:
    found = only(BUFFERS + kernel("c[0] = u32(a[n]) + seed; tile[0][0] = b[0].x;", size="8, 4"))
    assert found == EntryPoint(
        "main",
        (8, 4, 1),
        (
            Resource("a", 0, 0, False, element=DataType.parse("float32")),
            Resource("b", 0, 1, False, element=DataType.parse("float32")),
            Resource("c", 0, 2, False, writable=True, element=DataType.parse("uint32")),
            Resource("n", 1, 0, True, False, 16, (Scalar("n", "uint32", 0),)),
        ),
    )


def test_order_is_that_of_the_bindings() -> None:
    text = """
    @binding(3,) @group(0) var<storage, read> d: array<f32>;
    @group(1) @binding(0) var<storage, read> e: array<f32>;
    @group(0) @binding(1) var<storage, read_write> f: array<f32>;
    """
    assert names(text + kernel("f[0] = e[0] + d[0];")) == ["f", "d", "e"]


@pytest.mark.parametrize(
    ("body", "used"),
    [
        ("", []),
        ("c[0] = 1;", ["c"]),
        ("_ = a[0];", ["a"]),
        ("let a = 1; let x = a;", []),
        ("let a = a[0];", ["a"]),  # a name is known from behind its declaration
        ("{ let a = 1; let x = a; } c[0] = u32(a[0]);", ["a", "c"]),
        ("for (var a = 0; a < 3; a++) { c[a] = 1; }", ["c"]),
        ("for (var a = 0; a < 3; a++) { c[a] = 1; } let x = a[0];", ["a", "c"]),
        ("for (var i = n; i < 3; i++) { }", ["n"]),
        ("var<function> a: array<f32, 4>; a[0] = 1;", []),
        ("if (x.a > y.n) { c[0] = 1; } else { let n = 1; loop { let x = n; break; } }", ["c"]),
        ("// a[0]\n/* b /* c */ n */ let x = n;", ["n"]),
        ("/* // */ let x = n; /* c //*/ */ */", ["n"]),
        ("switch x { case 1, 2: { c[0] = 1; } default: { } }", ["c"]),
    ],
)
def test_what_is_used(body: str, used: list[str]) -> None:
    assert names(BUFFERS + kernel(body)) == used


def test_what_is_used_by_what_it_calls() -> None:
    text = """
    fn inner(n: u32) -> f32 { return f32(n); }
    fn outer(@location(0) x: u32, y: ptr<function, array<f32, 4>>) -> f32 { return inner(x) + a[x]; }
    fn unused() { c[0] = 1; }
    """
    assert names(BUFFERS + text + kernel("let x = outer(1);")) == ["a"]
    assert names(BUFFERS + text + kernel("let outer = 1; let y = outer;")) == []


def test_each_entry_point_has_its_own() -> None:
    text = "@compute @workgroup_size(1) fn f() { c[0] = 1; }\n@workgroup_size(2) @compute fn g() { let x = a[n]; }"
    found = reflect(BUFFERS + text + "@vertex fn v() { let x = b[0]; }")
    assert [(entry.name, [resource.name for resource in entry.resources]) for entry in found] == [
        ("f", ["c"]),
        ("g", ["a", "n"]),
    ]


def test_what_tvm_writes() -> None:
    """As its generator for WebGPU lays a kernel out."""
    text = """
    @group(0) @binding(0) var<storage, read_write> out : array<f32>;
    @group(0) @binding(1) var<storage, read> data : array<f32>;
    struct PODArgs { factor: f32, n: i32, packGridDimX: u32 }
    @group(0) @binding(2) var<uniform> podArgs : PODArgs;
    @compute @workgroup_size(64, 1, 1)
    fn scale_kernel(@builtin(workgroup_id) blockIdx : vec3<u32>, @builtin(num_workgroups) gridDim : vec3<u32>) {
      if (blockIdx.z * gridDim.x + blockIdx.x > podArgs.packGridDimX) { return; }
      out[0] = data[0] * podArgs.factor;
    }
    """
    found = only(text)
    assert found.block == (64, 1, 1)
    assert [resource.name for resource in found.resources] == ["out", "data", "podArgs"]
    assert [(x.name, x.dtype, x.offset) for x in found.resources[2].scalars] == [
        ("factor", "float32", 0),
        ("n", "int32", 4),
        ("packGridDimX", "uint32", 8),
    ]


@pytest.mark.parametrize(
    ("members", "offsets", "nbytes"),
    [
        ("a: f16, b: f16, c: f32", [0, 2, 4], 16),
        ("a: u32, b: f16, c: i32", [0, 4, 8], 16),
        ("a: u32, @align(16) b: f16, c: i32,", [0, 16, 20], 32),
        ("@size(12) a: u32, b: Real, @align(32) @size(SIZE) c: i32", [0, 12, 32], 64),
        ("a: u32, b: i64, c: f64", [0, 8, 16], 32),
        ("a: u32, b: u32, c: u32, d: u32, e: u32", [0, 4, 8, 12, 16], 32),
    ],
)
def test_layouts(members: str, offsets: list[int], nbytes: int) -> None:
    text = f"alias Float = f32; alias Real = Float; const SIZE = 4 * 4; struct S {{ {members} }}"
    found = only(f"{text} @group(0) @binding(0) var<uniform> s: S; {kernel('let x = s.a;')}").resources[0]
    assert [scalar.offset for scalar in found.scalars] == offsets
    assert found.nbytes == nbytes


@pytest.mark.parametrize(
    ("size", "block"),
    [
        ("8", (8, 1, 1)),
        ("8u, 4i, 2,", (8, 4, 2)),
        ("0x10, N", (16, 12, 1)),
        ("1 << 3, N / 5 % 2 + 1", (8, 1, 1)),
        ("(N - 4) * 2 | 1, ~(-3)", (17, 2, 1)),
        ("u32(N), min(N, 5), max(2, i32(3))", (12, 5, 3)),
        ("M, 7 & 12 ^ 1, 64 >> 2", (24, 5, 16)),
        ("K", (96, 1, 1)),
    ],
)
def test_sizes_of_workgroups(size: str, block: tuple[int, int, int]) -> None:
    text = "const M = 2 * N; const N: u32 = 12u; @id(5) override K: u32 = M * 4;"
    assert only(text + kernel("", size=size)).block == block


def test_overrides() -> None:
    text = "override N: u32 = 8u; @id(5) override K: i32; override unused: f32;" + kernel("", size="N, K")
    assert only(text, **{"5": 3}).block == (8, 3, 1)
    assert only(text, K=4, N=2, unused=0.5).block == (2, 4, 1)
    with pytest.raises(KernelError, match="value of 'K' is not known"):
        reflect(text)


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        ("@group(0) @binding(0) var x: texture_2d<f32>;", "'x', of the type texture_2d<f32>"),
        ("@group(0) @binding(0) var x: sampler;", "'x', of the type sampler"),
        ("var<immediate> x: u32;", "'x', of the type var<immediate>"),
        ("@group(0) @binding(0) var<uniform> x: vec4<f32>;", "'x' of the type vec4<f32>"),
        ("@group(0) @binding(0) var<uniform> x: bool;", "'x' of the type bool"),
        ("alias V = vec2<f32>; struct S { y: V } @group(0) @binding(0) var<uniform> x: S;", "'x.y' of the type V"),
        ("struct I { n: u32 } struct S { i: I } @group(0) @binding(0) var<uniform> x: S;", "'x.i' of the type I"),
        ("struct S { y: array<vec4<f32>, 2>, n: u32 } @group(0) @binding(0) var<uniform> x: S;", "'x.y'"),
    ],
)
def test_what_cannot_be_passed(declaration: str, words: str) -> None:
    with pytest.raises(KernelError, match=re.escape(words)) as caught:
        reflect(declaration + kernel("let y = x;"))
    assert caught.value.kernel == "main"
    assert not only(declaration + kernel("")).resources  # nor need it be where it is not used


@pytest.mark.parametrize(
    "text",
    [
        "fn",
        "/* /* */",
        "struct S {",
        "@group(",
        "@compute @workgroup_size(0) fn f() {}",
        "@compute @workgroup_size(1, 1, 1, 1) fn f() {}",
        "@compute fn f() {}",
        "@compute @workgroup_size(1.5) fn f() {}",
        "@compute @workgroup_size(1/0) fn f() {}",
        "@compute @workgroup_size(1 << 70) fn f() {}",
        "@compute @workgroup_size(9999999999999999999999) fn f() {}",
        "const a = b; const b = a;" + kernel("", size="a"),
        "const a0 = 1;" + "".join(f"const a{i + 1} = a{i} * a{i} + 99;" for i in range(30)) + kernel("", size="a30"),
        kernel("", size="(" * 1000 + "1" + ")" * 1000),
        "@group(0) @binding(99999) var<storage> x: array<f32>;" + kernel("let y = x[0];"),
        "@group(-1) @binding(0) var<storage> x: array<f32>;" + kernel("let y = x[0];"),
        "struct S { @align(3) n: u32 } @group(0) @binding(0) var<uniform> x: S;" + kernel("let y = x.n;"),
        "struct S { @size(1 << 40) n: u32 } @group(0) @binding(0) var<uniform> x: S;" + kernel("let y = x.n;"),
        "struct S { } @group(0) @binding(0) var<uniform> x: S;" + kernel("let y = x;"),
    ],
)
def test_rubbish(text: str) -> None:
    with pytest.raises(KernelError):
        reflect(text)


def test_long_and_deep() -> None:
    text = "alias a0 = u32;" + "".join(f"alias a{i + 1} = a{i};" for i in range(1000))
    with pytest.raises(KernelError, match="a1000"):
        reflect(text + "@group(0) @binding(0) var<uniform> x: a1000;" + kernel("let y = x;"))
    calls = "".join(f"fn f{i}() {{ f{i + 1}(); }}" for i in range(5000)) + "fn f5000() { c[0] = 1; f0(); }"
    assert names(BUFFERS + calls + kernel("f0();")) == ["c"]
    assert only(kernel("", size=" + ".join(["1"] * 5000))).block == (5000, 1, 1)
    assert only(kernel("{" * 10000 + "}" * 10000)).resources == ()


WORDS = re.findall(
    r"\S+",
    """
@compute @workgroup_size fn main f ( ) { } [ ] < > , ; : = . var let const override struct alias for @group @binding
storage uniform read_write u32 f32 array a b c 0 1 8u << + - * / % & | ^ ~ min /* */ // -> @id
""",
)


@given(st.one_of(st.text(), st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join)))
def test_any_text(text: str) -> None:
    for attempt in (text, BUFFERS + text, BUFFERS + kernel(text), kernel("", size=text)):
        try:
            reflect(attempt)
        except KernelError:
            continue


@given(st.lists(st.sampled_from(["u32", "i32", "f32", "f16"]), min_size=1, max_size=20))
def test_scalars_do_not_overlap(types: list[str]) -> None:
    members = ", ".join(f"m{i}: {kind}" for i, kind in enumerate(types))
    text = f"struct S {{ {members} }} @group(0) @binding(0) var<uniform> s: S; {kernel('let x = s.m0;')}"
    found = only(text).resources[0]
    end = 0
    for scalar, kind in zip(found.scalars, types, strict=True):
        size = 2 if kind == "f16" else 4
        assert scalar.offset >= end
        assert scalar.offset % size == 0
        end = scalar.offset + size
    assert end <= found.nbytes
    assert found.nbytes % 16 == 0


@given(st.text(alphabet="ab/* \n", max_size=40))
def test_comments(text: str) -> None:
    """Against a reading of one character at a time."""
    kept, depth, i = "", 0, 0
    while i < len(text):
        two = text[i : i + 2]
        if two == "/*":
            kept, depth, i = kept + " " * (not depth), depth + 1, i + 2
        elif depth:
            depth, i = (depth - 1, i + 2) if two == "*/" else (depth, i + 1)
        elif two == "//":
            kept, i = kept + " ", (text + "\n").index("\n", i)
        else:
            kept, i = kept + text[i], i + 1
    if depth:
        with pytest.raises(KernelError):
            tokenize(text)
    else:
        assert tokenize(text) == re.findall(r"[ab]+|[/*]", kept)
