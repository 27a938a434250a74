"""Every 3 s: counted batches become used bytes, day totals and what suppliers are owed.

A row that is no batch is set aside, and the job fails when all else is done, so that a human looks at who wrote it.
"""

import logging
from dataclasses import asdict
from typing import Any, Final

from functions.jobs.rounds import rounds
from functions.jobs.wiring import wiring
from shared.guard.model import Incident
from shared.guard.service import enter_loop
from shared.guard.table import open_incident, read_setting
from shared.runtime.clock import now_ms
from shared.runtime.log import configure
from shared.settlement.service import Tables, roll_up

configure("roll-up")
ROLL_UP_EVERY_S: Final = 3.0
"""With a flush every 5 s, usage is fresh within 10 s."""
SPOILED_TOLD_MAX: Final = 10
INCIDENT_ID_MAX_CHARS: Final = 200
WORDS_MAX_CHARS: Final = 500
log = logging.getLogger("psx.jobs")


class SpoiledBatches(Exception):
    """Rows among the batches that no gateway of ours writes; they were set aside."""


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda handler; answers what the last round applied. Raises SpoiledBatches."""
    report, spoiled = dict[str, Any](), list[str]()
    for _ in rounds(event, ROLL_UP_EVERY_S):
        report = _round()
        spoiled += report.get("spoiled", ())
    if spoiled:
        raise SpoiledBatches("; ".join(spoiled[:SPOILED_TOLD_MAX]))
    return report


def _round() -> dict[str, Any]:
    w = wiring()
    table = w.settings.table
    refused = enter_loop(w.dynamo, table("guard"), "roll_up", now_ms())
    if refused is not None:
        return {"refused": refused.value}
    rates = w.dynamo.run(read_setting(table("guard"), "rates")) or {}
    tables = Tables(table("usage"), table("access"), table("ledger"), table("devices"))
    found = roll_up(w.dynamo, tables, rates, now_ms())
    report = {k: v for k, v in asdict(found).items() if k not in {"served", "rates_missing"}}
    for words in found.spoiled:  # told at once: what comes later in this minute may fail
        log.error("spoiled batch", extra={"batch": words})
        told = Incident(
            f"spoiled#{words}"[:INCIDENT_ID_MAX_CHARS], "spoiled_batch", words[:WORDS_MAX_CHARS], now_ms()
        )
        w.dynamo.run(open_incident(table("guard"), told))
    if found.unrated:
        missing = {"classes": sorted(found.rates_missing), "batches": found.unrated}
        log.error("rates missing", extra=missing)
        report["ratesMissing"] = missing["classes"]
    if report["applied"] or report["repeated"]:
        log.info("rolled up", extra={"report": report})
    return report
