# SPDX-License-Identifier: Apache-2.0
"""A session with this process itself, for ``async with``."""

from collections.abc import Sequence
from typing import Any

import anyio

from rpcflow.protocol.values import Part, TensorView
from rpcflow.server.local import LocalChannel
from rpcflow.session.client import ClientMachine

from .connection import Connection
from .session import SessionContext, initialize


class _ThreadedLocalChannel:
    """A local channel whose functions run in a worker thread: they may block."""

    def __init__(self) -> None:
        self._channel = LocalChannel()

    async def send(self, parts: Sequence[Part]) -> None:
        with anyio.CancelScope(shield=True):  # a function cannot be stopped half-way, and is not left behind
            await anyio.to_thread.run_sync(self._channel.send, parts)

    async def receive_into(self, buffer: memoryview) -> int:
        return self._channel.receive_into(buffer)

    def share(self, view: TensorView) -> Any:
        return self._channel.share(view)

    def close(self) -> None:
        self._channel.close()


class LocalSession(SessionContext):
    """A session on this process: its functions, its devices, a temporary folder of its own. Blocking functions run in
    a worker thread."""

    def __init__(self) -> None:
        super().__init__(_open)


async def _open() -> Connection:
    channel = _ThreadedLocalChannel()
    core = Connection(channel, ClientMachine(), "this process", share=channel.share)
    try:
        await initialize(core, None)
    except BaseException:
        core._channel.close()
        raise
    return core
