# SPDX-License-Identifier: Apache-2.0
"""What the commands that serve have in common: READY when in service, and a clean end when told to."""

import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import click

from rpcflow.errors import RPCError


def log_to_stderr(silent: bool) -> None:
    """Standard output is for READY alone."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING if silent else logging.INFO,
        format="%(asctime)s %(name)s: %(message)s",
    )


def serve(
    service: AbstractAsyncContextManager[Any],
    url: Callable[[], object],
    ended: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        service: entering it puts it in service.
        url: what READY says, asked for then.
        ended: returns when the service ends by itself, where it can.

    Raises:
        click.UsageError: it could not start.
    """
    failure = anyio.run(_serve, service, url, ended, backend="trio")
    if failure is not None:
        raise click.UsageError(last_line(failure)) from failure


def last_line(error: Exception) -> str:
    """An error in one line: of a traceback that came with it, what it ends with."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"


async def _serve(
    service: AbstractAsyncContextManager[Any],
    url: Callable[[], object],
    ended: Callable[[], Awaitable[None]] | None,
) -> Exception | None:
    """Serve until told to stop; what kept it from starting, if anything did."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:

            async def stop() -> None:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

            tasks.start_soon(stop)
            started = False
            try:
                async with service:
                    started = True
                    print(f"READY {url()}", flush=True)
                    await (ended or anyio.sleep_forever)()
            except (OSError, RPCError) as error:
                if started:
                    raise
                return error
            finally:
                tasks.cancel_scope.cancel()
    return None
