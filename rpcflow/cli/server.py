# SPDX-License-Identifier: Apache-2.0
"""``rpcflow server``."""

import logging
import os
import sys
from typing import Any

import click

from .security_options import security_options
from .serving import log_to_stderr, serve


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at, or unix:/path.")
@click.option("--port", default=9091, show_default=True, type=click.IntRange(0, 65535), help="First port to try.")
@click.option("--port-end", default=9199, show_default=True, type=click.IntRange(1, 65536), help="Port to stop before.")
@click.option("--key", default="", help="The kind of device this is; clients must ask for it.")
@click.option("--tracker", metavar="ADDRESS", help="Register with this tracker: HOST:PORT or a URL.")
@click.option("--proxy", metavar="ADDRESS", help="Do not listen; wait for clients at this proxy: HOST:PORT or a URL.")
@click.option("--custom-addr", metavar="HOST", help="What the tracker tells clients instead of the address it sees.")
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
@security_options
@click.option("--pair", is_flag=True, help="Let new clients pair, by a one-time code; serve only paired ones.")
@click.option("--sandbox", is_flag=True, help="Run sessions in a sandbox (bubblewrap): no network, nothing to write.")
@click.option(
    "--sandbox-grant", multiple=True, metavar="net|PATH", help="What the sandbox lets through; may be repeated."
)
def server(
    host: str,
    port: int,
    port_end: int,
    key: str,
    tracker: str | None,
    proxy: str | None,
    custom_addr: str | None,
    load_library: str | None,
    imports: tuple[str, ...],
    timeout: float | None,
    no_fork: bool,
    max_sessions: int,
    allow_path: tuple[str, ...],
    silent: bool,
    insecure: bool,
    sandbox: bool,
    sandbox_grant: tuple[str, ...],
    **security: Any,
) -> None:
    """Offer sessions to clients."""
    from rpcflow.server.supervisor import Server
    from rpcflow.transports.url import DEFAULT_PORT, address_url

    log_to_stderr(silent)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # modules are found from the current folder too
    if proxy is not None and tracker is not None:
        raise click.UsageError("--tracker is for a server that listens: at a proxy, the proxy registers it")
    if custom_addr is not None and tracker is None:
        raise click.UsageError("--custom-addr is what a tracker tells clients: it needs --tracker")
    try:
        made = Server(
            host if proxy is None else str(address_url(proxy, DEFAULT_PORT)),
            port,
            port_end,
            is_proxy=proxy is not None,
            tracker_addr=tracker,
            key=key,
            load_library=load_library,
            custom_addr=custom_addr,
            silent=silent,
            no_fork=no_fork,
            timeout=timeout,
            max_sessions=max_sessions,
            imports=imports,
            allow_path=allow_path,
            insecure=insecure,
            sandbox=sandbox,
            sandbox_grant=sandbox_grant,
            **security,
        )
    except (ImportError, OSError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    if insecure and not host.startswith("unix:") and made.url.scheme != "tls":
        logging.getLogger("rpcflow.server").warning(
            "--insecure: whoever reaches %s can run code here, and the line is not encrypted", made.host
        )
    serve(made, lambda: made.url)
