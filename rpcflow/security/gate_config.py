# SPDX-License-Identifier: Apache-2.0
"""What a gate is told by its service: paths and numbers, nothing secret."""

import json
from typing import Any

import attrs

from .server_context import TlsSettings


@attrs.frozen
class GateConfig:
    """What a gate is told.

    Args:
        tls: of its listeners.
        listeners: their descriptors, and what is spoken there.
        handshake_timeout, peer_timeout: seconds.
        user_timeout: whether a peer that reads nothing for ``peer_timeout`` is given up too.
        poll: None has carriers poll adaptively before they sleep; False never.
        most, strangers, per_address, strangers_per_address: how many connections there may be.
    """

    tls: TlsSettings
    listeners: tuple[tuple[int, str], ...]
    handshake_timeout: float
    peer_timeout: float
    user_timeout: bool
    poll: bool | None
    most: int
    strangers: int
    per_address: int
    strangers_per_address: int

    def to_json(self) -> str:
        """For the gate's process."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "GateConfig":
        """That process's end of :meth:`to_json`."""
        fields: dict[str, Any] = json.loads(text)
        fields["tls"] = TlsSettings(**fields["tls"])
        fields["listeners"] = tuple((fd, alpn) for fd, alpn in fields["listeners"])
        return cls(**fields)
