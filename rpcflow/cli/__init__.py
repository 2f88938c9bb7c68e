# SPDX-License-Identifier: Apache-2.0
"""The command ``rpcflow``: one file a subcommand.

Status 0 is success, 1 a failure, 2 a bad option or an address in use, told in one line on standard error.
"""

import sys

import click

from .demo import demo
from .server import server


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rpcflow", message="rpcflow %(version)s")
def cli() -> None:
    """Compile here, run there: TVM's RPC with structured concurrency."""


cli.add_command(server)
cli.add_command(demo)


def main() -> None:
    """Entry point of the command."""
    try:
        status = cli.main(prog_name="rpcflow", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        status = 2
    except click.ClickException as error:
        click.echo(f"rpcflow: {' '.join(error.format_message().split())}", err=True)
        status = 2
    except click.Abort:
        status = 130
    sys.exit(status if isinstance(status, int) else 0)
