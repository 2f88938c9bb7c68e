# SPDX-License-Identifier: Apache-2.0
"""The doctor where there is TLS, or should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from rpcflow import sync

from .examining import KEY, PATIENT, examine, marks
from .strangers import HOST

OTHER_PIN = "sha256:" + "0" * 64


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RPCFLOW_HOME", str(tmp_path))
    return tmp_path


@attrs.frozen
class Served:
    port: int
    url: str


@pytest.fixture
def secure(home: Path) -> Iterator[Served]:
    with sync.Server(HOST, 0, key=KEY, silent=True, tls=True) as server:
        yield Served(server.port, server.url)


def test_a_server(secure: Served, backend: str) -> None:
    hops = examine(secure.url, KEY, PATIENT, backend)
    assert marks(hops) == "ok:connection ok:answer ?:key"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (f"?pin={OTHER_PIN}", f"expected was {OTHER_PIN}"),
        ("", "self-signed"),
    ],
)
def test_a_server_that_is_not_who_it_should_be(secure: Served, backend: str, query: str, words: str) -> None:
    (hop,) = examine(f"tls://{HOST}:{secure.port}{query}", None, PATIENT, backend)
    assert marks([hop]) == "FAIL:trust"
    assert words in hop.text
    assert "READY" in hop.advice
    assert "pin" in hop.advice


def test_a_file_that_is_not_there(secure: Served) -> None:
    (hop,) = examine(f"tls://{HOST}:{secure.port}?ca=/nowhere.pem")
    assert marks([hop]) == "FAIL:credentials"
    assert "/nowhere.pem" in hop.text


def test_a_server_without_tls(backend: str) -> None:
    with sync.Server(HOST, 0, key=KEY, silent=True) as server:
        (hop,) = examine(f"tls://{HOST}:{server.port}?pin={OTHER_PIN}", None, PATIENT, backend)
        assert marks([hop]) == "FAIL:connection"
        assert "does not speak TLS" in hop.text
        assert "tcp://" in hop.advice


def test_a_server_that_wants_a_certificate(home: Path) -> None:
    with sync.Server(HOST, 0, key=KEY, silent=True, tls=True, require_client=True) as server:
        hops = examine(server.url)
        assert marks(hops) == "ok:connection ok:answer"
        assert "who may come in" in hops[-1].text


def test_a_server_behind_a_proxy(backend: str) -> None:
    with sync.Proxy(HOST, 0) as proxy:
        hops = examine(f"tls://{HOST}:{proxy.port}?proxy=plain&pin={OTHER_PIN}", None, PATIENT, backend)
    assert marks(hops) == "?:proxy ok:connection ok:answer"


def test_a_tracker_that_sends_clients_to_tls(home: Path, backend: str) -> None:
    with sync.Tracker(HOST, 0) as tracker:
        options = {"tls": True, "tracker_addr": (HOST, tracker.port), "silent": True}
        with sync.Server(HOST, 0, key=KEY, **options) as server:
            del server
            hops = examine(tracker.port, KEY, PATIENT, backend)
            assert marks(hops) == "ok:connection ok:answer ok:registration ok:address"
            assert f"tls://{HOST}:" in hops[-1].text
