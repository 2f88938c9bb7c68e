# SPDX-License-Identifier: Apache-2.0
"""Devices and kernels under a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rpcflow import sync
from rpcflow.errors import PermissionDeniedError

from .rigs import Rig, prepared

FIXED = b"__kernel void nothing(int n) {}"


@pytest.fixture
def rig() -> Rig:
    return prepared("opencl")


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a session at a server with a policy for everybody."""
    opened: list[Any] = []

    def start(**rules: Any) -> Any:
        lines = [
            f"{name} = {str(value).lower() if isinstance(value, bool) else value}" for name, value in rules.items()
        ]
        path = tmp_path / "policy.toml"
        path.write_text("\n".join(["[policy.all]", *lines, "[anonymous]", 'policy = "all"', ""]))
        server = sync.Server("127.0.0.1", 0, silent=True, policy=path)
        opened.append(server)
        opened.append(sync.connect("127.0.0.1", server.port))
        return opened[-1]

    yield start
    for thing in reversed(opened):
        thing.close() if hasattr(thing, "close") else thing.terminate()


def test_a_device_that_is_not_granted(rig: Rig, begin: Callable[..., Any]) -> None:
    session = begin(devices=["cpu:*"])
    assert session.cl().exist is False
    with pytest.raises(PermissionDeniedError, match="opencl:0"):
        session.cl().empty(3)
    with pytest.raises(PermissionDeniedError, match="opencl:0"):
        rig.load(session, "vadd")


def test_loading_is_not_granted(rig: Rig, begin: Callable[..., Any]) -> None:
    session = begin(load="false")
    assert session.cl().tensor(np.ones(3)).numpy().sum() == 3
    with pytest.raises(PermissionDeniedError, match="load modules"):
        rig.load(session, "vadd")


def test_what_is_granted(rig: Rig, begin: Callable[..., Any]) -> None:
    session = begin(devices=["opencl:0"])
    vadd = rig.load(session, "vadd")["vadd"]
    x = session.cl().tensor(np.ones(64, "float32"))
    vadd(x, x, x, 64, grid=1, block=64)
    assert x.numpy().sum() == 128
    with pytest.raises(PermissionDeniedError, match="cpu:0"):
        x.copyto(session.cpu())


def test_a_launch_without_tensors(rig: Rig, begin: Callable[..., Any]) -> None:
    session = begin(devices=["opencl:0"])
    session.upload(FIXED, "fixed.cl")
    session.load_module("fixed.cl")["nothing"](1, grid=1, block=1)
    session.cl().sync()
    with pytest.raises(PermissionDeniedError, match="opencl:0"):
        begin(devices=["opencl:1"]).cl().sync()
