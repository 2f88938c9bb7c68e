# SPDX-License-Identifier: Apache-2.0
"""``rpcflow pair``."""

import getpass
import socket
import sys

import anyio
import click

from rpcflow.errors import RPCError
from rpcflow.transports.url import Url, address_url

from .serving import last_line


@click.command()
@click.argument("address")
@click.option("--name", help="What the server shall call us; our user's and machine's name unless given.")
@click.option("--identity", default="default", show_default=True, help="The identity to pair; made if there is none.")
@click.option("--code", help="The code that the server shows; asked for unless given.")
@click.option("--replace", is_flag=True, help="Forget the key that is known for that address, if it is another.")
def pair(address: str, name: str | None, identity: str, code: str | None, replace: bool) -> None:
    """Get to know a server that shows a code, and make it know us.

    ADDRESS is HOST:PORT or tls://HOST:PORT.
    """
    url = _url(address)
    try:
        from rpcflow.security.identity import ensure_identity
        from rpcflow.security.known import KnownHosts
        from rpcflow.security.pairing import read_code
        from rpcflow.security.pairing_client import pair_with
        from rpcflow.security.pairing_desk import clean_name

        own = ensure_identity(identity)
        one_time = read_code(code if code is not None else click.prompt("Code that the server shows", err=True))
        known_hosts = KnownHosts()
        paired = anyio.run(
            lambda: pair_with(
                url, one_time, own.certificate, name or clean_name(_own_name()), known_hosts, replace=replace
            ),
            backend="trio",
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except (RPCError, OSError, ImportError) as error:
        click.echo(f"rpcflow: {last_line(error)}", err=True)
        sys.exit(1)
    click.echo(f"{url} knows us as {paired.name}")
    click.echo(f"its key, {paired.server_pin}, is in {known_hosts.path}")
    click.echo(f"connect to {url}")


def _url(address: str) -> Url:
    """Where to pair.

    Raises:
        click.UsageError: that is no such address.
    """
    try:
        url = address_url(address, 9091)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if (url.scheme, url.path) not in (("tls", ""), ("tcp", "")) or url.query or "://" in address.removeprefix("tls://"):
        raise click.UsageError(f"{address!r} is not an address to pair with: write HOST:PORT or tls://HOST:PORT")
    return Url("tls", url.host, url.port)


def _own_name() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # nobody has this number
        user = "client"
    return f"{user}-{socket.gethostname()}"
