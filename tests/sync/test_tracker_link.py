# SPDX-License-Identifier: Apache-2.0
"""The blocking end of a line to a tracker, on played lines."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rpcflow.errors import ConnectionLostError, ProtocolError, WaitTimeoutError
from rpcflow.sync import Tracker, tracker_link, tracker_session
from rpcflow.sync.tracker_link import BlockingTrackerLink
from rpcflow.tracker import questions
from rpcflow.transports import Url
from rpcflow.transports.testing import SILENCE, ScriptedChannel, Step
from tests.tracker.scripted import MAGIC, frame

GRANT = [0, ["127.0.0.1", 1, "k:1"]]
Play = Callable[..., tuple[BlockingTrackerLink, ScriptedChannel]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """A link whose tracker says these things."""

    def made(*steps: Step, deadline: float | None = None) -> tuple[BlockingTrackerLink, ScriptedChannel]:
        channel = ScriptedChannel(steps)
        channels.append(channel)

        class Transport:
            def connect_blocking(self, url: Url, **_: Any) -> ScriptedChannel:
                return channel

        monkeypatch.setattr(tracker_link, "find_meeting_transport", lambda _: Transport())
        return BlockingTrackerLink(Url("tcp", "box", 9190), deadline), channel

    channels: list[ScriptedChannel] = []
    yield made  # type: ignore[misc]
    assert all(channel.closed for channel in channels)


def test_question_and_answer(play: Play) -> None:
    link, channel = play(MAGIC[:1], MAGIC[1:], frame([1])[:3], frame([1])[3:], frame([2]))
    assert channel.sends == [MAGIC]
    assert link.call([6]) == [1]
    assert link.call([7]) == [2]
    assert channel.sends == [MAGIC, frame([6]), frame([7])], "each in one write"
    assert link.open
    link.close()
    assert not link.open


def test_a_message_that_trackers_refuse(play: Play) -> None:
    link, _ = play(MAGIC, frame(0))
    with pytest.raises(ValueError):
        link.call(["x" * (1 << 20)])
    assert link.call([1]) == 0
    link.close()


@pytest.mark.parametrize("said", [b"HTTP/1.1", MAGIC + frame(0), b"", MAGIC[:3]])
def test_no_tracker(play: Play, said: bytes) -> None:
    with pytest.raises((ProtocolError, ConnectionLostError)):
        play(*([said] if said else []))


def test_one_that_takes_too_long(play: Play) -> None:
    with pytest.raises(TimeoutError):
        play(SILENCE, deadline=time.monotonic())
    link, _ = play(MAGIC, SILENCE)
    with pytest.raises(TimeoutError):
        link.call([6], time.monotonic())
    assert link.late_answer is None
    assert not link.open


@pytest.mark.parametrize("said", [frame(0) + frame(0), frame(0) + b"x", b"\0\0\0\0", b"\1\0\0\0x"])
def test_nonsense(play: Play, said: bytes) -> None:
    link, _ = play(MAGIC, said)
    with pytest.raises(ProtocolError):
        link.call([6])


@pytest.mark.parametrize("given_up", [KeyboardInterrupt(), TimeoutError()])
def test_what_comes_just_as_nobody_wants_it_any_more(play: Play, given_up: BaseException) -> None:
    link, _ = play(MAGIC, given_up, frame(GRANT)[:5], frame(GRANT)[5:])
    with pytest.raises(type(given_up)):
        link.call([4, "k", "", 1], time.monotonic() + 60)
    assert link.late_answer == GRANT


def test_it_is_given_back(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was given to us as we turned to go is told so, and does not wait for us."""
    given: list[Any] = []
    monkeypatch.setattr(tracker_session, "_give_back", given.append)

    def connect(*_: Any) -> BlockingTrackerLink:
        return play(*steps.pop(0))[0]

    monkeypatch.setattr(tracker_session, "BlockingTrackerLink", connect)
    steps: list[list[Step]] = [[MAGIC], [MAGIC, KeyboardInterrupt(), frame(GRANT)], [MAGIC, KeyboardInterrupt()]]
    session = tracker_session.TrackerSession(("box", 9190))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            session.request("k")
    assert given == [questions.read_grant(GRANT), None]
    session.close()


def test_an_answer_on_its_way_when_the_call_is_given_up() -> None:
    """The tracker has time to notice that nobody waits any more: what it has handed out by then comes to us."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(4)
                sock.sendall(MAGIC)
                sock.recv(4096)
                while sock.recv(4096):
                    pass  # until the other end says that it goes
                sock.sendall(frame(GRANT))

        thread = threading.Thread(target=serve)
        thread.start()
        link = BlockingTrackerLink(Url("tcp", "127.0.0.1", listener.getsockname()[1]))
        with pytest.raises(TimeoutError):
            link.call([4, "k", "", 1], time.monotonic() + 0.05, 5.0)
        thread.join()
    assert link.late_answer == GRANT
    assert not link.open


def test_a_forked_child_asks_on_a_line_of_its_own(tracker: tuple[str, int]) -> None:
    session = tracker_session.TrackerSession(tracker)
    line = session._link
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert "queue_info" in session.summary()
            status = session._link is line
        finally:
            os._exit(int(status))
    assert os.waitpid(pid, 0)[1] == 0
    assert "queue_info" in session.summary()
    assert session._link is line
    session.close()


def test_waiting_for_a_tracker_that_is_gone_takes_as_long_as_said(tracker: tuple[str, int]) -> None:
    session = tracker_session.TrackerSession(tracker)
    with socket.create_server(("127.0.0.1", 0)) as free:
        session._url = Url("tcp", *free.getsockname())
    began = time.monotonic()
    with pytest.raises(WaitTimeoutError):
        session.request("k", wait_timeout=0.5)
    assert time.monotonic() - began >= 0.5
    session.close()


@pytest.fixture
def tracker() -> Iterator[tuple[str, int]]:
    with Tracker("127.0.0.1", 19380, 19399, silent=True) as running:
        yield running.host, running.port
