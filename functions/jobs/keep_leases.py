"""Every minute: release leases that nothing used, hold again what Redis lost, move what lost its device. Writes leases."""

import logging
from dataclasses import asdict
from typing import Any

from functions.jobs.wiring import wiring
from shared.guard.service import enter_loop
from shared.pool.lease_keeping import KeepLeases
from shared.pool.leasing import Leasing
from shared.runtime.clock import now_ms
from shared.runtime.log import configure

configure("keep-leases")
log = logging.getLogger("psx.jobs")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda handler; answers counts."""
    w = wiring()
    table = w.settings.table
    refused = enter_loop(w.dynamo, table("guard"), "keep_leases", now_ms())
    if refused is not None:
        return {"refused": refused.value}
    leasing = Leasing(w.dynamo, w.redis, table("access"), now_ms)
    report = asdict(KeepLeases(leasing, table("audit"), now_ms).run())
    if any(count for name, count in report.items() if name != "leases"):
        log.info("leases kept", extra={"report": report})
    return report
