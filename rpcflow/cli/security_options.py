# SPDX-License-Identifier: Apache-2.0
"""The security options that ``rpcflow server``, ``tracker`` and ``proxy`` share."""

from collections.abc import Callable
from typing import Any, Final

import click

_OPTIONS: Final = (
    click.option("--tls", is_flag=True, help="Encrypt; makes a key and certificate if there are none."),
    click.option("--identity", metavar="NAME", help="Identity to show: its name, or a file with key and certificate."),
    click.option(
        "--client-ca", metavar="FILE", help="Authorities that issue certificates to clients: a file, or a name."
    ),
    click.option("--require-client", is_flag=True, help="Serve only clients with a certificate: paired, or issued."),
    click.option(
        "--policy", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="Who may do what (TOML)."
    ),
)


def security_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds them to a command, as keywords of the same names."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
