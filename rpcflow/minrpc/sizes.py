# SPDX-License-Identifier: Apache-2.0
"""``python -m rpcflow.minrpc.sizes``: what the runtime and the link layer cost on a board, and if it is too much.

Flash is counted as the linker lays a firmware without kernels out: all that comes from ``runtime/src``, and from the
libraries that come with the compiler. RAM is what the objects of ``runtime/src`` hold and the state of one link. Not
counted are the board's own part, kernels, and buffers (``runtime/sizes.c`` says which these are; their sizes are
macros).
"""

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import attrs
import click

from .boards import BOARDS, Board
from .building import BuildError, build, compile_runtime, compiler_of, tool_output

_PLACED: Final = re.compile(
    r"^ \.(?:text|rodata|data|init_array)\S*\s+0x[0-9a-f]+\s+(0x[0-9a-f]+) (\S+)$", re.MULTILINE
)
"""A piece of a file in the map: its size and the file."""


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
        laid_out = Path(folder) / "map"
        build(board, Path(folder) / "firmware", options=[f"-Wl,-Map={laid_out}"])
        flash = _flash(laid_out.read_text(), board)
        only = attrs.evolve(board, sources=("src/*.c", "sizes.c"))
        *objects, sizes = compile_runtime(only, compiler, Path(folder))
        listed = tool_output(compiler, "size", [str(path) for path in objects])
        symbols = tool_output(compiler, "nm", ["--print-size", "--defined-only", str(sizes)])
    rows = re.findall(r"^\s*\d+\s+(\d+)\s+(\d+)\s", listed, re.MULTILINE)
    data, bss = (sum(column) for column in zip(*(map(int, row) for row in rows), strict=True))
    state = {name: int(size, 16) for size, name in re.findall(r"^\w+ (\w+) \w (\w+)$", symbols, re.MULTILINE)}
    buffers = state["rpcflow_size_of_buffers"]
    return Cost(flash, data + bss + state["rpcflow_size_of_link"] - buffers, buffers)


def _flash(laid_out: str, board: Board) -> int:
    """What is in flash, by the linker's map, and not the board's own: what stands in its folders and in ``hal``."""
    own = {Path(pattern).parent.name for pattern in board.sources} - {"src"}
    total = 0
    _, _, laid_out = laid_out.partition("Linker script and memory map")
    for size, file in _PLACED.findall(laid_out):
        if not any(Path(file).name.startswith(f"{folder}-") for folder in own):
            total += int(size, 16)
    return total


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
