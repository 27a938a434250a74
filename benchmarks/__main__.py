"""`./psx bench [NAME...] [--json FILE]`: measure, print a table, and write the rows."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.row import OURS, Row, short
from benchmarks.rows import ROWS, measure

TABLE_WIDTH: Final = 120
CAPTION: Final = "ratio: ours / theirs; cpu: s/GB or us a piece; ~n: n rounds disturbed by other programs"


def main() -> int:
    """Exit status 0 when every measured row reached its goal."""
    parser = argparse.ArgumentParser(
        prog="./psx bench", description="Measure psx beside peers in the same run."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows: {', '.join(ROWS)}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in ROWS]
    if unknown:
        sys.stderr.write(f"psx: no such row: {', '.join(unknown)}; there are: {', '.join(ROWS)}\n")
        return 2
    rows: list[Row] = []
    broken: list[str] = []
    for name in given.names or ROWS:
        sys.stderr.write(f"measuring {name} …\n")
        try:
            rows += _measured(name)
        except Exception:  # noqa: BLE001  # what was measured before and after it must not be lost
            traceback.print_exc()
            broken.append(name)
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(_table(rows))
    if broken:
        sys.stderr.write(f"psx: not measured, see the errors above: {', '.join(broken)}\n")
    return 0 if not broken and all(row.ok for row in rows) else 1


def _measured(name: str) -> list[Row]:
    """A row's figures, found in a process of its own: no row inherits loops, caches or memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, name).result()


def _table(rows: list[Row]) -> Table:
    """A line for each contender; a goal stands on the line of the peer that it names."""
    table = Table(
        title="psx bench: medians; noise is the range of the rounds", caption=CAPTION, box=SIMPLE_HEAD
    )
    for column in ("row", "", "figure", "noise", "cpu", "ratio", "goal", "ok"):
        table.add_column(column)
    for row in rows:
        goals = _goals(row)
        table.add_row(
            row.name,
            OURS,
            f"{short(row.ours)} {row.unit}",
            row.noise,
            short(row.cpu[OURS]) if OURS in row.cpu else "",
            "",
            goals.get(OURS, ""),
            "yes" if row.ok else "NO",
        )
        for who, figure in row.peers.items():
            table.add_row("", who, *_beside(row, who, figure), goals.get(who, ""))
        table.add_section()
    return table


def _goals(row: Row) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in row.goal.split(", "):
        bound, _, peer = text.partition(" x ")
        who, kept = (peer, bound) if peer in row.peers else (OURS, text)
        found[who] = ", ".join(filter(None, (found.get(who), kept)))
    return found


def _beside(row: Row, who: str, figure: float | None) -> tuple[str, str, str, str]:
    if figure is None:
        return "missing", "", "", ""
    cpu = short(row.cpu[who]) if who in row.cpu else ""
    ratio = f"{row.ours / figure:.2f}" if figure else ""
    return short(figure), row.ranges.get(who, ""), cpu, ratio


if __name__ == "__main__":
    sys.exit(main())
