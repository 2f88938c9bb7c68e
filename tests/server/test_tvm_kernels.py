# SPDX-License-Identifier: Apache-2.0
"""The device code inside TVM's modules, taken apart: also when it is none."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.backends import KernelError
from rpcflow.protocol.dtype import DataType
from rpcflow.server.tvm_kernels import FunctionInfo, parse

names = st.text(st.characters(codec="utf-8"), max_size=8)
dtypes = st.builds(DataType, st.integers(0, 17), st.integers(1, 255), st.integers(1, 65535))
functions = st.dictionaries(
    names,
    st.builds(FunctionInfo, names, st.lists(dtypes, max_size=4).map(tuple), st.lists(names, max_size=4).map(tuple)),
)


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def written(infos: dict[str, FunctionInfo]) -> bytes:
    """As TVM does."""
    data = struct.pack("<Q", len(infos))
    for key, info in infos.items():
        data += text(key) + text(info.name) + struct.pack("<Q", len(info.dtypes))
        data += b"".join(struct.pack("<BBH", kind.code, kind.bits, kind.lanes) for kind in info.dtypes)
        data += struct.pack("<Q", len(info.tags)) + b"".join(map(text, info.tags))
        data += struct.pack("<Q", 1) + bytes(4)
    return data


@given(functions, names)
def test_opencl(infos: dict[str, FunctionInfo], source: str) -> None:
    assert parse("opencl", text("cl") + written(infos) + text(source)) == (infos, {"": source})


@given(functions, st.dictionaries(names, names))
def test_webgpu(infos: dict[str, FunctionInfo], sources: dict[str, str]) -> None:
    data = written(infos) + struct.pack("<Q", len(sources))
    data += b"".join(text(key) + text(source) for key, source in sources.items())
    assert parse("webgpu", data) == (infos, sources)


@given(st.sampled_from(["opencl", "webgpu"]), st.binary(max_size=200))
def test_anything_else(kind: str, data: bytes) -> None:
    for given_data in (data, text("cl") + data, text("cl") + struct.pack("<Q", 1) + data):
        try:
            parse(kind, given_data)
        except KernelError:
            continue


@given(functions, st.data())
def test_cut_short(infos: dict[str, FunctionInfo], data: st.DataObject) -> None:
    whole = text("cl") + written(infos) + text("source")
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(KernelError):
        parse("opencl", whole[:cut])


@pytest.mark.parametrize("form", ["clbin", "spirv", ""])
def test_no_source(form: str) -> None:
    with pytest.raises(KernelError, match="form"):
        parse("opencl", text(form) + written({}) + text("x"))
