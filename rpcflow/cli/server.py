# SPDX-License-Identifier: Apache-2.0
"""``rpcflow server``."""

import logging
import os
import signal
import sys

import anyio
import click

from rpcflow.errors import RPCError


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at, or unix:/path.")
@click.option("--port", default=9091, show_default=True, type=click.IntRange(0, 65535), help="First port to try.")
@click.option("--port-end", default=9199, show_default=True, type=click.IntRange(1, 65536), help="Port to stop before.")
@click.option("--key", default="", help="The kind of device this is; clients must ask for it.")
@click.option("--load-library", metavar="A:B", help="Libraries to load before modules are, from the current folder.")
@click.option("--import", "imports", metavar="MODULE", multiple=True, help="Python module that registers functions.")
@click.option("--timeout", type=float, help="Seconds a peer may stop in the middle of a handshake or packet.")
@click.option("--no-fork", is_flag=True, help="Start each session's process afresh instead of forking it.")
@click.option("--max-sessions", default=1, show_default=True, type=click.IntRange(1), help="Sessions at once.")
@click.option(
    "--allow-path", "allow_path", multiple=True, metavar="FOLDER", help="Folder that clients may read and write too."
)
@click.option("--silent", is_flag=True, help="Log only what goes wrong.")
@click.option("--insecure", is_flag=True, help="Allow an address that others can reach, without encryption.")
def server(
    host: str,
    port: int,
    port_end: int,
    key: str,
    load_library: str | None,
    imports: tuple[str, ...],
    timeout: float | None,
    no_fork: bool,
    max_sessions: int,
    allow_path: tuple[str, ...],
    silent: bool,
    insecure: bool,
) -> None:
    """Offer sessions to clients."""
    from rpcflow.server.supervisor import Server

    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING if silent else logging.INFO,
        format="%(asctime)s %(name)s: %(message)s",
    )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # modules are found from the current folder too
    try:
        made = Server(
            host,
            port,
            port_end,
            key=key,
            load_library=load_library,
            silent=silent,
            no_fork=no_fork,
            timeout=timeout,
            max_sessions=max_sessions,
            imports=imports,
            allow_path=allow_path,
            insecure=insecure,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if insecure and not host.startswith("unix:"):
        logging.getLogger("rpcflow.server").warning(
            "--insecure: whoever reaches %s can run code here, and the line is not encrypted", host
        )
    failure = anyio.run(_serve, made, backend="trio")
    if failure is not None:
        raise click.UsageError(_last_line(failure)) from failure


def _last_line(error: Exception) -> str:
    """An error in one line: of a traceback that came with it, what it ends with."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"


async def _serve(made: object) -> Exception | None:
    """Serve until told to stop; what kept the server from starting, if anything did."""
    from rpcflow.server.supervisor import Server

    assert isinstance(made, Server)
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:

            async def stop() -> None:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

            tasks.start_soon(stop)
            try:
                async with made:
                    print(f"READY {made.url}", flush=True)
                    await anyio.sleep_forever()
            except (OSError, RPCError) as error:
                tasks.cancel_scope.cancel()
                return error
    return None
