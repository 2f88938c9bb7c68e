# SPDX-License-Identifier: Apache-2.0
"""Who may come in, how many and how soon: by plain lines and by TLS."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from rpcflow.security.door import DoorLimits
from rpcflow.security.gatekeeping import GateError
from rpcflow.security.server_context import TlsSettings
from tests.certificates import write_pem
from tests.server.support import until

from .doors import HOST, OTHER, Opened, opened, over

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="gates are for Linux")


@pytest.fixture(params=["trio", "asyncio"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> TlsSettings | None:
    return TlsSettings(str(write_pem(tmp_path / "own.pem"))) if request.param else None


def come(door: Opened, source: str = HOST) -> socket.socket:
    return door.knock(source) if door.door._gate is None else door.enter(source)


def test_who_comes_in(backend: str, settings: TlsSettings | None) -> None:
    with opened(backend, settings) as door, come(door, OTHER) as line:
        visitor = door.served(line)
        assert (visitor.host, visitor.port, visitor.listener) == (OTHER, line.getsockname()[1], 0)
        assert visitor.encrypted is (settings is not None)
        assert visitor.private
        assert visitor.loopback
        assert (visitor.certificate, visitor.subject, visitor.refused) == (None, None, None)
        assert str(visitor) == f"{OTHER}:{visitor.port}"


def test_one_address_takes_no_places_of_others(
    backend: str, settings: TlsSettings | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpcflow.security.door._REPORT_SECONDS", 0.5)
    limits = DoorLimits(most=12, strangers=8, per_address=6, strangers_per_address=4)
    with opened(backend, settings, limits) as door, contextlib.ExitStack() as stack:
        held = [stack.enter_context(come(door, OTHER)) for _ in range(4)]
        for line in held:
            door.served(line).known()
        many = [stack.enter_context(door.knock(OTHER)) for _ in range(6)]
        assert over(many[-1])  # and not for its silence, which may last
        for _ in range(4):
            door.served(stack.enter_context(come(door))).known()
        for line in held:  # they are known, and stay
            door.served(line)
        until(lambda: "of 127.0.0.2: too many from there" in caplog.text, "a line in the log")
        assert len([record for record in caplog.records if "turned away" in record.getMessage()]) == 1


def test_strangers_give_way_and_the_known_stay(backend: str, settings: TlsSettings | None) -> None:
    limits = DoorLimits(most=10, strangers=4, per_address=10, strangers_per_address=4)
    with opened(backend, settings, limits) as door, contextlib.ExitStack() as stack:
        known = stack.enter_context(come(door, OTHER))
        door.served(known).known()
        many = [stack.enter_context(door.knock(OTHER)) for _ in range(4)]
        other = stack.enter_context(come(door))
        door.served(other).known()
        assert over(many[0])
        door.served(known)
        door.served(other)


def test_places_are_given_back(backend: str, settings: TlsSettings | None) -> None:
    limits = DoorLimits(most=2, strangers=2, per_address=2, strangers_per_address=2)
    with opened(backend, settings, limits) as door:
        for _ in range(6):
            with come(door) as line:
                visitor = door.served(line)
                visitor.known()
                sock = next(sock for sock, one in door.lines if one is visitor)
            assert sock.recv(1) == b""
            sock.close()
            visitor.leave()


def test_tls_that_cannot_be_served(backend: str, tmp_path: Path) -> None:
    broken = tmp_path / "own.pem"
    broken.write_text("no key at all")
    with pytest.raises(GateError, match=r"own\.pem holds no key"), opened(backend, TlsSettings(str(broken))):
        pass


def test_a_gate_that_dies_is_started_again(backend: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = TlsSettings(str(write_pem(tmp_path / "own.pem")))
    caplog.set_level(logging.INFO)
    with opened(backend, settings) as door:
        with door.enter() as line, door.knock() as silent:
            door.served(line)
            first = door.gate
            os.kill(first, signal.SIGKILL)
            assert over(line)
            assert over(silent)
            assert door.lines[0][0].recv(1) == b""
        until(lambda: door.gate != first, "another gate")
        with door.enter() as line:
            door.served(line)
        assert "the gate has died" in caplog.text
        assert not os.path.exists(f"/proc/{first}")
