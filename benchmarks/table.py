# SPDX-License-Identifier: Apache-2.0
"""The rows as a table of text."""

from collections.abc import Sequence
from itertools import groupby

from benchmarks.result import Row, Series

HEADS = ("", "peer", "ours: median (min..max)", "peer: median (min..max)", "ratio", "target", "")


def number(value: float) -> str:
    """Three or four figures that count, without exponents."""
    size = abs(value)
    if size == 0 or size >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.4f}"


def samples(series: Series | None, unit: str) -> str:
    if series is None or not series.values:
        return "-"
    text = f"{number(series.median)} {unit}".rstrip()
    if len(series.values) > 1:
        text += f" ({number(min(series.values))}..{number(max(series.values))})"
    return text


def cells(row: Row) -> tuple[str, ...]:
    ratio = "-" if row.ratio is None else f"{number(row.ratio)} x"
    target = row.target.text(row.unit) if row.target else "-"
    ours, peer = samples(row.ours, row.unit), samples(row.peer, row.unit)
    return (row.name, row.peer_name or "-", ours, peer, ratio, target, row.verdict)


def render(rows: Sequence[Row]) -> str:
    """All rows under their groups, then what went wrong in full, then the tally."""
    grid = [cells(row) for row in rows]
    widths = [max(len(line[column]) for line in [HEADS, *grid]) for column in range(len(HEADS))]

    def line(parts: Sequence[str]) -> str:
        return "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()

    out = [line(HEADS)]
    for group, members in groupby(zip(rows, grid, strict=True), key=lambda pair: pair[0].group):
        out += ["", f"-- {group} " + "-" * max(0, sum(widths) + 2 * (len(widths) - 1) - len(group) - 4)]
        for row, parts in members:
            out.append(line(parts))
            out += [f"    {note}" for note in row.notes]
            if row.error:
                out.append(f"    ERROR: {row.error.strip().splitlines()[0]}")
    failed = [row for row in rows if row.error]
    for text in dict.fromkeys(row.error or "" for row in failed):
        hit = [f"{row.group}/{row.name}" for row in failed if row.error == text]
        more = f" and {len(hit) - 3} more rows" if len(hit) > 3 else ""
        out += [
            "",
            f"ERROR in {'; '.join(hit[:3])}{more}:",
            *(f"    {part}" for part in text.strip().splitlines()),
        ]
    count = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("met", "MISSED", "ERROR")}
    out += ["", f"{count['met']} met, {count['MISSED']} missed, {count['ERROR']} failed to measure"]
    return "\n".join(out)
