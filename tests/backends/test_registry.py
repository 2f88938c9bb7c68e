# SPDX-License-Identifier: Apache-2.0
"""Finding backends, and letting go of them."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from rpcflow.backends import BackendError, BackendTable, registry
from rpcflow.backends.cpu import CpuBackend
from rpcflow.devices import DEVICE_TYPES


class Good(CpuBackend):
    kind = "maia"
    closed = 0

    def close(self) -> None:
        type(self).closed += 1


class Bad(CpuBackend):
    kind = "trn"

    def close(self) -> None:
        raise BackendError("the driver hangs")


def failing() -> Any:
    raise OSError("a library is missing")


POINTS = {
    "maia": "Good",
    "trn": "Bad",
    "vpi": "nothing",
    "oneapi": "failing",
    "metal": "Good",  # another kind than it says
    "rocm": "DEVICE_TYPES",  # cannot be called
}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> BackendTable:
    points = [EntryPoint(name, f"{__name__}:{value}", "rpcflow.backends") for name, value in POINTS.items()]

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == "rpcflow.backends"
        return [point for point in points if name in (None, point.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    return BackendTable()


def test_found_once(table: BackendTable) -> None:
    found = table.find(DEVICE_TYPES["maia"])
    assert isinstance(found, Good)
    assert table.find(DEVICE_TYPES["maia"]) is found
    assert table.named("maia") is found
    assert isinstance(table.named("llvm"), CpuBackend)
    assert table.find(DEVICE_TYPES["webgpu"]) is None
    assert table.find(12345) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vpi", "'vpi' cannot be loaded: AttributeError"),
        ("oneapi", "'oneapi' cannot be loaded: OSError: a library is missing"),
        ("metal", "'metal' is one for 'maia'"),
        ("rocm", "'rocm' cannot be loaded: TypeError"),
        ("webgpu", "no backend 'webgpu'; it has cpu, rocm, metal, maia"),
        ("nonsense", "no backend 'nonsense'"),
        ("", "no backend ''"),
    ],
)
def test_what_cannot_be_had(table: BackendTable, name: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        table.named(name)


def test_a_broken_one_is_in_nobody_s_way(table: BackendTable) -> None:
    assert [backend.kind for backend in table.all()] == ["cpu", "maia", "trn"]
    assert sorted(table.broken) == ["metal", "oneapi", "rocm", "vpi"]


def test_all_are_closed_whatever_one_does(table: BackendTable) -> None:
    before = Good.closed
    list(table.all())
    with pytest.raises(BackendError, match="the driver hangs"):
        table.close()
    assert Good.closed == before + 1
    table.close()  # nothing is left
    assert Good.closed == before + 1
