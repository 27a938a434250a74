"""`./psx simulate [--devices N] [--hours H] [--stores] [--set NAME=VALUE] [--json FILE] [--png FILE]`: rules at scale."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from local.simulation.engine import Simulation
from local.simulation.figures import Figures
from local.simulation.report import draw, summarise
from local.simulation.world import Rates
from shared.grading.model import Thresholds
from shared.grading.rules import parse_thresholds
from shared.runtime.redis import SyncRedis


def _on_stores(
    count: int, hours: float, rates: Rates, thresholds: Thresholds, seed: int
) -> tuple[Figures, dict[str, Any]]:
    """The figures, and what the stores saw. Raises RuntimeError when the job and the rules came apart."""
    from benchmarks.stores import dynamo_server, redis_server  # noqa: PLC0415 - only who wants stores
    from local.simulation.with_stores import StoredSimulation  # noqa: PLC0415

    with redis_server() as url, dynamo_server("simulation") as (_, dynamo):
        redis = SyncRedis(url)
        simulation = StoredSimulation(count, hours, rates, thresholds, (dynamo, redis), seed)
        figures = simulation.run()
        apart = list(simulation.disagreements())
        redis.close()
    if apart:
        raise RuntimeError(f"{len(apart)} devices stand otherwise than they should: {apart[:5]}")
    calls = dict(simulation.counted.calls.most_common())
    return figures, {"jobsSlowestRoundS": round(simulation.slowest_s, 2), "jobsStoreCalls": calls}


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
    parser.add_argument(
        "--stores", action="store_true", help="the real listing job on real stores; a few thousand devices"
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
    if given.stores:
        figures, extra = _on_stores(given.devices, given.hours, rates, thresholds, given.seed)
    else:
        figures, extra = Simulation(given.devices, given.hours, rates, thresholds, given.seed).run(), {}
    summary = summarise(figures, given.devices, given.hours) | extra
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
