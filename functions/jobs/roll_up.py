"""Every 3 s: counted batches become used bytes, day totals and what suppliers are owed.

A row that is no batch is set aside, and the job fails when all else is done, so that a human looks at who wrote it. Its
incident ends when the row is gone, or was mended and applied.
"""

import json
import logging
from dataclasses import asdict
from typing import Any, Final

from functions.jobs.rounds import rounds
from functions.jobs.wiring import wiring
from shared.guard.model import Incident
from shared.guard.service import enter_loop, standing_incidents
from shared.guard.table import close_incident, open_incident, read_setting
from shared.metering.model import SpoiledBatch
from shared.metering.table import is_set_aside
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import RunsDynamo
from shared.runtime.log import configure
from shared.settlement.service import Tables, roll_up

configure("roll-up")
ROLL_UP_EVERY_S: Final = 3.0
"""With a flush every 5 s, usage is fresh within 10 s."""
SPOILED_TOLD_MAX: Final = 10
SPOILED: Final = "spoiled_batch"
_NAMED: Final = "spoiled#"
INCIDENT_ID_MAX_CHARS: Final = 200
"""A key that makes a longer name is not read back from it: its incident is a human's to close."""
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
    if report and "refused" not in report:
        _close_mended()
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
    report["spoiled"] = [_told(w.dynamo, table("guard"), batch) for batch in found.spoiled]
    if found.unrated:
        missing = {"classes": sorted(found.rates_missing), "batches": found.unrated}
        log.error("rates missing", extra=missing)
        report["ratesMissing"] = missing["classes"]
    if report["applied"] or report["repeated"]:
        log.info("rolled up", extra={"report": report})
    return report


def _told(dynamo: RunsDynamo, guard: str, batch: SpoiledBatch) -> str:
    """Tell of a row at once: what comes later in this minute may fail."""
    words = f"{batch.pk} {batch.sk}: {batch.fault}"
    log.error("spoiled batch", extra={"batch": words})
    name = f"{_NAMED}{json.dumps([batch.pk, batch.sk])}"[:INCIDENT_ID_MAX_CHARS]
    dynamo.run(open_incident(guard, Incident(name, SPOILED, words[:WORDS_MAX_CHARS], now_ms())))
    return words


def _close_mended() -> None:
    """End the incidents of rows that wait for no human any more."""
    w = wiring()
    guard, usage = w.settings.table("guard"), w.settings.table("usage")
    for incident in standing_incidents(w.dynamo, guard):
        if incident.kind != SPOILED:
            continue
        try:
            pk, sk = json.loads(incident.name.removeprefix(_NAMED))
        except (ValueError, TypeError):  # too long to be told whole, or named otherwise: a human closes it
            continue
        if not w.dynamo.run(is_set_aside(usage, pk, sk)):
            w.dynamo.run(close_incident(guard, incident.name, now_ms()))
