# SPDX-License-Identifier: Apache-2.0
"""The channels that are shipped for tests do what they say."""

import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.values import FilePayload
from rpcflow.transports.memory import blocking_channel_pair, channel_pair
from rpcflow.transports.testing import (
    SILENCE,
    AsyncFaultyChannel,
    AsyncScriptedChannel,
    Faults,
    FaultyChannel,
    ScriptedChannel,
)


def receive(channel: Any, size: int = 100, deadline: float | None = None) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: channel.receive_into(memoryview(buffer), deadline)])


async def areceive(channel: Any, size: int = 100) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: await channel.receive_into(memoryview(buffer))])


class TestScripted:
    def test_plays_its_script_and_keeps_what_is_sent(self, tmp_path: Path) -> None:
        channel = ScriptedChannel([b"one", bytearray(b"twothree")])
        assert receive(channel) == b"one"
        channel.send([b"a", bytearray(b"b")])
        assert receive(channel, 3) == b"two"
        assert not channel.played
        assert receive(channel) == b"three"
        assert channel.played
        assert [receive(channel), receive(channel)] == [b"", b""]
        (tmp_path / "f").write_bytes(b"0123456789")
        with open(tmp_path / "f", "rb") as file:
            channel.send([b"<", FilePayload(file.fileno(), 3, 2), b">"])
        assert channel.sends == [b"ab", b"<234>"]
        assert channel.sent == b"ab<234>"

    def test_raises_the_errors_in_it_and_goes_on(self) -> None:
        channel = ScriptedChannel([ConnectionLostError("so it goes"), b"after"])
        with pytest.raises(ConnectionLostError, match="so it goes"):
            receive(channel)
        assert receive(channel) == b"after"

    def test_silence(self) -> None:
        channel = ScriptedChannel([SILENCE])
        for _ in range(2):
            with pytest.raises(TimeoutError):
                receive(channel, deadline=time.monotonic() + 1000)
        with pytest.raises(AssertionError, match="for ever"):
            receive(channel)
        assert repr(SILENCE) == "SILENCE"

    def test_closed(self) -> None:
        channel = ScriptedChannel([b"never"])
        channel.close()
        channel.close()
        assert channel.closed
        with pytest.raises(ConnectionLostError, match="closed"):
            receive(channel)
        with pytest.raises(ConnectionLostError, match="closed"):
            channel.send([b"x"])

    @pytest.mark.anyio
    async def test_async(self) -> None:
        channel = AsyncScriptedChannel([b"onetwo", ValueError("here"), SILENCE])
        await channel.send([b"a", b"b"])
        assert [await areceive(channel, 3), await areceive(channel)] == [b"one", b"two"]
        with pytest.raises(ValueError, match="here"):
            await areceive(channel)
        with anyio.move_on_after(0.01) as scope:
            await areceive(channel)
        assert scope.cancelled_caught
        assert channel.sends == [b"ab"]

    @pytest.mark.anyio
    async def test_async_end_and_close(self) -> None:
        channel = AsyncScriptedChannel([])
        assert [await areceive(channel), await areceive(channel)] == [b"", b""]
        silent = AsyncScriptedChannel([SILENCE])
        caught: list[Exception] = []

        async def wait() -> None:
            try:
                await areceive(silent)
            except ConnectionLostError as error:
                caught.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            silent.close()
        assert "closed" in str(caught[0])
        with pytest.raises(ConnectionLostError, match="closed"):
            await silent.send([b"x"])


