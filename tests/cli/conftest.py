# SPDX-License-Identifier: Apache-2.0
"""Both event loops, and services of both kinds."""

from __future__ import annotations

import pytest

from tests.interop.conftest import need_tvm


@pytest.fixture(params=["trio", "asyncio"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["rpcflow", pytest.param("stock", marks=pytest.mark.interop)])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "stock":
        need_tvm()
    return name
