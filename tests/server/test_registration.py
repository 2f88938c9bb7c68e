# SPDX-License-Identifier: Apache-2.0
"""A server and its tracker: what it offers there, whom it lets in, and what it does when the tracker goes."""

from __future__ import annotations

import socket
import struct
from typing import Any

import anyio
import pytest

import rpcflow
from rpcflow.protocol.handshake import Answer
from rpcflow.protocol.tracker import FrameReader
from rpcflow.server import registration, supervisor
from rpcflow.server.registration import Registration
from tests.tracker.scripted import Desk, Line, frame, tracker
from tests.transcripts import load

from .conftest import Run
from .functions import offer
from .support import PATIENCE, call_async

MISMATCH = struct.pack("<i", Answer.MISMATCH)


def a_server(port: int, **options: Any) -> rpcflow.Server:
    return rpcflow.Server(
        **{"port": 0, "tracker_addr": ("127.0.0.1", port), "server_init_callback": offer(), "key": "rpi", **options}
    )


async def says(server: rpcflow.Server, key: str) -> bytes:
    """The first four bytes that a server answers to a key."""
    async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        data = f"client:{key}".encode()
        await stream.send(struct.pack("<ii", 0xFF271, len(data)) + data)
        got = b""
        while len(got) < 4:
            got += await stream.receive()
        return got[:4]


