# SPDX-License-Identifier: Apache-2.0
"""What OpenCL kernels may be given, and what would end the process if they were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.errors import RemoteError

from .rigs import prepared

KERNELS = b"""
typedef int number;
typedef struct { int a, b; } pair;
__kernel void plain(__global float *x, int n) { x[0] = n; }
__kernel void shared_(__global float *x, __local float *t, __local int *u) {
    __local float own[16];
    own[get_local_id(0) % 16] = 2; t[0] = 1; u[0] = 1; barrier(CLK_LOCAL_MEM_FENCE); x[0] = own[0] + t[0] + u[0];
}
__kernel void named(__global float *x, number n) { x[0] = n; }
__kernel void paired(__global float *x, pair p) { x[0] = p.a; }
__kernel void image(__global float *x, read_only image2d_t i) { x[0] = 1; }
__kernel void sampled(__global float *x, sampler_t s) { x[0] = 1; }
__kernel void bytes_(__global uchar *x) { x[0] = 7; }
__kernel void shorts(__global ushort *x) { x[0] = 0x3f80; }
__kernel void vectors(__global float4 *x) { x[0] = (float4)(1, 2, 3, 4); }
__kernel void ints(__global int *x) { x[0] = 5; }
__kernel void long_(__global float *x, long e) { x[0] = e; }
__kernel void buffers(__global float *x, __global float *e) { x[0] = e[0]; }
"""


@pytest.fixture(scope="module")
def session() -> Iterator[sync.RPCSession]:
    prepared("opencl")
    with sync.Server("127.0.0.1", 0, silent=True) as server:
        with sync.connect("127.0.0.1", server.port, session_timeout=300) as opened:
            opened.upload(KERNELS, "k.cl")
            yield opened


@pytest.fixture
def x(session: sync.RPCSession) -> Any:
    return session.cl().tensor(np.zeros(16, "float32"))


@pytest.fixture
def module(session: sync.RPCSession) -> Any:
    return session.load_module("k.cl")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("image", "takes 'i' of the type image2d_t"),
        ("sampled", "takes 's' of the type sampler_t"),
        ("paired", "argument 1 of 'paired' is, of the type pair"),
        ("named", "argument 1 of 'named' is, of the type number.*signature"),
    ],
)
def test_what_cannot_be_passed(module: Any, x: Any, name: str, words: str) -> None:
    """And is in nobody's way."""
    with pytest.raises(RemoteError, match=words):
        module[name]
    module["plain"](x, 3, grid=1, block=1)
    assert x.numpy()[0] == 3


@pytest.mark.parametrize("given", ["float32*, int64", "float32*, uint64", "float32*, float32*", "float32*, local"])
@pytest.mark.parametrize("name", ["image", "sampled"])
def test_no_signature_lets_them_through(session: sync.RPCSession, name: str, given: str) -> None:
    module = session.load_module("k.cl", signature={name: given})
    with pytest.raises(RemoteError, match="cannot be passed"):
        module[name]


def test_one_alone_is_refused_at_once(session: sync.RPCSession) -> None:
    session.upload(b"__kernel void only(image2d_t i) {}", "only.cl")
    with pytest.raises(RemoteError, match="image2d_t"):
        session.load_module("only.cl")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("buffers", "float32*, int64"),
        ("long_", "float32*, float32*"),
        ("long_", "float32*, int32"),
        ("long_", "float32*, float64"),
        ("long_", "float32*"),
        ("plain", "float32*, local"),
        ("plain", "int64, int32"),
        ("shared_", "float32*, float32*, local"),
    ],
)
def test_signatures_that_contradict_the_kernel(session: sync.RPCSession, name: str, given: str) -> None:
    module = session.load_module("k.cl", signature={name: given})
    with pytest.raises(RemoteError, match=f"the signature of '{name}'"):
        module[name]


def test_signatures_that_help(session: sync.RPCSession, x: Any) -> None:
    named = session.load_module("k.cl", signature={"named": "float32*, int32"})["named"]
    named(x, -4, grid=1, block=1)
    assert x.numpy()[0] == -4
    unsigned = session.load_module("k.cl", signature={"plain": "float32*, uint32"})["plain"]
    with pytest.raises(RemoteError, match="from 0 to"):
        unsigned(x, -1, grid=1, block=1)
    with pytest.raises(RemoteError, match=r"signature for 'plian', and 'k\.cl' has plain, shared_"):
        session.load_module("k.cl", signature={"plian": "float32*, int32"})


