# SPDX-License-Identifier: Apache-2.0
"""The page of the docs that shows both machines, made from their tables.

``python -m rpcflow.session.diagram`` prints the page; ``--check FILE`` fails when FILE says anything else.
"""

import argparse
import enum
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

from . import client, server

Table = Mapping[Any, enum.Enum]
"""(state, event) -> next state."""

_HEAD: Final = """\
<!-- Made by `make diagrams` from the tables in rpcflow/session: change those, not this. -->

Whatever changes a machine's state is one row of its table; an event without a row is an error of whoever caused it,
and the state stays. Nothing here waits or does I/O: drivers do, and tell the machine what came of it.
"""


class Machine(NamedTuple):
    """What is drawn of one machine."""

    title: str
    words: str
    table: Table
    states: type[enum.Enum]


MACHINES: Final = (
    Machine(
        "The client's machine",
        "Requests may be made ahead of answers, so most of what happens leaves it in the state `open`. An Exception "
        "that answers a request fails that request and changes no state.",
        client.TABLE,
        client.State,
    ),
    Machine(
        "The server's machine",
        "It hands out one action at a time and waits in `working` until the driver has reported what came of it.",
        server.TABLE,
        server.State,
    ),
)

_BOX_WIDTH: Final = 130
_BOX_HEIGHT: Final = 34
_PITCH: Final = 92
_LEFT: Final = 290
_BULGE: Final = 80
"""Pixels by which a curve leaves the column of states, for each state that it passes."""


def _from_anywhere(machine: Machine) -> dict[enum.Enum, enum.Enum]:
    """Events that are legal in every state and lead to the same one, with that one."""
    found = {}
    for event in dict.fromkeys(event for _, event in machine.table):
        after = {machine.table.get((state, event)) for state in machine.states}
        if len(after) == 1 and (target := after.pop()) is not None:
            found[event] = target
    return found


def _rows(machine: Machine) -> list[str]:
    anywhere = _from_anywhere(machine)
    lines = ["| state | event | next state |", "|---|---|---|"]
    lines += [
        f"| {state.value} | {event.value} | {after.value} |"
        for (state, event), after in machine.table.items()
        if event not in anywhere
    ]
    return lines + [f"| *any* | {event.value} | {after.value} |" for event, after in anywhere.items()]


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def _arrow(path: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<path d="{path}" fill="none" stroke="currentColor"{dash} marker-end="url(#tip)"/>'


def _edge(start: int, end: int, words: str) -> list[str]:
    """One arrow of the column: straight to the next state, else a curve, forwards right and backwards left."""
    middle, right = _LEFT + _BOX_WIDTH / 2, _LEFT + _BOX_WIDTH
    from_y, to_y = (index * _PITCH + 20 + _BOX_HEIGHT / 2 for index in (start, end))
    half = _BOX_HEIGHT / 2
    if end == start:
        far = right + 36
        loop = f"M {right} {from_y - 8:g} C {far} {from_y - 22:g} {far} {from_y + 22:g} {right} {from_y + 8:g}"
        return [_arrow(loop), _text(right + 32, from_y + 4, words)]
    if end == start + 1:
        line = f"M {middle:g} {from_y + half:g} L {middle:g} {to_y - half:g}"
        return [_arrow(line), _text(middle + 8, (from_y + to_y) / 2 + 4, words)]
    side, sign, anchor = (right, 1, "start") if end > start else (_LEFT, -1, "end")
    bulge = side + sign * _BULGE * abs(end - start)
    from_y, to_y = from_y + 8 * sign, to_y - 8 * sign
    curve = f"M {side} {from_y:g} C {bulge} {from_y:g} {bulge} {to_y:g} {side} {to_y:g}"
    apex = side + (bulge - side) * 0.75
    return [_arrow(curve), _text(apex + 6 * sign, (from_y + to_y) / 2 + 4, words, anchor)]


def _drawing(machine: Machine) -> list[str]:
    """The states in a column, in the order in which their class names them."""
    states = list(machine.states)
    place = {state: index for index, state in enumerate(states)}
    anywhere = _from_anywhere(machine)
    edges: dict[tuple[int, int], list[str]] = {}
    for (state, event), after in machine.table.items():
        if event not in anywhere:
            edges.setdefault((place[state], place[after]), []).append(event.value)
    height = (len(states) - 1) * _PITCH + _BOX_HEIGHT + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {height}" width="100%" role="img" '
        f'aria-label="{escape(machine.title)}" font-family="sans-serif" font-size="12" fill="currentColor">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto-start-reverse"><path d="M 0 0 L 8 4 L 0 8 z" fill="currentColor"/></marker></defs>',
    ]
    for state, index in place.items():
        top = index * _PITCH + 20
        out += [
            f'<rect x="{_LEFT}" y="{top}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="8" fill="none" '
            'stroke="currentColor"/>',
            _text(_LEFT + _BOX_WIDTH / 2, top + 21, state.value, "middle"),
        ]
    for (start, end), words in edges.items():
        out += _edge(start, end, ", ".join(words))
    for target in dict.fromkeys(anywhere.values()):
        words = [event.value for event, after in anywhere.items() if after is target]
        y = place[target] * _PITCH + 20 + _BOX_HEIGHT / 2
        out += [
            _arrow(f"M 40 {y:g} L {_LEFT} {y:g}", dashed=True),
            _text(40, y - 7, f"any state: {', '.join(words)}"),
        ]
    return [*out, "</svg>"]


def page() -> str:
    """The whole page, as Markdown."""
    lines = [_HEAD]
    for machine in MACHINES:
        lines += [f"## {machine.title}", "", machine.words, "", *_drawing(machine), "", *_rows(machine), ""]
    return "\n".join(lines)


def main(args: Any = None) -> int:
    """Print the page, or check a file against it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rpcflow.session.diagram", description=main.__doc__)
    parser.add_argument("--check", metavar="FILE", type=Path, help="fail when FILE is not what would be printed")
    path: Path | None = parser.parse_args(args).check
    if path is None:
        sys.stdout.write(page())
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == page():
        return 0
    print(f"{path} is stale: run make diagrams", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
