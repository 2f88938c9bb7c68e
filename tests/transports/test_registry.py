# SPDX-License-Identifier: Apache-2.0
"""Schemes: ours, unknown ones, and those of third parties."""

from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

import rpcflow
from rpcflow import sync
from rpcflow.transports import Url, find_transport, registry, tcp, unix
from rpcflow.transports.memory import blocking_channel_pair, channel_pair
from rpcflow.transports.testing import ScriptedChannel

KNOWN = r"'gopher' is not a known scheme; known are: .*tcp, .*unix"


def test_ours() -> None:
    assert find_transport("tcp") is tcp.transport
    assert find_transport("unix") is unix.transport


def test_ours_are_declared_as_entry_points_too(request: pytest.FixtureRequest) -> None:
    import tomllib

    with open(request.config.rootpath / "pyproject.toml", "rb") as file:
        declared = tomllib.load(file)["project"]["entry-points"]["rpcflow.transports"]
    for name, value in declared.items():
        assert EntryPoint(name, value, "rpcflow.transports").load() is find_transport(name)
    assert {"tcp", "unix"} <= set(declared)


def test_unknown_lists_known() -> None:
    with pytest.raises(ValueError, match=KNOWN):
        find_transport("gopher")
    with pytest.raises(ValueError, match=KNOWN):
        rpcflow.connect("gopher://h")
    with pytest.raises(ValueError, match=KNOWN):
        sync.connect("gopher://h")


def test_memory_channels_come_in_pairs_not_by_url() -> None:
    with pytest.raises(ValueError):
        find_transport("memory")
    assert len(channel_pair()) == len(blocking_channel_pair()) == 2


class Pigeons:
    """A transport as a third party would write it."""

    def __init__(self) -> None:
        self.urls: list[Url] = []

    async def connect(self, url: Url, *, poll: bool | None = None) -> Any:
        raise NotImplementedError

    def connect_blocking(self, url: Url, *, deadline: float | None = None, poll: bool | None = None) -> Any:
        self.urls.append(url)
        return ScriptedChannel([])


pigeons = Pigeons()


def test_third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("pigeon", f"{__name__}:pigeons", "rpcflow.transports")
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([point]).select(group=group))
    assert find_transport("pigeon") is pigeons
    with pytest.raises(ValueError, match=r"known are: pigeon, popen, .*tcp, tls, unix"):
        find_transport("gopher")
    with pytest.raises(rpcflow.ConnectionLostError, match="without an answer"):
        sync.connect("pigeon://coop:7/nest?wings=2")
    assert pigeons.urls == [Url("pigeon", "coop", 7, "/nest", (("wings", "2"),))]
