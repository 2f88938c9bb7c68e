# SPDX-License-Identifier: Apache-2.0
"""What comes out of a measurement: series of samples, figures to reach, rows of the table."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["ratio", "value", "difference"]
Sense = Literal["<=", ">="]


@dataclass(frozen=True)
class Series:
    """Samples of one side in one unit, or the reason why there are none."""

    values: Sequence[float] = ()
    error: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def map(self, change: Callable[[float], float]) -> "Series":
        return Series(tuple(change(value) for value in self.values), self.error)


@dataclass(frozen=True)
class Target:
    """A figure to reach: of our median over the peer's, of our median alone, or of ours less the peer's."""

    sense: Sense
    limit: float
    kind: Kind = "ratio"

    def judged(self, ours: float, peer: float | None) -> float:
        if self.kind == "value":
            return ours
        if peer is None:
            raise ValueError(f"a target by {self.kind} needs a peer")
        return ours / peer if self.kind == "ratio" else ours - peer

    def met(self, ours: float, peer: float | None) -> bool:
        value = self.judged(ours, peer)
        return value <= self.limit if self.sense == "<=" else value >= self.limit

    def text(self, unit: str) -> str:
        if self.kind == "ratio":
            return f"{self.sense} {self.limit:g} x"
        return f"{self.sense} {'peer + ' if self.kind == 'difference' else ''}{self.limit:g} {unit}".rstrip()


@dataclass
class Row:
    """One line of the table. ``target`` None: shown for the reader, not judged."""

    group: str
    name: str
    unit: str
    ours: Series
    peer_name: str = ""
    peer: Series | None = None
    target: Target | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        if self.ours.error:
            return self.ours.error
        if self.peer is not None and self.peer.error:
            return f"peer {self.peer_name}: {self.peer.error}"
        return None

    @property
    def ratio(self) -> float | None:
        if self.error or self.peer is None or self.peer.median == 0:
            return None
        return self.ours.median / self.peer.median

    @property
    def verdict(self) -> Literal["met", "MISSED", "ERROR", ""]:
        if self.error:
            return "ERROR"
        if self.target is None:
            return ""
        peer = None if self.peer is None else self.peer.median
        return "met" if self.target.met(self.ours.median, peer) else "MISSED"

    def as_json(self) -> dict[str, Any]:
        def series(one: Series | None) -> dict[str, Any] | None:
            if one is None or not one.values:
                return None
            low, high = min(one.values), max(one.values)
            return {"median": one.median, "min": low, "max": high, "samples": list(one.values)}

        return {
            "group": self.group,
            "name": self.name,
            "unit": self.unit,
            "ours": series(self.ours),
            "peer_name": self.peer_name,
            "peer": series(self.peer),
            "ratio": self.ratio,
            "target": self.target.text(self.unit) if self.target else None,
            "verdict": self.verdict,
            "error": self.error,
            "notes": self.notes,
        }
