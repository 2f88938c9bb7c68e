# SPDX-License-Identifier: Apache-2.0
"""``rpcflow tracker``."""

import logging
from typing import Any

import click

from .security_options import security_options
from .serving import log_to_stderr, serve


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=9190, show_default=True, type=click.IntRange(0, 65535), help="First port to try.")
@click.option("--port-end", default=9199, show_default=True, type=click.IntRange(1, 65536), help="Port to stop before.")
@click.option("--silent", is_flag=True, help="Log only what goes wrong.")
@click.option("--insecure", is_flag=True, help="Allow an address that others can reach, without encryption.")
@security_options
def tracker(host: str, port: int, port_end: int, silent: bool, insecure: bool, **security: Any) -> None:
    """Bring servers and clients together: devices by key, in order."""
    from rpcflow.tracker.service import Tracker
    from rpcflow.transports.descriptors import raise_limit

    log_to_stderr(silent)
    raise_limit()
    try:
        made = Tracker(host, port, port_end, silent=silent, insecure=insecure, **security)
    except (ImportError, OSError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    if insecure and made.url.scheme != "tls":
        logging.getLogger("rpcflow.tracker").warning(
            "--insecure: whoever reaches %s can ask for every device, and the line is not encrypted", host
        )
    serve(made, lambda: made.url, made._wait_stopped)
