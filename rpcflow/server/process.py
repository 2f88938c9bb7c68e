# SPDX-License-Identifier: Apache-2.0
"""A server in a process of its own, for the blocking API.

Its options come pickled in a file; it says ``{"port": ...}`` or ``{"error": ..., "kind": ...}`` over its standard
output, and ends when its standard input does.
"""

import json
import logging
import os
import pickle
import sys
from typing import Any

import anyio
import attrs

from .processes import restore_environment
from .supervisor import Server


async def _serve(options: dict[str, Any], callback: bytes | None) -> None:
    try:
        server = Server(**options)
        server._config = attrs.evolve(server._config, callback=callback)
        async with server:
            _say({"port": server.port, "host": server.host})
            await _wait_for_end()
    except (OSError, RuntimeError, ValueError) as error:
        _say({"error": str(error), "kind": type(error).__name__})


async def _wait_for_end() -> None:
    """Until whoever started us closes the pipe, or is gone."""
    os.set_blocking(0, False)
    while True:
        await anyio.wait_readable(0)
        try:
            if not os.read(0, 4096):
                return
        except BlockingIOError:
            continue


def _say(message: dict[str, Any]) -> None:
    os.write(3, json.dumps(message).encode() + b"\n")


def main() -> None:
    """``python -m rpcflow.server.process``: options on descriptor 4, answer on descriptor 3."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        options = pickle.load(file)  # written by the process that started us
    logging.basicConfig(level=logging.WARNING if options["silent"] else logging.INFO, format="%(name)s: %(message)s")
    sys.path[:] = options.pop("sys_path")
    restore_environment()
    answer = int(sys.argv[2])
    if answer != 3:
        os.dup2(answer, 3)
        os.close(answer)
    os.set_inheritable(3, False)
    callback = options.pop("callback")
    anyio.run(_serve, options, callback, backend="trio")


if __name__ == "__main__":
    main()
