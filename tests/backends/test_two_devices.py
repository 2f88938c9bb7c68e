# SPDX-License-Identifier: Apache-2.0
"""Two devices of one kind: PoCL gives as many as it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .rigs import prepared

_PROGRAM = """
import sys
import numpy as np
import rpcflow
from rpcflow import sync

SOURCE = b'''
__kernel void twice(__global float *x, int n) { int i = get_global_id(0); if (i < n) x[i] *= 2; }
__kernel void add(__global float *x, __global float *y) { x[get_global_id(0)] += y[get_global_id(0)]; }
__kernel void nothing(int n) {}
'''

def refused(words, call, *args, **options):
    try:
        call(*args, **options)
    except rpcflow.RPCError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)

def both(session):
    first, second = session.cl(0), session.cl(1)
    assert first.exist and second.exist and not session.cl(2).exist
    data = np.arange(64, dtype="float32")
    x, y = first.tensor(data), second.tensor(data)
    session.upload(SOURCE, "k.cl")
    module = session.load_module("k.cl")
    for tensor in (y, x):
        module["twice"](tensor, 64, grid=1, block=64)
        assert np.array_equal(tensor.numpy(), data * 2)
    refused("on another device", module["add"], x, y, grid=1, block=64)
    assert np.array_equal(x.copyto(second).numpy(), data * 2)
    y.copyfrom(data)
    y.view((8,), byte_offset=32).copyto(x.view((8,), byte_offset=3 * 4))
    data2 = data * 2
    data2[3:11] = data[8:16]
    assert np.array_equal(x.numpy(), data2)
    stream = second.create_stream()
    second.set_stream(stream)
    refused("no stream", first.set_stream, stream)
    module["twice"](y, 64, grid=1, block=64)
    second.sync(stream)
    assert np.array_equal(y.numpy(), data * 2)
    timed = module.time_evaluator("twice", second, number=3)
    assert timed(y, 64, grid=1, block=64).mean > 0
    refused("runs on opencl(0)", timed, x, 64, grid=1, block=64)

def second_alone(session):
    refused("opencl:0", session.cl(0).empty, 3)
    session.upload(SOURCE, "k.cl")
    module = session.load_module("k.cl")
    y = session.cl(1).tensor(np.ones(64, "float32"))
    module["twice"](y, 64, grid=1, block=64)
    assert y.numpy().sum() == 128
    module["nothing"](1, grid=1, block=1)  # on a device that may be used
    session.cl(1).sync()

with sync.LocalSession() as session:
    both(session)
with sync.Server("127.0.0.1", 0, silent=True) as server, sync.connect("127.0.0.1", server.port) as session:
    both(session)
with sync.Server("127.0.0.1", 0, silent=True, policy=sys.argv[1]) as server:
    with sync.connect("127.0.0.1", server.port) as session:
        second_alone(session)
print("right")
"""


def test_two_devices(tmp_path: Path) -> None:
    prepared("opencl")
    policy = tmp_path / "policy.toml"
    policy.write_text('[policy.all]\ndevices = ["opencl:1"]\n[anonymous]\npolicy = "all"\n')
    environment = {**os.environ, "POCL_DEVICES": "basic basic"}
    count = "import pyopencl as c; print(sum(len(p.get_devices()) for p in c.get_platforms()))"
    found = subprocess.run([sys.executable, "-c", count], env=environment, capture_output=True, text=True, check=True)
    if int(found.stdout) < 2:
        pytest.skip("the OpenCL driver is not PoCL: NOT TESTED with two devices")
    run = [sys.executable, "-c", _PROGRAM, str(policy)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("right\n")
