# SPDX-License-Identifier: Apache-2.0
"""``rpcflow query``."""

import sys

import click

from rpcflow.errors import RPCError

from .serving import last_line


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The tracker: a name, an address or a URL.")
@click.option("--port", type=click.IntRange(1, 65535), help="Its port; 9190 unless given here or in the URL.")
def query(host: str, port: int | None) -> None:
    """Show which devices a tracker has, and who waits for them."""
    from rpcflow import sync

    try:
        with sync.connect_tracker(host, port) as session:
            click.echo(session.text_summary(), nl=False)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except RPCError as error:
        click.echo(f"rpcflow: {last_line(error)}", err=True)
        sys.exit(1)
