# SPDX-License-Identifier: Apache-2.0
"""``rpcflow identity``: keys, certificates, tokens, and whom we know."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

_ALGORITHM = click.option(
    "--algorithm", type=click.Choice(["p256", "ed25519"]), default="p256", show_default=True, help="Of the key."
)
_DAYS = click.option("--days", type=click.FloatRange(0, 36500, min_open=True), help="How long it is valid.")
_HOSTS = click.option("--host", "hosts", multiple=True, metavar="HOST", help="Name or address by which it is reached.")
_FORCE = click.option("--force", is_flag=True, help="Take the place of one that is there.")


def _told(command: Callable[..., None]) -> Callable[..., None]:
    """Tells errors in one line: status 2 where what was asked for cannot be."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (FileExistsError, FileNotFoundError, ValueError) as error:
            raise click.UsageError(str(error)) from error
        except (ImportError, OSError) as error:
            click.echo(f"rpcflow: {error}", err=True)
            sys.exit(1)

    return run


@click.group()
def identity() -> None:
    """Keys and certificates; authorities; tokens."""


@identity.command()
@click.argument("name", default="default")
@click.option("--ca", is_flag=True, help="Make an authority, which issues certificates to others.")
@_ALGORITHM
@_DAYS
@_HOSTS
@_FORCE
@_told
def init(name: str, ca: bool, algorithm: str, days: float | None, hosts: tuple[str, ...], force: bool) -> None:
    """Make a key and a self-signed certificate."""
    given = {} if days is None else {"days": days}
    if ca:
        from rpcflow.security.authority import init_authority

        if hosts:
            raise ValueError("--host is for identities: an authority is not reached anywhere")
        made = init_authority(name, algorithm=algorithm, replace=force, **given)
        click.echo(f"authority {made.name}: {made.certificate} is for those who are to trust it")
        click.echo(f"valid until {made.not_after:%Y-%m-%d}")
        return
    from rpcflow.security.identity import init_identity

    own = init_identity(name, algorithm=algorithm, hosts=hosts, replace=force, **given)
    click.echo(f"identity {own.name}: {own.pin}, in {own.path}, valid until {own.not_after:%Y-%m-%d}")


@identity.command()
@click.argument("name", required=False)
@_told
def show(name: str | None) -> None:
    """Show what is there, never a key.

    With NAME, which may be a file: that identity or authority alone. Status 1 if something cannot be read.
    """
    from rpcflow.security.authority import authorities
    from rpcflow.security.folder import config_folder
    from rpcflow.security.identity import identities
    from rpcflow.security.known import KnownClients, KnownHosts

    if name is not None:
        if name in authorities():
            _authority(name)
        if name not in authorities() or name in identities():
            _identity(name)
        return
    click.echo(f"in {config_folder()}")
    clients, good = KnownClients(), True
    for kind, tell, names in (
        ("identity", _identity, identities()),
        ("authority", _authority, authorities()),
        ("client", lambda one: click.echo(f"client {one}  {clients.load(one).pin}"), clients.names()),
    ):
        for one in names:
            try:
                tell(one)
            except (OSError, ValueError) as error:
                click.echo(f"{kind} {one}  {error}")
                good = False
    for place, pin in KnownHosts().read().items():
        click.echo(f"server {place}  {pin}")
    if not good:
        sys.exit(1)


def _identity(name: str) -> None:
    from rpcflow.security.identity import load_identity

    own = load_identity(name)
    state = "expired" if own.expired() else "valid until"
    by = "itself" if own.self_signed else "".join(c if c.isprintable() else "?" for c in own.issuer)
    click.echo(f"identity {own.name}  {own.pin}  {state} {own.not_after:%Y-%m-%d}  signed by {by}")
    names = f"subject {own.subject}  hosts {' '.join(own.hosts) or '-'}"
    click.echo(f"  {''.join(c if c.isprintable() else '?' for c in names)}  serial {own.serial}")


def _authority(name: str) -> None:
    from rpcflow.security.authority import load_authority

    made = load_authority(name)
    state = "expired" if made.expired() else "valid until"
    click.echo(f"authority {made.name}  {made.pin}  {state} {made.not_after:%Y-%m-%d}  {len(made.revoked)} revoked")
    click.echo(f"  certificate {made.certificate}")


@identity.command()
@click.argument("name")
@click.option("--ca", required=True, metavar="NAME", help="The authority that signs.")
@_HOSTS
@click.option("--client", is_flag=True, help="Good for a client alone.")
@click.option("--server", is_flag=True, help="Good for a server alone.")
@_ALGORITHM
@_DAYS
@click.option("-o", "--output", metavar="FILE", help="A file to be taken elsewhere, not an identity of ours.")
@_FORCE
@_told
def issue(
    name: str,
    ca: str,
    hosts: tuple[str, ...],
    client: bool,
    server: bool,
    algorithm: str,
    days: float | None,
    output: str | None,
    force: bool,
) -> None:
    """Make an identity that an authority signs."""
    from rpcflow.security.authority import issue as sign

    if client and server:
        raise ValueError("without --client and --server it is good for both")
    if server and not hosts:
        raise ValueError("a server is known by its name: say --host NAME")
    given = {} if days is None else {"days": days}
    own = sign(
        name,
        ca,
        hosts=hosts,
        server=not client,
        client=not server,
        algorithm=algorithm,
        path=output,
        replace=force,
        **given,
    )
    click.echo(f"identity {own.subject}: {own.pin}, in {own.path}, valid until {own.not_after:%Y-%m-%d}")
    click.echo(f"serial {own.serial}, by which it can be revoked")


@identity.command()
@click.argument("what", metavar="NAME_OR_SERIAL")
@click.option("--ca", metavar="NAME", help="The authority that has issued it; without it, NAME is a paired client.")
@_told
def revoke(what: str, ca: str | None) -> None:
    """Take a certificate back: one that an authority has issued, or that of a client that has paired.

    Servers that run notice within a second, for new lines.
    """
    if ca is None:
        from rpcflow.security.known import KnownClients

        for one in KnownClients().remove(what):
            click.echo(f"client {one} is not known any more")
        return
    from rpcflow.security.authority import load_authority
    from rpcflow.security.authority import revoke as take_back

    serial = take_back(what, ca)
    click.echo(f"certificate {serial} is revoked: {load_authority(ca).crl} goes beside the server's --client-ca")


@identity.command()
@click.argument("name", default="default")
@_DAYS
@_told
def renew(name: str, days: float | None) -> None:
    """A new certificate for the same key: its pin stays.

    Servers that this identity has paired with know the old one, and have to be paired with again.
    """
    from rpcflow.security.identity import renew as again

    own = again(name) if days is None else again(name, days=days)
    click.echo(f"identity {own.name}: {own.pin}, valid until {own.not_after:%Y-%m-%d}")


@identity.command()
@click.argument("place", metavar="HOST:PORT")
@_told
def forget(place: str) -> None:
    """Forget the server that is known to be there."""
    from rpcflow.security.known import KnownHosts
    from rpcflow.transports.url import DEFAULT_PORT, address_url

    url = address_url(place, DEFAULT_PORT)
    if not KnownHosts().remove(url.host, url.port):
        raise ValueError(f"no server is known at {url.host}:{url.port}")
    click.echo(f"{url.host}:{url.port} is forgotten")


@identity.command()
@_told
def token() -> None:
    """Make a bearer token: give it to its user, and the line below it to the policy file."""
    from rpcflow.security.tokens import hash_token, new_token

    made = new_token()
    click.echo(made)
    click.echo(f'token = "{hash_token(made)}"')
