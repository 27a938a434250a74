"""Every 5 s: derive the live numbers; every minute: keep them.

Reads the live network, writes the rollup in Redis and its history in DynamoDB; moves and spends nothing.
"""

import logging
from typing import Any

from functions.jobs.rounds import rounds
from functions.jobs.wiring import wiring
from shared.pool.numbers import DERIVE_EVERY_S, derive, run
from shared.runtime.clock import now_ms
from shared.runtime.log import configure
from shared.upkeep.history import record

configure("live-numbers")
log = logging.getLogger("psx.jobs")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda handler; answers the last derivation."""
    w, report = wiring(), dict[str, Any]()
    for number in rounds(event, DERIVE_EVERY_S):
        numbers = run(w.redis, derive())
        if number == 0:
            record(w.dynamo, w.settings.table("usage"), numbers, now_ms())
        report = {"at": numbers.at_ms, "stock": numbers.stock, "bytesPerSecond": numbers.bytes_per_s}
    return report
