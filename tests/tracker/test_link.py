# SPDX-License-Identifier: Apache-2.0
"""The connecting end of a line to a tracker, against trackers that keep to the rules and that do not."""

from __future__ import annotations

import os
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from rpcflow.errors import ConnectionLostError, ProtocolError
from rpcflow.tracker.link import TrackerLink
from rpcflow.transports.url import Url

from .scripted import MAGIC, Line, frame, tracker

pytestmark = pytest.mark.anyio
PATIENCE = 20


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
async def nothing_left() -> Any:
    before = len(os.listdir("/proc/self/fd"))
    with anyio.fail_after(PATIENCE * 2):
        yield
    with anyio.fail_after(PATIENCE):
        while len(os.listdir("/proc/self/fd")) > before:
            await anyio.sleep(0.01)


def at(port: int) -> Url:
    return Url("tcp", "127.0.0.1", port)


async def echo(line: Line) -> None:
    await line.greet()
    while True:
        await line.say(await line.ask())


class TestCall:
    async def test_question_and_answer(self) -> None:
        async with tracker(echo) as port:
            link = await TrackerLink.connect(at(port))
            for message in ([1], [3, "k", [9091, "k:1"], None], ["ключ"]):
                assert await link.call(message) == message
            assert "open" in repr(link)
            link.close()
            link.close()
            assert "closed" in repr(link)

    async def test_a_frame_leaves_in_one_write(self) -> None:
        chunks: list[bytes] = []

        async def serve(line: Line) -> None:
            await line.greet()
            message = await line.ask()
            chunks.extend(line.chunks)
            await line.say(message)

        async with tracker(serve) as port:
            link = await TrackerLink.connect(at(port))
            await link.call([1])
            assert chunks == [MAGIC, frame([1])]
            link.close()

    async def test_waits_for_the_magic(self) -> None:
        """Not a byte of a message leaves before: the stock tracker would close."""
        held = anyio.Event()

        async def serve(line: Line) -> None:
            assert await line.take(4) == MAGIC
            await line.stream.send(MAGIC[:2])
            with anyio.move_on_after(0.05) as scope:
                await line.take(1)
            assert scope.cancelled_caught
            held.set()
            await line.stream.send(MAGIC[2:])
            await line.say(await line.ask())

        async with tracker(serve) as port:
            link = await TrackerLink.connect(at(port))
            assert held.is_set()
            assert await link.call([6]) == [6]
            link.close()

    async def test_a_large_answer_in_small_pieces(self) -> None:
        large = ["x" * 1000] * 3000

        async def serve(line: Line) -> None:
            await line.greet()
            await line.ask()
            data = frame(large)
            for i in range(0, len(data), 70001):
                await line.stream.send(data[i : i + 70001])
            await line.gone()

        async with tracker(serve) as port:
            link = await TrackerLink.connect(at(port))
            assert await link.call([6]) == large
            link.close()

    async def test_tasks_are_served_in_order(self) -> None:
        async with tracker(echo) as port:
            link = await TrackerLink.connect(at(port))
            answers = []

            async def ask(i: int) -> None:
                answers.append(await link.call([i]))

            async with anyio.create_task_group() as tasks:
                for i in range(20):
                    tasks.start_soon(ask, i)
            assert sorted(answers) == [[i] for i in range(20)]
            link.close()

    async def test_a_message_that_trackers_refuse(self) -> None:
        async with tracker(echo) as port:
            link = await TrackerLink.connect(at(port))
            with pytest.raises(ValueError, match="limit"):
                await link.call([3, "x" * (1 << 20)])
            assert await link.call([1]) == [1]
            link.close()

    async def test_cancelled_in_flight_it_closes(self) -> None:
        async def serve(line: Line) -> None:
            await line.greet()
            await line.ask()
            asked.set()
            await line.gone()
            gone.set()

        asked, gone = anyio.Event(), anyio.Event()
        async with tracker(serve) as port:
            link = await TrackerLink.connect(at(port))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(link.call, [4, "k", "", 1])
                await asked.wait()
                tasks.cancel_scope.cancel()
            await gone.wait()
            assert not link.open
            with pytest.raises(ConnectionLostError):
                await link.call([1])

    async def test_cancelled_in_the_queue_it_stays(self) -> None:
        async def serve(line: Line) -> None:
            await line.greet()
            first = await line.ask()
            asked.set()
            await go.wait()
            await line.say(first)
            await line.say(await line.ask())

        asked, go = anyio.Event(), anyio.Event()
        async with tracker(serve) as port:
            link = await TrackerLink.connect(at(port))
            async with anyio.create_task_group() as outer:
                outer.start_soon(link.call, [1])
                await asked.wait()
                async with anyio.create_task_group() as inner:
                    inner.start_soon(link.call, [2])
                    await anyio.wait_all_tasks_blocked()
                    inner.cancel_scope.cancel()
                go.set()
            assert await link.call([3]) == [3]
            link.close()

    async def test_closing_wakes_who_waits(self) -> None:
        async def serve(line: Line) -> None:
            await line.greet()
            await line.ask()
            asked.set()
            await line.gone()

        asked = anyio.Event()
        async with tracker(serve) as port:
            link = await TrackerLink.connect(at(port))

            async def ask() -> None:
                with pytest.raises(ConnectionLostError):
                    await link.call([1])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                await asked.wait()
                link.close()


