# SPDX-License-Identifier: Apache-2.0
"""``python -m rpcflow.minrpc``: build a program for a device."""

import sys
from pathlib import Path

import click

from .boards import BOARDS, RUNTIME
from .building import BuildError, build


def _size(given: str) -> tuple[str, int]:
    name, _, value = given.partition("=")
    try:
        return name, int(value)
    except ValueError:
        raise click.BadParameter(f"{given!r} is not NAME=NUMBER") from None


@click.command(
    epilog="\b\nBoards:\n" + "\n".join(f"  {board.name:14} {board.about}" for board in BOARDS.values()),
)
@click.option("--board", type=click.Choice(list(BOARDS)), help="What to build for, see below.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--size", "sizes", multiple=True, metavar="NAME=N", help="A macro of rpcflow/config.h.")
@click.option("--option", "options", multiple=True, metavar="FLAG", help="More for the compiler and linker.")
@click.option("--compiler", metavar="NAME", help="Instead of the board's own.")
@click.option("--folder", is_flag=True, help="Say where the C runtime is, and its headers (include), and no more.")
@click.argument("kernels", nargs=-1, type=click.Path(path_type=Path))
def main(
    board: str | None,
    output: Path | None,
    sizes: tuple[str, ...],
    options: tuple[str, ...],
    compiler: str | None,
    folder: bool,
    kernels: tuple[Path, ...],
) -> None:
    """Build the C runtime for a board, with KERNELS: C sources, objects, archives of objects."""
    if folder:
        click.echo(RUNTIME)
        return
    if board is None or output is None:
        raise click.UsageError("what to build for (--board), and the file to write (-o), have to be given")
    try:
        build(board, output, kernels, options=options, sizes=dict(map(_size, sizes)), compiler=compiler)
    except BuildError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m rpcflow.minrpc")
