# SPDX-License-Identifier: Apache-2.0
"""What the hub finds out about a socket, and how it goes on where something fails."""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

import rpcflow
from rpcflow.errors import AuthenticationError
from rpcflow.protocol.tracker import MAGIC_BYTES, encode_frame
from rpcflow.security.door import Visitor
from rpcflow.security.rights import Rights
from rpcflow.tracker.desk import Desk
from rpcflow.tracker.hub import Hub
from rpcflow.transports.admission import Admission
from tests.server.support import until

from .conftest import Host
from .support import HOST, PING, REQUEST, Raw


@pytest.fixture(params=[True, False], ids=["poll", "peek"])
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    """As on Linux, and as where there is no way to ask."""
    made = Hub(Desk("stop", time.monotonic, time.time), 5, 5, Rights(None))
    if not request.param:
        made._poller = None
    elif made._poller is None:
        pytest.skip("not here")
    yield made
    made.close()


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server((HOST, 0)) as listener, socket.create_connection(listener.getsockname()) as one:
        two, _ = listener.accept()
        one.setblocking(False)
        with two:
            yield one, two


def test_has_gone(hub: Hub, line: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = line
    assert not hub.has_gone(ours)
    theirs.sendall(b"x")
    until(lambda: ours.recv(1, socket.MSG_PEEK) == b"x")
    assert not hub.has_gone(ours)
    assert ours.recv(1) == b"x"
    theirs.close()
    until(lambda: hub.has_gone(ours))
    assert hub.has_gone(ours)


def test_has_gone_with_a_reset(hub: Hub, line: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = line
    ours.sendall(b"never read")
    until(lambda: theirs.recv(1, socket.MSG_PEEK))
    theirs.close()
    until(lambda: hub.has_gone(ours))


def test_without_poll_it_is_the_same(tracker: rpcflow.Tracker) -> None:
    assert tracker._hub is not None
    tracker._hub._poller = None
    with Raw(tracker) as client, Raw(tracker) as alive:
        gone = Raw(tracker)
        gone.register("k", "k:gone")
        gone.close()
        client.request("k")
        alive.register("k", "k:alive")
        assert client.answer()[1][2] == "k:alive"


def test_out_of_descriptors(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is in is served, and who knocks gets in once there is room."""
    with host() as tracker:
        with Raw(tracker) as inside:
            real = socket.socket.accept
            failed = 0

            def accept(self: socket.socket) -> Any:
                nonlocal failed
                if failed < 3 and self.getsockname()[1] == tracker.port:
                    failed += 1
                    raise OSError(errno.EMFILE, "Too many open files")
                return real(self)

            monkeypatch.setattr(socket.socket, "accept", accept)
            with Raw(tracker) as late:
                assert late.ask(PING) == 0
            assert failed == 3
            assert inside.ask(PING) == 0


def test_many_at_once(tracker: rpcflow.Tracker) -> None:
    """All knock before any is let in, and all get what they want."""
    lines = [Raw(tracker) for _ in range(100)]
    for number, peer in enumerate(lines):
        peer.say(REQUEST, "k", "", number % 3)
    with Raw(tracker) as server:
        until(lambda: server.queue("k") == (0, 100))
        for number in range(100):
            server.register("k", f"k:{number}", info=False)
        got = {peer.answer()[1][2] for peer in lines}
        assert got == {f"k:{number}" for number in range(100)}
    for peer in lines:
        peer.close()


def test_who_is_refused_keeps_no_place(line: tuple[socket.socket, socket.socket]) -> None:
    """It is told why for as long as a stranger may take, whatever it says, and stays a stranger."""

    class Nobody(Rights):
        def identify(self, visitor: Visitor, token: str) -> NoReturn:
            raise AuthenticationError("not known here")

    ours, theirs = line
    made = Hub(Desk("stop", time.monotonic, time.time), 5, 60, Nobody(None))
    places = Admission(8, 8, 8, 8)
    ticket = places.enter("127.0.0.2", lambda: None)
    assert ticket is not None
    made.welcome(ours, Visitor("127.0.0.2", 1, ticket=ticket))
    (peer,) = made._lines
    theirs.sendall(MAGIC_BYTES)
    until(lambda: ours.recv(1, socket.MSG_PEEK))
    peer.ready(selectors.EVENT_READ)
    due = peer.deadline
    assert 0 < due < time.monotonic() + 6
    for message in ([PING], [REQUEST, "key", "", 1]):
        theirs.sendall(encode_frame(message)[:5])
        until(lambda: ours.recv(1, socket.MSG_PEEK))
        peer.ready(selectors.EVENT_READ)
        theirs.sendall(encode_frame(message)[5:])
        until(lambda: ours.recv(1, socket.MSG_PEEK))
        peer.ready(selectors.EVENT_READ)
    assert theirs.recv(4096).count(b"not known here") == 2
    assert peer.deadline == due
    assert peer in made._timed
    assert places.strangers == 1
    made.close()
    assert len(places) == 0
