"""One row of a benchmark: a figure of ours, figures of peers in the same run, their ratio, and the goal."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Row:
    """`ratio` is ours over the first peer's, or None when that peer is missing; `ok` is whether the goal was reached."""

    name: str
    unit: str
    ours: float
    peers: dict[str, float | None]
    ratio: float | None
    goal: str
    ok: bool
    missing: list[str] = field(default_factory=list)
    noise: str = ""
