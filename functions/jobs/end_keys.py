"""Every minute: turn off keys whose time is over, give back what deleted keys hold. Reads keys and meters; writes keys."""

import logging
from dataclasses import asdict
from typing import Any

from functions.jobs.wiring import wiring
from shared.guard.service import enter_loop
from shared.runtime.clock import now_ms
from shared.runtime.log import configure
from shared.settlement.ended_keys import EndKeys

configure("end-keys")
log = logging.getLogger("psx.jobs")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda handler; answers counts."""
    w = wiring()
    refused = enter_loop(w.dynamo, w.settings.table("guard"), "end_keys", now_ms())
    if refused is not None:
        return {"refused": refused.value}
    report = asdict(EndKeys(w.dynamo, w.redis, w.settings.table, now_ms).run())
    if report["expired"] or report["settled"] or report["failures"]:
        log.info("keys ended", extra={"report": report})
    return report
