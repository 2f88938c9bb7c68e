# SPDX-License-Identifier: Apache-2.0
"""Ports for servers that want a number to begin their search with."""

import socket


def free_port() -> int:
    """A port nobody listens on just now. Between this and its use somebody may: give a range from it on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_range() -> tuple[int, int]:
    first = min(free_port(), 65000)
    return first, first + 200


def place(port: "int | str") -> tuple[str, int | None]:
    """Where a server is, as clients take it, by its port or whole address."""
    return (port, None) if isinstance(port, str) else ("127.0.0.1", port)
