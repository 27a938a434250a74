"""`./psx simulate [--devices N] [--hours H] [--set NAME=VALUE …] [--json FILE] [--png FILE]`: the rules at scale."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from local.simulation.engine import Simulation
from local.simulation.report import draw, summarise
from local.simulation.world import Rates
from shared.grading.rules import parse_thresholds


def main() -> int:
    """Exit status 0 when the simulation ran; 2 for thresholds that make no sense."""
    parser = argparse.ArgumentParser(
        prog="./psx simulate", description="The rules of grading on a simulated fleet."
    )
    parser.add_argument("--devices", type=int, default=200_000, metavar="N")
    parser.add_argument("--hours", type=float, default=8.0, metavar="H")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a threshold; repeatable"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--png", type=Path, metavar="FILE")
    given = parser.parse_args()
    try:
        chosen = {name: int(value) for name, _, value in (text.partition("=") for text in given.set)}
        thresholds = parse_thresholds(chosen)
    except ValueError as error:
        sys.stderr.write(f"psx: {error}\n")
        return 2
    rates, began = Rates(), time.monotonic()
    figures = Simulation(given.devices, given.hours, rates, thresholds, given.seed).run()
    summary = summarise(figures, given.devices, given.hours)
    sys.stderr.write(f"simulated {given.hours:g} h in {time.monotonic() - began:.0f} s\n")
    text = json.dumps(summary, indent=2)
    sys.stdout.write(text + "\n")
    if given.json is not None:
        given.json.write_text(text + "\n")
    if given.png is not None:
        draw(figures, given.devices, rates, given.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
