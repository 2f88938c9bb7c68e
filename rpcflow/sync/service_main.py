# SPDX-License-Identifier: Apache-2.0
"""A service in a process of its own, for the blocking API; the parent's side is :mod:`rpcflow.sync.process`.

What to run comes pickled in a file; it says ``{"host": ..., "port": ..., "url": ...}`` or ``{"error": ..., "kind":
...}`` over a pipe, and ends when its standard input does. Only what the wanted service needs is imported.
"""

import json
import logging
import os
import pickle
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio

from rpcflow.errors import ConnectionLostError
from rpcflow.processes import restore_environment

_Ended = Callable[[], Awaitable[None]]
_KINDS: Final = (OSError, ValueError, TypeError, ImportError)
"""Errors that the parent raises as what they are; of others it knows only that they are ours."""


def _make(kind: str, options: dict[str, Any]) -> tuple[Any, _Ended | None]:
    """The service, and what returns when it ends by itself, if it can."""
    if kind == "server":
        import attrs

        from rpcflow.server.supervisor import Server

        callback = options.pop("callback", None)
        server = Server(**options)
        server._config = attrs.evolve(server._config, callback=callback)
        return server, None
    from rpcflow.transports.descriptors import raise_limit

    raise_limit()
    if kind == "tracker":
        from rpcflow.tracker.service import Tracker

        tracker = Tracker(**options)
        return tracker, tracker._wait_stopped
    if kind == "proxy":
        from rpcflow.proxy.service import Proxy

        return Proxy(**options), None
    raise ValueError(f"{kind!r} is not a service")


async def _serve(kind: str, options: dict[str, Any], answer: int) -> None:
    said = False
    try:
        service, ended = _make(kind, options)
        async with service:
            _say(answer, {"host": service.host, "port": service.port, "url": str(service.url)})
            said = True
            async with anyio.create_task_group() as tasks:

                async def until(end: _Ended) -> None:
                    await end()
                    tasks.cancel_scope.cancel()

                tasks.start_soon(until, _parent_gone)
                if ended is not None:
                    tasks.start_soon(until, ended)
    except (*_KINDS, RuntimeError) as error:
        if said:
            raise
        known_kinds = (ConnectionLostError, *_KINDS)
        kinds = [known.__name__ for known in known_kinds if isinstance(error, known)]
        _say(answer, {"error": str(error), "kind": kinds[0] if kinds else type(error).__name__})


async def _parent_gone() -> None:
    """Until whoever started us closes the pipe, or is gone."""
    os.set_blocking(0, False)
    while True:
        await anyio.wait_readable(0)
        try:
            if not os.read(0, 4096):
                return
        except BlockingIOError:
            continue


def _say(answer: int, message: dict[str, Any]) -> None:
    os.write(answer, json.dumps(message).encode() + b"\n")
    os.close(answer)


def main() -> None:
    """``python -m rpcflow.sync.service_main TASK ANSWER``: two descriptors, of a file to read and a pipe to answer."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        task = pickle.load(file)  # written by the process that started us
    answer = int(sys.argv[2])
    os.set_inheritable(answer, False)
    level = logging.WARNING if task["silent"] else logging.INFO
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    sys.path[:] = task["sys_path"]
    restore_environment()
    anyio.run(_serve, task["kind"], task["options"], answer, backend="trio")


if __name__ == "__main__":
    main()
