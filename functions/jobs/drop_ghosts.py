"""Every hour: forget devices that never served and were not seen for two weeks. Reads presence; deletes devices."""

import logging
from dataclasses import asdict
from typing import Any

from functions.jobs.wiring import wiring
from shared.guard.service import enter_loop
from shared.runtime.clock import now_ms
from shared.runtime.log import configure
from shared.supply.ghosts import GhostRun

configure("drop-ghosts")
log = logging.getLogger("psx.jobs")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda handler; answers how many devices there were and how many were forgotten."""
    w = wiring()
    refused = enter_loop(w.dynamo, w.settings.table("guard"), "drop_ghosts", now_ms())
    if refused is not None:
        return {"refused": refused.value}
    report = asdict(GhostRun(w.dynamo, w.redis, w.settings.table).run(now_ms()))
    log.info("ghosts dropped", extra={"report": report})
    return report
