# SPDX-License-Identifier: Apache-2.0
"""Both event loops; random tests say nothing about time."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("rpcflow", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rpcflow")


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder that is not there yet."""
    folder = tmp_path / "config"
    monkeypatch.setenv("RPCFLOW_HOME", str(folder))
    return folder


@pytest.fixture
def open_umask() -> Iterator[None]:
    """What is made has all the rights that it was made with."""
    before = os.umask(0)
    yield
    os.umask(before)