async def works(server: rpcflow.Server, key: str) -> None:
    async with rpcflow.connect("127.0.0.1", server.port, key, wait_timeout=PATIENCE) as session:
        assert await call_async(session, "t.echo", 17) == 17


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for match keys all the time."""
    monkeypatch.setattr(registration, "POLL_SECONDS", 0.02)


class TestOffers:
    def test_what_is_said(self, run: Run) -> None:
        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port, key="rpi:4:b", custom_addr="board.example.org") as server:
                    assert [message[0] for message in desk.heard] == [5, 3], "who it is comes first"
                    info, put = desk.heard
                    assert info == [5, {"key": "server:rpi:4:b", "addr": ["board.example.org", server.port]}]
                    (key,) = await desk.offers()
                    assert put == [3, "rpi:4:b", [server.port, key], "board.example.org"]
                    kind, _, secret = key.rpartition(":")
                    assert kind == "rpi:4:b"
                    assert len(secret) >= 22
                    assert key.split() == [key]
                await desk.until(lambda: desk.left == 1)

        run(main)

    def test_as_stock_says_it(self, run: Run) -> None:
        """The transcript of a stock server, but for its port and the random part of its keys."""
        events = load("tracker-server-register")["events"]
        reader = FrameReader()
        stock = [m for event in events if event["dir"] == "c2s" for m in reader.feed(bytes.fromhex(event["hex"]))]

        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port, key="dev1") as server:
                    await works(server, await desk.hand_out())
                    await desk.offers()
                    ours = [message for message in desk.heard if message[0] != 7]
                    theirs = [message for message in stock if message[0] != 7][:3]
                    for message in theirs[1:]:
                        message[2][0] = server.port
                        assert message[2][1].startswith("dev1:0.")
                    theirs[0][1]["addr"][1] = server.port
                    for message, other in zip(ours[1:], theirs[1:], strict=True):
                        other[2][1] = message[2][1]
                    assert ours == theirs

        run(main)

    def test_as_many_as_there_are_turns(self, run: Run) -> None:
        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port, max_sessions=3) as server:
                    keys = await desk.offers(3)
                    assert len(set(keys)) == 3
                    key = await desk.hand_out()
                    async with rpcflow.connect("127.0.0.1", server.port, key) as session:
                        assert await call_async(session, "t.echo", 1) == 1
                        assert len(desk.put()) == 3
                    await desk.until(lambda: len(desk.put()) == 4)
                    await desk.offers(3)

        run(main)

    def test_a_new_one_after_each_session(self, run: Run) -> None:
        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port) as server:
                    seen = set()
                    for i in range(4):
                        key = await desk.hand_out()
                        assert key not in seen
                        seen.add(key)
                        assert len(desk.put()) == i + 1
                        await works(server, key)
                    await desk.offers()
                    assert [message for message in desk.heard if message[0] == 5] == [desk.heard[0]], "once a line"
                    assert len(desk.lines) == 1

        run(main)

    def test_after_a_client_that_leaves_before_its_session(self, run: Run) -> None:
        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port) as server:
                    key = await desk.hand_out()
                    async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
                        data = f"client:{key}".encode()
                        await stream.send(struct.pack("<ii", 0xFF271, len(data)) + data)
                    await works(server, await desk.hand_out())

        run(main)

    def test_nobody_comes(self, run: Run, hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """Handed out and not used: another is offered, and the first is void."""
        monkeypatch.setattr(registration, "ON_THE_WAY_SECONDS", 0.05)

        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port) as server:
                    stale = await desk.hand_out()
                    (fresh,) = await desk.offers()
                    assert fresh != stale
                    assert await says(server, stale) == MISMATCH
                    assert list(desk.pending) == [fresh]
                    assert len(desk.put()) == 2
                    await works(server, await desk.hand_out())

        run(main)

    def test_somebody_on_the_way_is_waited_for(self, run: Run, hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registration, "ON_THE_WAY_SECONDS", 1000.0)

        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port) as server:
                    asked = [message for message in desk.heard if message[0] == 7]
                    key = await desk.hand_out()
                    await desk.until(lambda: len([m for m in desk.heard if m[0] == 7]) > len(asked))
                    assert len(desk.put()) == 1
                    await works(server, key)
                    await desk.offers()

        run(main)


class TestWhoIsLetIn:
    def test_each_key_once(self, run: Run) -> None:
        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port) as server:
                    key = await desk.hand_out()
                    async with rpcflow.connect("127.0.0.1", server.port, key) as session:
                        assert await says(server, key) == MISMATCH, "no device is held twice"
                        assert await call_async(session, "t.echo", 1) == 1
                    await desk.offers()
                    assert await says(server, key) == MISMATCH

        run(main)

    def test_nobody_else(self, run: Run) -> None:
        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port) as server:
                    (key,) = await desk.offers()
                    for other in ("rpi", "rpi:", "", f"{key}x", key[:-1], f"rpi:{'0' * 32}", key.upper()):
                        assert await says(server, other) == MISMATCH
                    assert list(desk.pending) == [key]
                    await works(server, await desk.hand_out())

        run(main)

    def test_the_answer_names_the_key_and_not_the_secret(self, run: Run) -> None:
        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port) as server:
                    data = f"client:{await desk.hand_out()} -timeout=30".encode()
                    async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
                        await stream.send(struct.pack("<ii", 0xFF271, len(data)) + data)
                        got = b""
                        while len(got) < 18:
                            got += await stream.receive()
                        assert got == struct.pack("<ii", 0xFF271, 10) + b"server:rpi"

        run(main)

    def test_a_client_that_is_quicker_than_the_answer(self, run: Run) -> None:
        """Trackers hand out what was put before they have answered the put."""

        async def main() -> None:
            made: list[rpcflow.Server] = []
            done = anyio.Event()

            async def serve(line: Line) -> None:
                await line.greet()
                await line.ask()
                await line.say(0)
                put = await line.ask()
                await works(made[0], put[2][1])
                await line.say(0)
                done.set()
                await line.gone()

            async with tracker(serve) as port:
                made.append(a_server(port))
                async with made[0]:
                    await done.wait()

        run(main)


class TestWithoutItsTracker:
    def test_it_comes_back(self, run: Run) -> None:
        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port, max_sessions=2) as server:
                    before = await desk.offers(2)
                    for _ in range(3):
                        left = desk.left
                        await desk.hang_up()
                        await desk.until(lambda left=left: desk.left > left and len(desk.pending) == 2)
                    assert not set(before) & set(desk.pending)
                    await works(server, await desk.hand_out())

        run(main)

    def test_who_was_on_the_way_is_let_in(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """And what is offered to others meanwhile is taken back."""
        monkeypatch.setattr(registration, "ON_THE_WAY_SECONDS", 1000.0)

        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port) as server:
                    late = await desk.hand_out()
                    await desk.hang_up()
                    (other,) = await desk.offers()
                    async with rpcflow.connect("127.0.0.1", server.port, late) as session:
                        await desk.until(lambda: desk.left == 2)
                        assert not desk.pending
                        assert await says(server, late) == MISMATCH
                        assert await call_async(session, "t.echo", 1) == 1
                    (fresh,) = await desk.offers()
                    assert fresh not in (late, other)
                    await works(server, await desk.hand_out())

        run(main)

    def test_its_session_goes_on(self, run: Run) -> None:
        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port) as server:
                    key = await desk.hand_out()
                    async with rpcflow.connect("127.0.0.1", server.port, key) as session:
                        await desk.hang_up()
                        await desk.until(lambda: len([m for m in desk.heard if m[0] == 5]) == 2)
                        assert await call_async(session, "t.echo", 1) == 1
                        assert len(desk.put()) == 1, "nothing is free"
                    await works(server, await desk.hand_out())

        run(main)

    @pytest.mark.parametrize(
        ("code", "answer"),
        [
            (5, 1),
            (5, b"\0\0\0\0"),
            (3, -1),
            (3, "no"),
            (3, frame(0) + frame(0)),
            (7, 0),
            (7, [1]),
            (7, {"a": 1}),
            (7, b"\xff\xff\xff\x7f"),
            (7, b"\x02\0\0\0{]"),
        ],
    )
    def test_nonsense_from_it(self, run: Run, hurried: None, code: int, answer: Any) -> None:
        """That line is given up, and another tried."""

        async def main() -> None:
            desk = Desk()
            desk.answers[code] = answer
            async with tracker(desk.serve) as port, anyio.create_task_group() as tasks:

                async def mend() -> None:
                    await desk.until(lambda: desk.left >= 2)
                    del desk.answers[code]

                tasks.start_soon(mend)
                async with a_server(port) as server:
                    await desk.until(lambda: code not in desk.answers and desk.pending)
                    await works(server, await desk.hand_out())

        run(main)

    def test_it_says_something_unasked(self, run: Run) -> None:
        async def main() -> None:
            desk = Desk()
            async with tracker(desk.serve) as port:
                async with a_server(port) as server:
                    await desk.offers()
                    await desk.lines[0].say([1, 2, 3])
                    await desk.until(lambda: desk.left == 1)
                    await works(server, await desk.hand_out())

        run(main)

    def test_it_hangs(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """A tracker that takes and never answers is left for another try."""
        monkeypatch.setattr(registration, "_ANSWER_SECONDS", 0.1)

        async def main() -> None:
            desk = Desk()
            hung = 0

            async def serve(line: Line) -> None:
                nonlocal hung
                if hung < 3:
                    hung += 1
                    if hung > 1:
                        await line.greet()
                    await line.gone()
                else:
                    await desk.serve(line)

            monkeypatch.setattr(registration, "_CONNECT_SECONDS", 0.1)
            async with tracker(serve) as port:
                async with a_server(port) as server:
                    assert hung == 3
                    await works(server, await desk.hand_out())

        run(main)


class TestStart:
    def test_waits_for_its_tracker(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        async def main() -> None:
            with socket.socket() as place:
                place.bind(("127.0.0.1", 0))
                port = place.getsockname()[1]
            desk = Desk()
            entered, tried = anyio.Event(), anyio.Event()
            monkeypatch.setattr(Registration, "_let_go", lambda _: tried.set())

            async def serve() -> None:
                async with a_server(port) as server:
                    entered.set()
                    await works(server, await desk.hand_out())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve)
                await tried.wait()
                assert not entered.is_set()
                async with tracker(desk.serve, port):
                    await entered.wait()
                    await desk.until(lambda: desk.left == 1)

        run(main)

    def test_not_for_ever(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervisor, "_FOUND_SECONDS", 0.2)

        async def main() -> None:
            with pytest.raises(rpcflow.ConnectionLostError, match=r"tracker at tcp://127\.0\.0\.1:1\b.*refused"):
                async with a_server(1):
                    raise AssertionError("it is not registered")

        run(main)

    def test_cancelled_while_it_waits(self, run: Run) -> None:
        async def main() -> None:
            tried = anyio.Event()

            async def serve(line: Line) -> None:
                tried.set()
                await line.gone()

            async with tracker(serve) as port, anyio.create_task_group() as tasks:

                async def enter() -> None:
                    async with a_server(port):
                        raise AssertionError("it is not registered")

                tasks.start_soon(enter)
                await tried.wait()
                tasks.cancel_scope.cancel()

        run(main)


@pytest.mark.parametrize(
    "options",
    [
        {"tracker_addr": "carrier-pigeon://x:1"},
        {"tracker_addr": 9190},
        {"tracker_addr": ("127.0.0.1", 0)},
        {"tracker_addr": ("127.0.0.1", 9190), "host": "unix:/tmp/socket"},
        {"tracker_addr": ("127.0.0.1", 9190), "custom_addr": ""},
        {"tracker_addr": ("127.0.0.1", 9190), "custom_addr": "a b"},
        {"tracker_addr": ("127.0.0.1", 9190), "custom_addr": 7},
    ],
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        rpcflow.Server(**options)
