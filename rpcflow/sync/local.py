# SPDX-License-Identifier: Apache-2.0
"""A session with this process itself."""

from rpcflow.server.local import LocalChannel
from rpcflow.session.client import ClientMachine

from .connecting import initialize
from .connection import Connection
from .session import RPCSession


class LocalSession(RPCSession):
    """An RPCSession on this process: its functions, its devices, a temporary folder of its own."""

    def __init__(self) -> None:
        channel = LocalChannel()
        super().__init__(Connection(channel, ClientMachine(), "this process", share=channel.share))
        initialize(self._core, None)
