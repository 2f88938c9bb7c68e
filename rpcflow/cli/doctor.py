# SPDX-License-Identifier: Apache-2.0
"""``rpcflow doctor``."""

import sys

import anyio
import click


@click.command()
@click.argument("url", required=False)
@click.option("--key", help="The kind of device wanted there.")
def doctor(url: str | None, key: str | None) -> None:
    """Show what is wrong: on this machine, or on the way to a server, tracker or proxy.

    URL is HOST:PORT or a whole one, such as ws://HOST:PORT/ws. Without it, what this machine has is shown. No session
    is begun, no device occupied. Status 1 if something is wrong.
    """
    if url is None and key is not None:
        raise click.UsageError("--key is asked for somewhere: give a URL too")
    good = _here() if url is None else _there(url, key)
    sys.exit(0 if good else 1)


def _here() -> bool:
    from rpcflow.server.inventory import inventory

    items = list(inventory())
    width = max(len(item.name) for item in items)
    for item in items:
        mark = "?" if item.there is None else "ok" if item.there else "FAIL"
        click.echo(f"{mark:<4}  {item.name:<{width}}  {item.text}")
    return all(item.there is not False for item in items)


def _there(url: str, key: str | None) -> bool:
    from rpcflow.client.diagnosis import Hop, Mark, diagnose
    from rpcflow.protocol.handshake import check_key
    from rpcflow.transports.url import DEFAULT_PORT, address_url

    hops: list[Hop] = []

    def report(hop: Hop) -> None:
        hops.append(hop)
        click.echo(f"{hop.mark:<4}  {hop.name:<12}  {hop.text}")

    try:
        if key is not None:
            check_key(key)
        anyio.run(diagnose, address_url(url, DEFAULT_PORT), key, report, backend="trio")
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[0] is None:
            raise  # what else went wrong as it was interrupted does not matter
        raise click.Abort from group
    advice = list(dict.fromkeys(hop.advice for hop in hops if hop.advice))
    if advice:
        click.echo("\nWhat to do:")
    for line in advice:
        click.echo(f"- {line}")
    return all(hop.mark is not Mark.FAIL for hop in hops)
