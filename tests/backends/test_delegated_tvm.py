# SPDX-License-Identifier: Apache-2.0
"""A DeviceAPI in TVM's own runtime, through the suite of all backends; once with one that, as Hexagon's does, copies
nothing from the middle of a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rpcflow import sync
from rpcflow.errors import RemoteError

from . import rig_ext_dev
from .rigs import Rig
from .test_conformance import (  # noqa: F401  # run here once more
    test_a_thousand_rounds,
    test_attributes,
    test_copies_among,
    test_copies_in_and_out,
    test_copies_that_overlap,
    test_copies_with_offsets,
    test_long_tensors,
    test_memory_scopes,
    test_no_such_device,
    test_out_of_memory,
    test_shapes,
    test_streams,
)


@pytest.fixture(scope="module", params=[True, False], ids=["offsets", "no_offsets"])
def rig(request: pytest.FixtureRequest) -> Rig:
    made = rig_ext_dev.make_tvm(request.param)
    if made.absent:
        pytest.skip(made.absent)
    return made


def test_kernels_and_what_they_return(device: Any, session: sync.RPCSession) -> None:
    x = device.tensor(np.arange(10, dtype="float32"))
    same = session.get_function("accelerator.same")(x.view((6,), byte_offset=16))
    session.get_function("accelerator.scale")(same, 2.0)
    assert np.array_equal(x.numpy(), np.arange(10) * ([1.0] * 4 + [2.0] * 6))
    assert np.array_equal(same.numpy(), np.arange(4, 10) * 2)
    same.copyfrom(np.zeros(6, "float32"))
    assert np.array_equal(x.numpy(), [0, 1, 2, 3, 0, 0, 0, 0, 0, 0])
    assert session.system_lib().time_evaluator("accelerator.scale", device, number=3)(x, 1.0).mean > 0


def test_memory_is_freed(device: Any, session: sync.RPCSession) -> None:
    live = session.get_function("accelerator.live")
    device.sync()
    before = live()
    kept = [device.empty(100) for _ in range(5)]
    assert live() == before + 5
    del kept
    device.sync()
    assert live() == before


def test_it_knows_the_current_stream(device: Any, session: sync.RPCSession) -> None:
    current = session.get_function("accelerator.stream")
    stream = device.create_stream()
    device.set_stream(stream)
    assert current() > 0
    device.free_stream(stream)
    assert current() == 0


def test_kinds_of_memory(device: Any) -> None:
    assert device.empty(4, mem_scope="vtcm").shape == (4,)
    with pytest.raises(RemoteError, match=r"runtime\.TVMTensorAllocWithScope: .*no memory of the scope 'texture'"):
        device.empty(4, mem_scope="texture")