def test_memory_that_a_block_shares(session: sync.RPCSession, module: Any, x: Any) -> None:
    shared = module["shared_"]
    shared(x, 64, 64, grid=1, block=4)
    assert x.numpy()[0] == 4
    most = session.cl().max_shared_memory_per_block
    for first, second in ((0, 4), (-1, 4), (4, 0), (most, 4), (1 << 40, 4), (4, 1 << 62), (most // 2, most // 2)):
        with pytest.raises(RemoteError, match=r"local memory\) must be from 1 to"):
            shared(x, first, second, grid=1, block=4)
    shared(x, most - 256, 64, grid=1, block=4)
    session.cl().sync()


def test_dtypes_of_tensors(session: sync.RPCSession, module: Any, x: Any) -> None:
    device = session.cl()
    doubles = device.tensor(np.zeros(8))
    with pytest.raises(RemoteError, match=r"argument 0 \(x: float32\*\) must not be a tensor of float64"):
        module["plain"](doubles, 1, grid=1, block=1)
    module["plain"](doubles.view((16,), "float32"), 1, grid=1, block=1)
    assert doubles.view((16,), "float32").numpy()[0] == 1
    for kind, good, bad in (
        ("bytes_", ("uint8", "int8", "bool", "float32", "float64"), ()),
        ("shorts", ("uint16", "int16", "float16", "bfloat16"), ("float32", "int8")),
        ("vectors", ("float32",), ("float64", "int32", "float16")),
        ("ints", ("int32", "uint32"), ("float32", "int64")),
    ):
        for dtype in good:
            module[kind](device.empty((16,), dtype), grid=1, block=1)
        for dtype in bad:
            with pytest.raises(RemoteError, match=f"must not be a tensor of {dtype}"):
                module[kind](device.empty((16,), dtype), grid=1, block=1)
    halves = device.empty((4,), "bfloat16")
    module["shorts"](halves, grid=1, block=1)
    assert halves.numpy().astype("float32")[0] == 1
    assert halves.numpy().dtype == ml_dtypes.bfloat16


def test_names_that_look_like_others(session: sync.RPCSession, x: Any) -> None:
    source = b"""
    typedef struct { int a; } image_params_t; typedef struct { int a; } image_t; typedef float event_time;
    __kernel void f(__global float *x, __global image_params_t *p, __global image_t *i) { x[0] = p->a + i->a; }
    __kernel void g(__global float *x, event_time t) { x[0] = t; }
    __kernel void h(__global float *x, const __global float *restrict a, __constant float *b, volatile __global int *c)
    { x[0] = a[0] + b[0]; }
    """
    session.upload(source, "names.cl")
    module = session.load_module("names.cl", signature={"g": "const float32*, float32"})
    ints = session.cl().tensor(np.full(4, 3, "int32"))
    module["f"](x, ints, ints, grid=1, block=1)
    assert x.numpy()[0] == 6
    module["g"](x, 2.5, grid=1, block=1)
    assert x.numpy()[0] == 2.5
    module["h"](x, x, x, ints, grid=1, block=1)
    assert x.numpy()[0] == 5
    anything = session.load_module("names.cl", signature={"f": "void*, void *, const void*"})["f"]
    anything(session.cl().empty((4,), "int64"), ints, x, grid=1, block=1)


def test_complex_numbers(session: sync.RPCSession, module: Any) -> None:
    session.upload(b"__kernel void f(__global float2 *x) { x[0] = (float2)(1, 2); }", "complex.cl")
    values = session.cl().tensor(np.zeros(4, "complex64"))
    session.load_module("complex.cl")["f"](values, grid=1, block=1)
    assert values.numpy()[0] == 1 + 2j


def test_a_name_that_is_none(module: Any, session: sync.RPCSession) -> None:
    with pytest.raises(rpcflow.FunctionNotFoundError, match=r"k\.cl has no kernel 'plian'; it has plain, shared_"):
        module["plian"]
    with pytest.raises(rpcflow.FunctionNotFoundError, match="no kernel 'plian'"):
        module.time_evaluator("plian", session.cl())


def test_timed_on_another_device(module: Any, session: sync.RPCSession, x: Any) -> None:
    for device in (session.cpu(), session.vulkan()):
        if device.exist:
            with pytest.raises(RemoteError, match=r"runs on opencl\(0\), not on the device that is timed"):
                module.time_evaluator("plain", device)(x, 1, grid=1, block=1)


def test_options(session: sync.RPCSession) -> None:
    with pytest.raises(RemoteError, match="NUL"):
        session.load_module("k.cl", options=["\0"])
    with pytest.raises(RemoteError, match="NUL"):
        session.load_module("k.cl", options=["-DX=1\0 -DY=2"])
