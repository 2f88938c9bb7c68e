# SPDX-License-Identifier: Apache-2.0
"""The doctor at what is neither server nor tracker nor proxy, or a broken one: it always ends, with words."""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import pytest

from rpcflow.client.diagnosis import Patience, diagnose
from rpcflow.transports.url import address_url
from tests.server.support import descriptors, until

from . import strangers
from .examining import BRIEF, KEY, PATIENT, examine, free_port, marks
from .strangers import HOST


def test_nobody(backend: str) -> None:
    hops = examine(free_port(), None, PATIENT, backend)
    assert marks(hops) == "FAIL:connection"
    assert "READY" in hops[0].advice
    hops = examine("no.such.host.invalid:9091", None, PATIENT, backend)
    assert marks(hops) == "FAIL:name"


STRANGERS = [
    (strangers.silent, "says nothing"),
    (strangers.closing, "closes every connection"),
    (strangers.flooding, "garbage!"),
    (strangers.dripping, "\\xf2"),
    (strangers.saying(b"SSH-2.0-OpenSSH_9.2\r\n"), "an SSH server"),
    (strangers.saying(b"220 mail\x1b[2J ready\r\n"), "220 mail\\x1b[2J"),
    (strangers.saying(b"\x15\x03\x03\x00\x02\x02\x46"), "a TLS server"),
    (strangers.saying(b"\xff\xff\xff\x7f" * 100), "something"),
]


@pytest.mark.parametrize(("behaviour", "words"), STRANGERS, ids=[words for _, words in STRANGERS])
def test_strangers(behaviour: strangers.Behaviour, words: str, backend: str) -> None:
    with strangers.listening(behaviour) as port:
        hops = examine(port, KEY, BRIEF, backend)
        assert marks(hops) == "ok:connection FAIL:answer"
        assert words in hops[1].text


def test_an_http_server(backend: str) -> None:
    with strangers.http_server() as port:
        hops = examine(port, None, PATIENT, backend)
        assert marks(hops) == "ok:connection FAIL:answer"
        assert "an HTTP server" in hops[1].text
        hops = examine(f"ws://{HOST}:{port}/ws", None, PATIENT, backend)
        assert "is no websocket: it answered with HTTP status 501" in hops[0].text


def test_a_tls_server(tmp_path: Path, backend: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    with strangers.tls_server(tmp_path) as port:
        # It waits for the rest of what it takes for a record when it gets a tracker's magic: that costs one answer.
        hops = examine(port, None, Patience(30.0, 0.1, 3.0), backend)
        assert marks(hops) == "ok:connection FAIL:answer"
        assert "a TLS server" in hops[1].text


def test_a_server_that_takes_any_key() -> None:
    with strangers.listening(strangers.saying(b"\x71\xf2\x0f\x00\x00\x00\x00\x00")) as port:
        assert marks(examine(port)) == "ok:connection ok:answer"


@pytest.mark.parametrize(
    "behaviour",
    [
        strangers.flooding_tracker,
        strangers.silent_tracker,
        strangers.tracker_saying(b"[0]"),
        strangers.tracker_saying(b"{"),
        strangers.tracker_saying(b"[" * 100_000),
        strangers.tracker_saying(b'[0, {"queue_info": [], "server_info": 7}]'),
    ],
    ids=["flood", "silence", "no summary", "no JSON", "deep", "other kinds"],
)
def test_broken_trackers(behaviour: strangers.Behaviour, backend: str) -> None:
    with strangers.listening(behaviour) as port:
        hops = examine(port, KEY, Patience(0.5, 0.1, 0.5), backend)
        # What floods has said too much to be known as a tracker.
        assert marks(hops) in ("ok:connection ok:answer FAIL:summary", "ok:connection FAIL:answer")


def test_cancelled(backend: str) -> None:
    async def main(port: int) -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                connected = anyio.Event()
                url = address_url((HOST, port), 9091)
                tasks.start_soon(diagnose, url, None, lambda _: connected.set(), PATIENT)
                await connected.wait()
                scope.cancel()

    before = descriptors()
    with strangers.listening(strangers.silent) as port:
        anyio.run(main, port, backend=backend)
    until(lambda: descriptors() <= before)
