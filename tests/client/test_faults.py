# SPDX-License-Identifier: Apache-2.0
"""A session on a bad line: cut, ended or changed at every single byte. Each time a clean error, or none."""

from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest

import rpcflow
from rpcflow import registry, sync
from rpcflow.client.connection import Connection
from rpcflow.client.local import _ThreadedLocalChannel
from rpcflow.client.session import Session, initialize
from rpcflow.server.local import LocalChannel
from rpcflow.session.client import ClientMachine
from rpcflow.sync.connecting import initialize as initialize_blocking
from rpcflow.sync.connection import Connection as BlockingConnection
from rpcflow.transports.testing import AsyncFaultyChannel, Faults, FaultyChannel

from .lifted import Lifted


@pytest.fixture(autouse=True)
def functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if apache-tvm-ffi were missing: the registry is ours alone."""
    monkeypatch.setattr(registry, "tvm_ffi", lambda: None)
    monkeypatch.setattr(registry, "_PLAIN", {"echo": lambda x: x, "fail": lambda: 1 / 0, "adder": lambda: abs})


async def scenario(session: Any) -> None:
    """A bit of everything, with what must come of it."""
    echo = await session.get_function("echo")
    assert await echo("text") == "text"
    with pytest.raises(rpcflow.RemoteError, match="division"):
        await (await session.get_function("fail"))()
    tensor = await session.cpu().tensor(np.arange(5, dtype="int16"))
    assert (await tensor.numpy()).tolist() == [0, 1, 2, 3, 4]
    assert await (await (await session.get_function("adder"))())(-3) == 3
    await session.upload(b"contents", "f")
    assert await session.download("f") == b"contents"


@pytest.fixture(params=["sync", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[[Faults], tuple[int, int]]:
    """Plays the scenario with faults; how many bytes were sent and received."""

    def blocking(faults: Faults) -> tuple[int, int]:
        channel = FaultyChannel(LocalChannel(), faults)
        core = BlockingConnection(channel, ClientMachine(), "a bad line")
        try:
            initialize_blocking(core, None)

            async def play() -> None:
                await scenario(Lifted(sync.RPCSession(core)))

            anyio.run(play, backend="asyncio")
        finally:
            core.close()
        return channel.sent, channel.received

    async def play(faults: Faults) -> tuple[int, int]:
        channel = AsyncFaultyChannel(_ThreadedLocalChannel(), faults)
        core = Connection(channel, ClientMachine(), "a bad line")
        try:
            await initialize(core, None)
            await scenario(Session(core))
        finally:
            await core.aclose()
        return channel.sent, channel.received

    if request.param == "sync":
        return blocking
    return lambda faults: anyio.run(play, faults, backend="trio")


def test_in_tiny_pieces(run: Any) -> None:
    run(Faults(receive_step=1, send_step=1))
    run(Faults(receive_step=3, send_step=7))


def test_ended_anywhere(run: Any) -> None:
    _, received = run(Faults())
    for position in range(0, received, 3):
        with pytest.raises(rpcflow.ConnectionLostError):
            run(Faults(receive_end_at=position))


def test_cut_anywhere_in_receiving(run: Any) -> None:
    _, received = run(Faults())
    for position in range(1, received, 3):
        with pytest.raises(rpcflow.ConnectionLostError, match="cut"):
            run(Faults(receive_cut_at=position))


def test_cut_anywhere_in_sending(run: Any) -> None:
    sent, _ = run(Faults())
    for position in range(0, sent - 50, 11):
        with pytest.raises(rpcflow.RPCError):
            run(Faults(send_cut_at=position))


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_changed_anywhere(run: Any, bit: int) -> None:
    """Wrong answers may come of it, and any of our errors; nothing else, and no waiting for ever."""
    _, received = run(Faults())
    for position in range(bit % 5, received, 5):
        try:
            run(Faults(receive_flips={position: 1 << bit}))
        except (rpcflow.RPCError, AssertionError):
            pass
        except (TypeError, ValueError):
            pass  # an answer of another kind, which the scenario could not go on with
        except pytest.fail.Exception:
            pass  # an error that did not come