class TestFaulty:
    """Each fault, on both; the blocking one inside scripted channels, the async one too."""

    @pytest.fixture(params=["blocking", "async"])
    def api(self, request: pytest.FixtureRequest) -> str:
        name: str = request.param
        return name

    @pytest.fixture
    def make(self, api: str) -> Any:
        def make(script: list[Any], faults: Faults) -> tuple[Any, Any]:
            inner: Any
            if api == "blocking":
                inner = ScriptedChannel(script)
                return FaultyChannel(inner, faults), inner
            inner = AsyncScriptedChannel(script)
            return AsyncFaultyChannel(inner, faults), inner

        return make

    @pytest.fixture
    def do(self, api: str) -> Any:
        if api == "blocking":
            return lambda method, *args: method(*args)

        def run(method: Any, *args: Any) -> Any:
            return anyio.run(method, *args)

        return run

    def take(self, do: Any, channel: Any, size: int = 100) -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: do(channel.receive_into, memoryview(buffer))])

    def test_none(self, make: Any, do: Any) -> None:
        channel, inner = make([b"abc"], Faults())
        do(channel.send, [b"x", b"", bytearray(b"yz")])
        assert inner.sends == [b"xyz"]
        assert self.take(do, channel) == b"abc"
        assert (channel.sent, channel.received) == (3, 3)
        assert self.take(do, channel) == b""

    def test_tiny_steps(self, make: Any, do: Any) -> None:
        channel, inner = make([b"abcde"], Faults(receive_step=2, send_step=3))
        do(channel.send, [b"12345", b"6"])
        assert inner.sends == [b"123", b"45", b"6"]
        assert [self.take(do, channel) for _ in range(4)] == [b"ab", b"cd", b"e", b""]

    def test_cut(self, make: Any, do: Any) -> None:
        channel, inner = make([b"abcde"], Faults(receive_cut_at=3, send_cut_at=4))
        with pytest.raises(ConnectionLostError, match="cut"):
            do(channel.send, [b"12", b"345", b"6"])
        assert inner.sent == b"1234"
        assert self.take(do, channel) == b"abc"
        for _ in range(2):
            with pytest.raises(ConnectionLostError, match="cut"):
                self.take(do, channel)

    def test_early_end(self, make: Any, do: Any) -> None:
        channel, inner = make([b"abcde"], Faults(receive_end_at=3))
        assert [self.take(do, channel) for _ in range(3)] == [b"abc", b"", b""]
        assert not inner.played

    def test_flips(self, make: Any, do: Any) -> None:
        channel, inner = make([b"ab", b"cd"], Faults(receive_flips={0: 1, 3: 0x20}, send_flips={1: 0x20}, send_step=2))
        assert self.take(do, channel) + self.take(do, channel) == b"`bcD"
        data = b"xyz"
        do(channel.send, [data])
        assert inner.sent == b"xYz"
        assert data == b"xyz"

    def test_spoilt_files(self, make: Any, do: Any, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"0123456789")
        channel, inner = make([], Faults(send_step=4, send_flips={5: 1}))
        with open(tmp_path / "f", "rb") as file:
            do(channel.send, [b"<", FilePayload(file.fileno(), 8, 1), b">"])
            assert inner.sent == b"<12344678>"
            with pytest.raises(ConnectionLostError, match="shorter"):
                do(channel.send, [FilePayload(file.fileno(), 20)])

    def test_faults_can_come_later(self, make: Any, do: Any) -> None:
        channel, _ = make([b"abc", b"def"], Faults())
        assert self.take(do, channel) == b"abc"
        channel.faults = Faults(receive_cut_at=channel.received)
        with pytest.raises(ConnectionLostError):
            self.take(do, channel)

    def test_close(self, make: Any, do: Any) -> None:
        channel, inner = make([b"abc"], Faults(send_step=1))
        channel.close()
        assert inner.closed
        with pytest.raises(ConnectionLostError, match="closed"):
            self.take(do, channel)
        with pytest.raises(ConnectionLostError, match="closed"):
            do(channel.send, [b"x"])


def test_gates_of_threads() -> None:
    near, far = blocking_channel_pair()
    gate = threading.Event()
    held = FaultyChannel(near, receive_gate=gate, send_gate=gate)
    far.send([b"waits"])
    for act in (lambda d: receive(held, 5, d), lambda d: held.send([b"x"], d)):
        with pytest.raises(TimeoutError):
            act(time.monotonic() + 0.01)
    gate.set()
    assert receive(held) == b"waits"
    held.send([b"goes"])
    assert receive(far) == b"goes"


@pytest.mark.anyio
async def test_gates_of_tasks() -> None:
    near, far = channel_pair()
    gate = anyio.Event()
    held = AsyncFaultyChannel(near, receive_gate=gate, send_gate=gate)
    await far.send([b"waits"])
    with anyio.move_on_after(0.01) as scope:
        await areceive(held)
    assert scope.cancelled_caught
    got: list[bytes] = []

    async def get() -> None:
        got.append(await areceive(held))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get)
        tasks.start_soon(held.send, [b"goes"])
        await anyio.wait_all_tasks_blocked()
        assert got == []
        gate.set()
    assert got == [b"waits"]
    assert await areceive(far) == b"goes"
