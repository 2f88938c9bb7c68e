# SPDX-License-Identifier: Apache-2.0
"""Which backend loads a file of kernels, and what load_module is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rpcflow import sync
from rpcflow.client.launching import launch_arguments, loading_arguments
from rpcflow.errors import RemoteError

from .rigs import prepared


@pytest.fixture(scope="module")
def session() -> Iterator[sync.RPCSession]:
    with sync.Server("127.0.0.1", 0, silent=True) as server, sync.connect("127.0.0.1", server.port) as opened:
        yield opened


def refused(session: Any, name: str, words: str, **options: Any) -> None:
    with pytest.raises(RemoteError, match=words):
        session.load_module(name, **options)


def test_the_first_that_takes_it(session: sync.RPCSession) -> None:
    rig = prepared("vulkan")
    vadd = rig.load(session, "vadd")["vadd"]
    x = session.vulkan().tensor(np.ones(64, "float32"))
    vadd(x, x, x, 64, grid=1, block=64)
    assert x.numpy().sum() == 128


def test_the_one_that_is_named(session: sync.RPCSession) -> None:
    rig = prepared("vulkan")
    name, data = rig.files["vadd"]
    session.upload(data, name)
    refused(session, name, "opencl|OpenCL|SPIR-V", backend="opencl")  # it is no OpenCL's
    session.load_module(name, backend="vulkan")


def test_names_that_are_none(session: sync.RPCSession) -> None:
    session.upload(b"x", "k.cl")
    refused(session, "k.cl", "no backend 'nonsense'", backend="nonsense")
    refused(session, "k.cl", "'cpu' does not load 'k.cl'", backend="cpu")
    session.upload(prepared("opencl").files["vadd"][1], "v.cl")
    session.load_module("v.cl", backend="cl")["vadd"]
    refused(session, "k.cl", r"'vulkan' does not load 'k.cl': it takes \.spv", backend="vulkan")


def test_suffixes(session: sync.RPCSession) -> None:
    for name in ("k.txt", "k", "cl", "k.cl.gz"):
        session.upload(b"x", name)
        refused(session, name, "known suffixes: .*so.*cl.*spv.*wgsl")
    refused(session, "missing.cl", "missing.cl")
    for name in ("UPPER.CL", ".cl", "two.dots.cl"):
        session.upload(prepared("opencl").files["vadd"][1], name)
        session.load_module(name)["vadd"]


def test_options(session: sync.RPCSession) -> None:
    prepared("opencl")
    session.upload(b"__kernel void f(__global float *x) { x[0] = WIDTH; }", "o.cl")
    refused(session, "o.cl", "WIDTH")
    f = session.load_module("o.cl", options=["-DWIDTH=7"])["f"]
    x = session.cl().empty(1)
    f(x, grid=1, block=1)
    assert x.numpy()[0] == 7
    refused(session, "o.cl", "KernelError", options=["-DWIDTH=7", "--no-such-option"])


def test_libraries_take_none_of_it(session: sync.RPCSession) -> None:
    session.upload(b"x", "lib.so")
    for options in ({"backend": "opencl"}, {"signature": {"f": "int32"}}, {"options": ["-O3"]}):
        refused(session, "lib.so", "is a library", **options)


@pytest.mark.parametrize("words", ["{", "[1]", '{"f": 3}', '{"f": [3]}', '"x"', "[" * 5000])
def test_what_strangers_may_say(session: sync.RPCSession, words: str) -> None:
    prepared("opencl")
    session.upload(b"__kernel void f(__global float *x) { x[0] = 1; }", "s.cl")
    load = session.get_function("tvm.rpc.server.load_module")
    with pytest.raises(RemoteError, match="KernelError"):
        load("s.cl", "", words, "")
    if words != "[1]":
        with pytest.raises(RemoteError, match="KernelError"):
            load("s.cl", "", "", words)
    load("s.cl", "", "", "")


_WITHOUT = """
from rpcflow import sync
with sync.LocalSession() as session:
    assert session.vulkan().exist is False
    session.upload({data!r}, "k.spv")
    try:
        session.load_module("k.spv", backend="vulkan")
    except RuntimeError as error:
        assert "vulkan" in str(error).lower(), error
    try:
        session.load_module("k.spv")
    except RuntimeError as error:
        print(error)
"""


def test_without_the_first() -> None:
    """Where there is no device of the first kind, the next that takes the suffix is asked."""
    data = prepared("vulkan").files["vadd"][1]
    environment = {**os.environ, "VK_ICD_FILENAMES": "/nowhere.json", "VK_DRIVER_FILES": "/nowhere.json"}
    run = [sys.executable, "-c", _WITHOUT.format(data=data)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "opencl" in done.stdout.lower() or "SPIR-V" in done.stdout, done.stdout + done.stderr


def test_launch_arguments() -> None:
    assert launch_arguments(5, None) == (5, 1, 1, 0, 0, 0)
    assert launch_arguments((1, 2), (3,)) == (1, 2, 1, 3, 1, 1)
    assert launch_arguments(np.int64(4), [np.int32(2), 3, 4]) == (4, 1, 1, 2, 3, 4)
    assert launch_arguments(np.array([4, 2]), np.array([8])) == (4, 2, 1, 8, 1, 1)
    for bad in ((), (1, 2, 3, 4), 0, (1, 0), -1):
        with pytest.raises(ValueError, match="extents"):
            launch_arguments(bad, 1)
    for wrong in (1.5, "16", (1, 2.0), None):
        with pytest.raises(TypeError, match="grid"):
            launch_arguments(wrong, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="grid"):
        launch_arguments(None, 64)


def test_loading_arguments() -> None:
    assert loading_arguments(None, None, ()) == []
    assert loading_arguments("cuda", None, ()) == ["cuda", "", ""]
    assert loading_arguments(None, {"f": "float32*, int32", "g": ["local"], "h": ""}, ()) == [
        "",
        '{"f": ["float32*", "int32"], "g": ["local"], "h": []}',
        "",
    ]
    assert loading_arguments(None, None, ["-O3"]) == ["", "", '["-O3"]']
    with pytest.raises(TypeError, match="for each kernel"):
        loading_arguments(None, "float32*", ())  # type: ignore[arg-type]
    for bad in ((3, None, ()), (None, {"f": [1]}, ()), (None, None, "-O3"), (None, None, [3])):
        with pytest.raises(TypeError):
            loading_arguments(*bad)  # type: ignore[arg-type]
