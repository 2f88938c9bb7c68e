# SPDX-License-Identifier: Apache-2.0
"""``python -m rpcflow.minrpc.sizes``: what the runtime and the link layer cost on a board, and if it is too much.

Counted is all that the objects of ``runtime/src`` hold, whether the linker would leave some of it out or not, and the
state of one link. Not counted are the board's own part, the C library, kernels, and buffers (``runtime/sizes.c`` says
which these are; their sizes are macros).
"""

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import click

from .boards import BOARDS, Board
from .building import BuildError, compile_runtime, compiler_of, tool_output


@attrs.frozen
class Cost:
    """Bytes of flash, of RAM without buffers, and of buffers."""

    flash: int
    ram: int
    buffers: int


def cost_of(board: Board) -> Cost:
    """What the runtime and the link layer cost on ``board``, with the sizes of config.h.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    compiler = compiler_of(board)
    with TemporaryDirectory(prefix="rpcflow-build-") as folder:
        only = attrs.evolve(board, sources=("src/*.c", "sizes.c"))
        *objects, sizes = compile_runtime(only, compiler, Path(folder))
        listed = tool_output(compiler, "size", [str(path) for path in objects])
        symbols = tool_output(compiler, "nm", ["--print-size", "--defined-only", str(sizes)])
    rows = re.findall(r"^\s*(\d+)\s+(\d+)\s+(\d+)\s", listed, re.MULTILINE)
    text, data, bss = (sum(column) for column in zip(*(map(int, row) for row in rows), strict=True))
    state = {name: int(size, 16) for size, name in re.findall(r"^\w+ (\w+) \w (\w+)$", symbols, re.MULTILINE)}
    buffers = state["rpcflow_size_of_buffers"]
    return Cost(text + data, data + bss + state["rpcflow_size_of_link"] - buffers, buffers)


@click.command()
@click.option("--board", type=click.Choice(list(BOARDS)), default="lm3s6965evb", show_default=True)
@click.option("--flash", type=int, metavar="BYTES", help="Fail if it takes more flash.")
@click.option("--ram", type=int, metavar="BYTES", help="Fail if it takes more RAM, buffers aside.")
def main(board: str, flash: int | None, ram: int | None) -> None:
    """Print what the runtime and the link layer cost on a board."""
    try:
        cost = cost_of(BOARDS[board])
    except BuildError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    click.echo(f"{board}: {cost.flash} bytes of flash, {cost.ram} of RAM and {cost.buffers} for buffers")
    for name, used, most in (("flash", cost.flash, flash), ("RAM", cost.ram, ram)):
        if most is not None and used > most:
            click.echo(f"error: {used - most} bytes of {name} too much, the limit is {most}", err=True)
            sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m rpcflow.minrpc.sizes")
