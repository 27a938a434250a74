"""Every hour: check what address data the operator uploaded, publish what is good. Reads and writes S3; opens incidents."""

import logging
from typing import Any

import boto3

from functions.jobs.wiring import JobSettings, wiring
from shared.guard.model import Incident
from shared.guard.service import enter_loop
from shared.guard.table import close_incident, open_incident
from shared.runtime.clock import now_ms
from shared.runtime.log import configure
from shared.runtime.settings import load
from shared.supply.ip_data import IpDataStore

configure("refresh-ip-data")
log = logging.getLogger("psx.jobs")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda handler; answers what was published or refused, by name."""
    w, now = wiring(), now_ms()
    guard = w.settings.table("guard")
    refused = enter_loop(w.dynamo, guard, "refresh_ip_data", now)
    if refused is not None:
        return {"refused": refused.value}
    bucket = load(JobSettings).ip_data_bucket
    if not bucket:
        return {"skipped": "PSX_IP_DATA_BUCKET is not set: the files on disk are used as they are"}
    report = IpDataStore(boto3.client("s3"), bucket).publish()
    for name, outcome in report.items():
        incident = f"ip-data#{name}"
        if outcome.startswith("refused"):
            message = f"uploaded address data ({name}) {outcome}"
            opening = open_incident(guard, Incident(incident, "ip_data_refused", message, now))
            w.dynamo.run(opening)
        else:
            w.dynamo.run(close_incident(guard, incident, now))
    log.info("address data looked at", extra={"report": report})
    return report
