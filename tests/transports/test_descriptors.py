# SPDX-License-Identifier: Apache-2.0
"""How many connections fit."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from rpcflow.transports import descriptors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """This process's limits, soft and hard, for the test to say."""
    import resource

    said = [1024, 4096]

    def get(_: Any) -> tuple[int, int]:
        return said[0], said[1]

    def put(_: Any, both: tuple[int, int]) -> None:
        if both[0] > 10_000:
            raise ValueError("not allowed to exceed maximum limit")
        said[:] = both

    monkeypatch.setattr(resource, "getrlimit", get)
    monkeypatch.setattr(resource, "setrlimit", put)
    return said


def test_raise_limit(limits: list[int]) -> None:
    descriptors.raise_limit()
    assert limits == [4096, 4096]
    descriptors.raise_limit()
    limits[1] = 1 << 30  # more than the system really gives
    descriptors.raise_limit()
    assert limits[0] == 4096


def test_connection_limit(limits: list[int]) -> None:
    import resource

    assert descriptors.connection_limit(100_000) == 960
    assert descriptors.connection_limit(100_000, each=2) == 480
    assert descriptors.connection_limit(100_000, kept=1000) == 24
    assert descriptors.connection_limit(500) == 500
    limits[0] = 10
    assert descriptors.connection_limit(500) == 16
    limits[0] = resource.RLIM_INFINITY
    assert descriptors.connection_limit(500) == 500
