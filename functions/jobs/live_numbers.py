"""Every 5 s: derive the live numbers. Reads the live network, writes their rollup in Redis; moves and spends nothing."""

import logging
from typing import Any

from functions.jobs.rounds import rounds
from functions.jobs.wiring import wiring
from shared.pool.numbers import DERIVE_EVERY_S, derive, run
from shared.runtime.log import configure

configure("live-numbers")
log = logging.getLogger("psx.jobs")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda handler; answers the last derivation."""
    w, report = wiring(), dict[str, Any]()
    for _ in rounds(event, DERIVE_EVERY_S):
        numbers = run(w.redis, derive())
        report = {"at": numbers.at_ms, "stock": numbers.stock, "bytesPerSecond": numbers.bytes_per_s}
    return report
