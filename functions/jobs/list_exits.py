"""Every 20 s: put what works on sale and take off what does not. Reads devices, grades, presence; writes listings.

The first round of a minute also sweeps; the others look at what was marked as changed.
"""

import logging
from dataclasses import asdict
from typing import Any, Final

from functions.jobs.rounds import rounds
from functions.jobs.wiring import wiring
from shared.grading.listing import ListingRun
from shared.guard.service import enter_loop
from shared.runtime.clock import now_ms
from shared.runtime.log import configure

configure("list-exits")
LIST_EVERY_S: Final = 20.0
log = logging.getLogger("psx.jobs")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda handler; answers what the last round changed and why."""
    report = dict[str, Any]()
    for number in rounds(event, LIST_EVERY_S):
        w = wiring()
        refused = enter_loop(w.dynamo, w.settings.table("guard"), "list_exits", now_ms())
        if refused is not None:
            return {"refused": refused.value}
        report = asdict(ListingRun(w.dynamo, w.redis, w.settings.table).run(now_ms(), sweep=number == 0))
        log.info("listed", extra={"report": report})
    return report
