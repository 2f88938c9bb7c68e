# SPDX-License-Identifier: Apache-2.0
"""TVM MetaSchedule's `RPCRunner`, as it comes, measures on a device that a tracker gives it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from .conftest import need_tvm
from .fleet import Chain, Fleet

pytestmark = pytest.mark.interop
SIZE = 64
MODULES = ("tvm.s_tir.meta_schedule", "tvm.meta_schedule")
"""Where it is: from release 0.24 or so, and before."""


def meta_schedule() -> Any:
    need_tvm()
    missing = []
    for name in MODULES:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            missing.append(str(error))
    pytest.skip(f"MetaSchedule is NOT TESTED: {'; '.join(missing)}")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    need_tvm()
    running = Fleet()
    yield running
    running.close()


@pytest.mark.xdist_group("metaschedule")
@pytest.mark.parametrize(
    ("tracker", "server"),
    [pytest.param(*kinds, id="-".join(kinds)) for kinds in itertools.product(["stock", "rpcflow"], repeat=2)],
)
def test_measuring(fleet: Fleet, kernels: Path, tmp_path: Path, tracker: str, server: str) -> None:
    ms = meta_schedule()
    from tvm.runtime import ShapeTuple

    def needs_tvm() -> None:
        import tvm  # noqa: F401  (the runner fills its tensors with a function of TVM's)

    place = fleet.place(Chain(server, tracker), needs_tvm)
    (tmp_path / "broken.so").write_bytes(b"no library")
    right, wrong = ([ms.arg_info.TensorInfo(dtype, ShapeTuple([SIZE]))] * 2 for dtype in ("float32", "int32"))
    runner = ms.runner.RPCRunner(
        ms.runner.RPCConfig("127.0.0.1", place.tracker, place.key, session_priority=2, session_timeout_sec=60),
        ms.runner.EvaluatorConfig(number=3, repeat=4, min_repeat_ms=1),
        max_workers=1,
    )
    add = kernels / "add.so"
    jobs = [(add, right), (tmp_path / "broken.so", right), (add, wrong), (add, right)]
    inputs = [ms.runner.RunnerInput(str(path), "cpu", arguments) for path, arguments in jobs]
    good, broken, refused, again = (future.result() for future in runner.run(inputs))
    for result in (good, again):
        assert result.error_msg is None
        assert len(result.run_secs) == 4
        assert all(float(seconds) > 0 for seconds in result.run_secs)
    assert broken.run_secs is None
    assert "broken.so" in broken.error_msg
    assert refused.run_secs is None
    assert "float32" in refused.error_msg