class TestWatch:
    async def test_notices_the_end(self) -> None:
        async def serve(line: Line) -> None:
            await line.greet()
            await line.say(await line.ask())
            await end.wait()

        end = anyio.Event()
        async with tracker(serve) as port:
            link = await TrackerLink.connect(at(port))

            async def watch() -> None:
                with pytest.raises(ConnectionLostError):
                    await link.watch()
                assert not link.open

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch)
                await anyio.wait_all_tasks_blocked()
                assert await link.call([1]) == [1]
                await anyio.wait_all_tasks_blocked()
                end.set()

    async def test_calls_come_first(self) -> None:
        async with tracker(echo) as port:
            link = await TrackerLink.connect(at(port))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(link.watch)

                async def ask(i: int) -> None:
                    for _ in range(10):
                        assert await link.call([i]) == [i]

                async with anyio.create_task_group() as askers:
                    for i in range(5):
                        askers.start_soon(ask, i)
                tasks.cancel_scope.cancel()
            assert await link.call([9]) == [9]
            link.close()

    async def test_words_that_nobody_asked_for(self) -> None:
        async def serve(line: Line) -> None:
            await line.greet()
            await connected.wait()
            await line.say(0)
            await line.gone()

        connected = anyio.Event()
        async with tracker(serve) as port:
            link = await TrackerLink.connect(at(port))
            connected.set()
            with pytest.raises(ProtocolError, match="not asked"):
                await link.watch()
            assert not link.open


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        bytes.fromhex("71f20f00"),
        MAGIC + frame(0),
    ],
    ids=["http", "a server's magic", "words unasked"],
)
async def test_not_a_tracker(said: bytes) -> None:
    async def serve(line: Line) -> None:
        await line.stream.send(said)
        await line.gone()

    async with tracker(serve) as port:
        with pytest.raises(ProtocolError):
            link = await TrackerLink.connect(at(port))
            await link.call([1])


@pytest.mark.parametrize(
    "said",
    [
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x01\0\0\x7f",
        b"\x03\0\0\0[1)",
        frame([0, {}]) + frame(0),
        frame(0) + b"\x01",
    ],
    ids=["size 0", "size -1", "2 GB", "no JSON", "two answers", "one and a bit"],
)
async def test_garbage_for_an_answer(said: bytes) -> None:
    async def serve(line: Line) -> None:
        await line.greet()
        await line.ask()
        await line.stream.send(said)
        await line.gone()

    async with tracker(serve) as port:
        link = await TrackerLink.connect(at(port))
        with pytest.raises(ProtocolError):
            await link.call([6])
        with pytest.raises(ConnectionLostError):
            await link.call([6])


@pytest.mark.parametrize("after", [0, 2, 4, 7])
async def test_the_tracker_goes(after: int) -> None:
    """Before its magic, in it, behind it, in an answer."""

    async def serve(line: Line) -> None:
        await line.take(4)
        await line.stream.send((MAGIC + frame([0, {}]))[: min(after, 4)])
        if after > 4:
            await line.ask()
            await line.stream.send(frame([0, {}])[: after - 4])

    async with tracker(serve) as port:
        with pytest.raises(ConnectionLostError):
            link = await TrackerLink.connect(at(port))
            await link.call([6])


async def test_nobody_there() -> None:
    with pytest.raises(ConnectionLostError):
        await TrackerLink.connect(at(1))
    with pytest.raises(ValueError, match="known"):
        await TrackerLink.connect(Url("carrier-pigeon", "host", 1))


async def test_a_tracker_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpcflow.tracker.link.CONNECT_SECONDS", 0.05)
    async with tracker(Line.gone) as port:
        with pytest.raises(ConnectionLostError, match="within"):
            await TrackerLink.connect(at(port))


async def test_cancelled_while_it_connects() -> None:
    async def serve(line: Line) -> None:
        await line.take(4)
        there.set()
        await line.gone()
        gone.set()

    there, gone = anyio.Event(), anyio.Event()
    async with tracker(serve) as port:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(TrackerLink.connect, at(port))
            await there.wait()
            tasks.cancel_scope.cancel()
        await gone.wait()
