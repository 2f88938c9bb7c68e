# SPDX-License-Identifier: Apache-2.0
"""For all tests: a configuration folder of their own, and what lies under sessions."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import overlay


def pytest_collection_finish() -> None:
    """Tests that count what is left run the garbage collector, and it need not look each time at ten thousand tests and
    at what was imported for them: that takes longer than most tests."""
    import hypothesis  # noqa: F401 - which asks the collector about trio when it is imported, and must not come later

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nobody's keys but the tests' own are read or written."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RPCFLOW_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def security() -> overlay.Security:
    return overlay.security()


@pytest.fixture(scope="session")
def urls() -> overlay.Urls:
    return {}
