# SPDX-License-Identifier: Apache-2.0
"""``rpcflow proxy``."""

import logging
from typing import Any

import click

from .security_options import security_options
from .serving import log_to_stderr, serve


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=9091, show_default=True, type=click.IntRange(0, 65535), help="First port to try.")
@click.option("--port-end", default=9199, show_default=True, type=click.IntRange(1, 65536), help="Port to stop before.")
@click.option(
    "--web-port", default=0, show_default=True, type=click.IntRange(0, 65535), help="Port for HTTP and /ws; 0: none."
)
@click.option("--tracker", metavar="ADDRESS", help="Tracker to offer the waiting servers to: HOST:PORT or a URL.")
@click.option("--insecure", is_flag=True, help="Allow an address that others can reach, without encryption.")
@security_options
def proxy(
    host: str, port: int, port_end: int, web_port: int, tracker: str | None, insecure: bool, **security: Any
) -> None:
    """Bring clients and servers together that cannot reach each other."""
    from rpcflow.proxy.service import Proxy
    from rpcflow.transports.descriptors import raise_limit

    log_to_stderr(silent=False)
    raise_limit()
    try:
        made = Proxy(host, port, port_end, web_port, tracker_addr=tracker or None, insecure=insecure, **security)
    except (ImportError, OSError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    if insecure and made.url.scheme != "tls":
        logging.getLogger("rpcflow.proxy").warning(
            "--insecure: whoever reaches %s can use the servers behind it, and the line is not encrypted", host
        )
    serve(made, lambda: made.url)
