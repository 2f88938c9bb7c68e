# SPDX-License-Identifier: Apache-2.0
"""The command ``rpcflow``: one file a subcommand.

Status 0 is success, 1 a failure, 2 a bad option or an address in use, told in one line on standard error.
"""

import importlib
import sys
from typing import Final

import click

_COMMANDS: Final = ("server", "tracker", "proxy", "query", "doctor", "demo", "ports", "identity", "pair")


class Commands(click.Group):
    """Each command is imported when it is asked for: a tracker has no use for what the demo needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f".{cmd_name}", __name__), cmd_name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rpcflow", message="rpcflow %(version)s")
def cli() -> None:
    """Compile here, run there: TVM's RPC with structured concurrency."""


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
