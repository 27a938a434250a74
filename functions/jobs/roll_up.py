"""Every minute: counted batches become used bytes, day totals and what suppliers are owed."""

import logging
from dataclasses import asdict
from typing import Any

from functions.jobs.wiring import wiring
from shared.guard.service import enter_loop
from shared.guard.table import read_setting
from shared.runtime.clock import now_ms
from shared.runtime.log import configure
from shared.settlement.service import Tables, roll_up

configure("roll-up")
log = logging.getLogger("psx.jobs")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda handler; answers what was applied."""
    w = wiring()
    table = w.settings.table
    refused = enter_loop(w.dynamo, table("guard"), "roll_up", now_ms())
    if refused is not None:
        return {"refused": refused.value}
    rates = w.dynamo.run(read_setting(table("guard"), "rates")) or {}
    tables = Tables(table("usage"), table("access"), table("ledger"), table("devices"))
    report = {k: v for k, v in asdict(roll_up(w.dynamo, tables, rates, now_ms())).items() if k != "served"}
    log.info("rolled up", extra={"report": report})
    return report
