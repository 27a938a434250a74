"""Every 5 minutes: use the network as a customer and audit its settings. Opens and closes incidents, notifies.

Without `PSX_WATCHDOG_API_KEY` it does not run. The kill switch and its loop limit stop it like every other loop.
"""

import http.client
import json
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final
from urllib.parse import urlsplit

import boto3

from functions.jobs.wiring import JobSettings, Wiring, wiring
from shared.grading.model import Target
from shared.guard.service import enter_loop
from shared.guard.table import read_setting
from shared.runtime.clock import now_ms
from shared.runtime.log import configure
from shared.runtime.settings import load
from shared.upkeep.audit import (
    audit_certificate,
    audit_recipients,
    audit_recovery,
    audit_schedules,
    knock,
)
from shared.upkeep.customer import Door, Fetched, fetch
from shared.upkeep.model import Observation
from shared.upkeep.purchase import STATE, purchase_fault
from shared.upkeep.watchdog import Plan, Watchdog

configure("watchdog")
CALL_TIMEOUT_S: Final = 10
ANSWER_MAX_BYTES: Final = 1_000_000
TABLES: Final = ("access", "devices", "grades", "sales", "usage", "mesh", "ledger", "guard", "audit")
SCHEDULES: Final = (
    "validate-sale",
    "serve-owed",
    "test-peer-tiers",
    "buy-as-customer",
    "list-exits",
    "roll-up",
    "live-numbers",
    "refresh-ip-data",
    "drop-ghosts",
    "end-keys",
    "keep-leases",
    "watchdog",
)
log = logging.getLogger("psx.jobs")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda handler; answers what was seen, opened and closed."""
    w, settings, now = wiring(), load(JobSettings), now_ms()
    if not settings.watchdog_api_key.get_secret_value():
        log.warning("watchdog is not set up", extra={"missing": "PSX_WATCHDOG_API_KEY"})
        return {"skipped": "PSX_WATCHDOG_API_KEY is not set"}
    refused = enter_loop(w.dynamo, settings.table("guard"), "watchdog", now)
    if refused is not None:
        return {"refused": refused.value}
    report = asdict(make_watchdog(w, settings).run(now))
    log.info("watched", extra={"report": report})
    return report


def make_watchdog(w: Wiring, settings: JobSettings) -> Watchdog:
    """A watchdog as the environment has it."""
    tls = ssl.create_default_context(cafile=settings.watchdog_ca_file and str(settings.watchdog_ca_file))
    targets = [
        Target(t["place"], t["name"], t["address"], t["port"], 0)
        for t in json.loads(settings.watchdog_targets or "[]")
    ]
    doors = [
        Door(d["name"], d["host"], d["http"], d["socks"])
        for d in json.loads(settings.watchdog_gateways or "[]")
    ]

    asking = settings.probe_asking_key.get_secret_value()

    def fetch_some(door: Door | None, username: str, password: str, *, socks: bool = False) -> Fetched:
        """From the first target; a control also from the others, because one that is away blinds nobody."""
        found = Fetched(fault="no_target")
        for target in targets:
            found = fetch(door, username, password, target, tls, asking, socks=socks)
            if found.ok or door is not None:
                return found
        return found

    call = _caller(settings)
    regions = w.dynamo.run(read_setting(settings.table("guard"), "relays")) or json.loads(
        settings.watchdog_relays or "{}"
    )

    def relays() -> list[Observation]:
        return [knock(name, str(region["url"]), tls) for name, region in regions.items()]

    def purchase() -> str | None:
        """What became of the last purchase; the function that knows chains makes them."""
        return purchase_fault(w.dynamo.run(read_setting(settings.table("guard"), STATE)), now_ms())

    plan = Plan(settings.watchdog_account, doors, [relays, *_audits(settings, call, tls)], purchase)
    return Watchdog(
        w.dynamo, settings.table("guard"), call, fetch_some, _notifier(settings.alert_topic), plan
    )


def _caller(settings: JobSettings) -> Callable[[str, str, Mapping[str, Any] | None], tuple[int, Any]]:
    base = urlsplit(settings.api_base_url)
    kind = http.client.HTTPSConnection if base.scheme == "https" else http.client.HTTPConnection

    def call(method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, Any]:
        connection = kind(base.netloc, timeout=CALL_TIMEOUT_S)
        headers = {
            "X-API-Key": settings.watchdog_api_key.get_secret_value(),
            "Content-Type": "application/json",
        }
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read(ANSWER_MAX_BYTES) or b"null")
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None
        finally:
            connection.close()

    return call


def _audits(
    settings: JobSettings,
    call: Callable[[str, str, Mapping[str, Any] | None], tuple[int, Any]],
    tls: ssl.SSLContext,
) -> list[Callable[[], list[Observation]]]:
    def recipients() -> list[Observation]:
        status, pricing = call("GET", "/v1/x402/pool/pricing", None)
        networks = pricing["networks"] if status == 200 else ()
        offered = {n["network"]: n["recipientAddress"] for n in networks}
        return audit_recipients(offered, json.loads(settings.watchdog_recipients or "{}"))

    def certificates() -> list[Observation]:
        pairs = (p.rpartition(":") for p in settings.watchdog_certificates.split(",") if p)
        return [audit_certificate(host, int(port), tls, time.time()) for host, _, port in pairs]

    def schedules() -> list[Observation]:
        return audit_schedules(boto3.client("events"), settings.table_prefix, SCHEDULES)

    def recovery() -> list[Observation]:
        return audit_recovery(boto3.client("dynamodb"), [settings.table(name) for name in TABLES])

    return [recipients, certificates, *([schedules, recovery] if settings.watchdog_audits_cloud else [])]


def _notifier(topic: str) -> Callable[[str, str], None]:
    def notify(subject: str, message: str) -> None:
        log.warning("alert", extra={"subject": subject, "text": message})
        if topic:
            boto3.client("sns").publish(TopicArn=topic, Subject=subject[:100], Message=message)

    return notify
