"""One row of a benchmark: a figure of ours, figures of peers in the same run, their ratio, and the goal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

OURS: Final = "psx"
BARE: Final = "bare_python"
"""The least that processes of ours could be; see `bare.py`."""


@dataclass(frozen=True, slots=True)
class Row:
    """`ratio` is ours over the first peer's, or None when that peer is missing; `ok` is whether the goal was reached.

    `noise` is the range of our rounds, `ranges` everybody's; `~2` after one: two rounds were disturbed by other programs.
    `cpu` is what a unit costs in all processes of a contender, where it was read: seconds per GB, or microseconds a piece.
    """

    name: str
    unit: str
    ours: float
    peers: dict[str, float | None]
    ratio: float | None
    goal: str
    ok: bool
    missing: list[str] = field(default_factory=list)
    noise: str = ""
    ranges: dict[str, str] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """One round of one contender. `disturbed`: other programs of the machine took much of a core meanwhile."""

    value: float
    cpu: float | None = None
    disturbed: bool = False


@dataclass(frozen=True, slots=True)
class Goal:
    """Ours has to be at least (`at_most`: at most) `factor` times the peer's figure, or with no peer the factor itself."""

    peer: str
    factor: float
    at_most: bool = False

    def met(self, ours: float, theirs: float) -> bool:
        """Whether a pair of figures reaches it."""
        return ours <= self.factor * theirs if self.at_most else ours >= self.factor * theirs

    def __str__(self) -> str:
        beside = f" x {self.peer}" if self.peer else ""
        return f"{'<=' if self.at_most else '>='} {self.factor:g}{beside}"


def compare(
    name: str,
    unit: str,
    rounds: Mapping[str, Sequence[Reading]],
    goals: Sequence[Goal],
    missing: Sequence[str] = (),
) -> Row:
    """A row from the rounds of all contenders. One that is missing, or has no rounds, is listed and fails the row."""
    medians = {who: statistics.median(r.value for r in found) for who, found in rounds.items() if found}
    absent = [*missing, *(who for who in rounds if who not in medians)]
    ours = medians.pop(OURS, None)
    peers: dict[str, float | None] = {who: round(value, 2) for who, value in medians.items()}
    peers |= dict.fromkeys((who for who in absent if who != OURS), None)
    known = {"": 1.0, **medians}
    reached = ours is not None and all(g.peer in known and g.met(ours, known[g.peer]) for g in goals)
    first = medians.get(goals[0].peer) if goals else None
    ranges = {who: _range(found) for who, found in rounds.items() if found}
    cpu = {
        who: round(statistics.median(costs), 3)
        for who, found in rounds.items()
        if (costs := [r.cpu for r in found if r.cpu is not None])
    }
    return Row(
        name,
        unit,
        round(ours or 0.0, 2),
        peers,
        round(ours / first, 2) if ours is not None and first else None,
        ", ".join(map(str, goals)),
        reached and not absent,
        absent,
        ranges.get(OURS, ""),
        ranges,
        cpu,
    )


def _range(found: Sequence[Reading]) -> str:
    values, disturbed = [r.value for r in found], sum(r.disturbed for r in found)
    return f"{short(min(values))}-{short(max(values))}" + (f" ~{disturbed}" if disturbed else "")


def short(value: float) -> str:
    """Three digits or more, never an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
