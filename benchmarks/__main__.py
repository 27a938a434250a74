"""`./psx bench [NAME...] [--json FILE]`: measure, print a table, and write the rows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks import sale, selection
from benchmarks.row import Row

ROWS: Final[dict[str, Callable[[], Row]]] = {"selection_100k": selection.measure, "sale_402": sale.measure}


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
    rows = []
    for name in given.names or ROWS:
        sys.stderr.write(f"measuring {name} …\n")
        rows.append(ROWS[name]())
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    Console().print(_table(rows))
    return 0 if all(row.ok for row in rows) else 1


def _table(rows: list[Row]) -> Table:
    table = Table(title="psx bench: medians; noise is the range of the rounds")
    for column in ("name", "ours", "unit", "noise", "peers", "ratio", "goal", "ok"):
        table.add_column(column)
    for row in rows:
        peers = ", ".join(f"{k} {v if v is not None else 'missing'}" for k, v in row.peers.items())
        ratio = "-" if row.ratio is None else str(row.ratio)
        table.add_row(
            row.name, str(row.ours), row.unit, row.noise, peers, ratio, row.goal, "yes" if row.ok else "no"
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
