# SPDX-License-Identifier: Apache-2.0
"""``rpcflow ports``."""

import sys

import click


@click.command()
def ports() -> None:
    """List the serial ports of this machine, one a line: the device for serial://, what it is, its hardware id."""
    from rpcflow.transports import serial

    try:
        found = serial.ports()
    except ImportError as error:
        click.echo(f"rpcflow: {error}", err=True)
        sys.exit(1)
    if not found:
        click.echo("there are no serial ports here", err=True)
        return
    widths = [max(len(port[i]) for port in found) for i in range(2)]
    for device, description, hardware in found:
        click.echo(f"{device:{widths[0]}}  {description:{widths[1]}}  {hardware}".rstrip())
