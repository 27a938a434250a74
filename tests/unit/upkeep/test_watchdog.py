"""The watchdog against a network that a test decides: incidents, notifications, keys of its own, and what it audits."""

import json
from collections.abc import Mapping
from dataclasses import replace
from threading import Lock
from typing import Any

import boto3
import pytest

from functions.jobs.watchdog import _notifier
from shared.guard.service import all_incidents
from shared.guard.table import close_incident
from shared.kernel.money import BYTES_PER_GB
from shared.runtime.dynamo import SyncDynamo
from shared.upkeep.audit import audit_recipients, audit_recovery, audit_schedules
from shared.upkeep.customer import BODY_BYTES, TIMEOUT_S, Door, Fetched
from shared.upkeep.model import Check, Observation
from shared.upkeep.rules import top_up_gb
from shared.upkeep.watchdog import LABEL, RUN_MAX_S, SUSPENDED_LABEL, Plan, Watchdog, WatchReport

GUARD = "psx-test-guard"
DOORS = [Door("gw-1", "h", 1, 2), Door("gw-2", "h", 3, 4)]


class Network:
    """A reseller API and gateways; `broken` are doors that carry nothing, `blind` cuts the watchdog off."""

    def __init__(self) -> None:
        self.keys: dict[str, dict[str, Any]] = {}
        self.broken: set[str] = set()
        self.blind = False
        self.suspended_works = False
        self.free = self.no_top_ups = False
        self.told: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.api_away = False
        self.waited_s: dict[str, float] = {}
        self._one_at_a_time = Lock()

    def call(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, Any]:
        self.calls.append((method, path))
        if self.api_away:
            return 0, None
        if path == "/v1/gateway/pool/stock":
            return 200, {"pools": {"mbl": {"us": 2}, "peer": {"de": 1, "us": 1}}}
        name = path.split("/")[4] if path.count("/") >= 4 else ""
        if method == "GET":
            return 200, list(self.keys.values())
        if method == "POST" and not name:
            assert body is not None
            ident = f"k{len(self.keys)}"
            named = {"id": ident, "label": body["label"], "trafficCapGB": body["trafficCapGB"]}
            self.keys[ident] = {**named, "enabled": True, "trafficUsedMB": 0.0}
            return 200, self.keys[ident]
        if path.endswith("/topup"):
            assert body is not None
            if self.no_top_ups:
                return 400, {"error": "no"}
            self.keys[name]["trafficCapGB"] += body["addTrafficGB"]
            return 200, self.keys[name]
        if method == "PATCH":
            self.keys[name] |= dict(body or {})
            return 200, self.keys[name]
        return 200, {**self.keys[name], "key": f"secret of {self.keys[name]['label']}"}

    @property
    def own_key(self) -> dict[str, Any]:
        return next(k for k in self.keys.values() if k["label"] == LABEL)

    def fetch(self, door: Door | None, username: str, password: str, *, socks: bool = False) -> Fetched:
        with self._one_at_a_time:
            return self._fetched(door, password)

    def _fetched(self, door: Door | None, password: str) -> Fetched:
        if door is None:
            return Fetched(fault="timeout") if self.blind else Fetched("203.0.113.9", body_bytes=BODY_BYTES)
        if password == f"secret of {SUSPENDED_LABEL}" and not self.suspended_works:
            return Fetched(fault="refused_407")
        if door.name in self.broken:
            self.waited_s[door.name] = self.waited_s.get(door.name, 0) + TIMEOUT_S
            return Fetched(fault="refused_502")
        key = self.own_key
        if key["trafficUsedMB"] >= key["trafficCapGB"] * 1000:
            key["enabled"] = False
            return Fetched(fault="refused_407")
        if not self.free:
            key["trafficUsedMB"] += (BODY_BYTES + 5_000) / 1_000_000
        return Fetched("198.51.100.1", body_bytes=BODY_BYTES)


@pytest.fixture
def network() -> Network:
    return Network()


def watch(network: Network, dynamo: SyncDynamo, now_ms: int, **plan: Any) -> WatchReport:
    made = replace(Plan("psx_w", DOORS), **plan)
    notify = lambda subject, message: network.told.append(message)  # noqa: E731
    return Watchdog(dynamo, GUARD, network.call, network.fetch, notify, made).run(now_ms)


def standing(dynamo: SyncDynamo) -> list[str]:
    return [i.kind for i in all_incidents(dynamo, GUARD) if i.closed_at_ms is None]


def test_a_network_that_works_is_left_alone_and_its_bill_is_right(
    network: Network, dynamo: SyncDynamo
) -> None:
    for minute in range(3):
        report = watch(network, dynamo, minute * 300_000)
        assert (report.failed, report.findings) == ([], [])
    assert report.tried == 1 + 3 + 2 * (2 + 1 + 2 + 1)
    assert (standing(dynamo), network.told) == ([], [])
    assert {k["label"]: k["enabled"] for k in network.keys.values()} == {LABEL: True, SUSPENDED_LABEL: False}
    changed = {path.split("/")[3] for method, path in network.calls if method != "GET"}
    assert changed == {"pool-keys"}, "its own keys are all that it ever changes"


def test_a_dead_gateway_opens_one_incident_after_two_runs_and_closes_it(
    network: Network, dynamo: SyncDynamo
) -> None:
    network.broken = {"gw-2"}
    assert watch(network, dynamo, 0).opened == []
    report = watch(network, dynamo, 300_000)
    assert [key.split(".")[0] + " " + key.split(".")[2] for key in report.opened] == ["gateway gw-2"]
    assert standing(dynamo) == ["watchdog_gateway"]
    assert watch(network, dynamo, 600_000).opened == []
    assert len(network.told) == 1
    dynamo.run(close_incident(GUARD, f"watchdog#{report.opened[0]}", 650_000))
    assert watch(network, dynamo, 700_000).opened == report.opened, "closed by hand, and still wrong"
    assert len(network.told) == 2
    network.broken = set()
    assert len(watch(network, dynamo, 900_000).closed) == 1
    assert standing(dynamo) == []
    assert len(network.told) == 3


def test_what_a_run_did_not_look_at_is_not_right_again(network: Network, dynamo: SyncDynamo) -> None:
    network.broken = {"gw-2"}
    for minute in range(2):
        watch(network, dynamo, minute * 300_000)
    network.api_away = True
    report = watch(network, dynamo, 600_000)
    assert (report.findings, report.closed) == (["fleet.reseller_api."], [])
    assert standing(dynamo) == ["watchdog_gateway"]
    network.api_away, network.broken = False, set()
    assert len(watch(network, dynamo, 900_000).closed) == 1
    assert standing(dynamo) == []


def test_gateways_that_hang_are_told_in_time_however_many_they_are(
    network: Network, dynamo: SyncDynamo
) -> None:
    doors = [Door(f"gw-{n}", "h", 1, 2) for n in range(9)]
    network.broken = {door.name for door in doors}
    for minute in range(2):
        network.waited_s.clear()
        report = watch(network, dynamo, minute * 300_000, doors=doors)
    assert max(network.waited_s.values()) <= 2 * TIMEOUT_S, "doors are tried side by side"
    assert report.opened == ["fleet.http."]


def test_what_was_seen_is_told_when_time_is_up_or_an_audit_breaks(
    network: Network, dynamo: SyncDynamo
) -> None:
    clock = [0.0]

    def breaks() -> list[Observation]:
        raise OSError("no such host")

    def hangs() -> list[Observation]:
        clock[0] = RUN_MAX_S
        return [Observation(Check.CERTIFICATE, ok=False, detail="3 days left")]

    def never() -> list[Observation]:
        raise AssertionError("there is no time for it")

    plan = Plan("psx_w", DOORS, [breaks, hangs, never])
    made = Watchdog(dynamo, GUARD, network.call, network.fetch, lambda *_: None, plan, lambda: clock[0])
    assert made.run(0).findings == ["settings.certificate.3 days left"]


def test_a_blind_watchdog_says_so_of_itself_alone(network: Network, dynamo: SyncDynamo) -> None:
    network.blind, network.broken = True, {"gw-1", "gw-2"}
    for minute in range(2):
        report = watch(network, dynamo, minute * 300_000)
    assert report.findings == ["watchdog.control_target."]
    assert standing(dynamo) == ["watchdog_watchdog"]
    assert "blind" in network.told[0]


def test_a_suspended_key_that_works_and_a_meter_that_does_not_count_are_found(
    network: Network, dynamo: SyncDynamo
) -> None:
    watch(network, dynamo, 0)
    network.suspended_works = network.free = True
    watch(network, dynamo, 300_000)
    report = watch(network, dynamo, 600_000)
    assert set(report.findings) == {"fleet.suspended_key.", "fleet.billing."}


def test_the_watchdog_fills_its_own_key_before_it_is_empty(network: Network, dynamo: SyncDynamo) -> None:
    watch(network, dynamo, 0)
    key = network.own_key
    key["trafficUsedMB"] = key["trafficCapGB"] * 1000 - 1.0
    for minute in range(1, 4):
        watch(
            network, dynamo, minute * 300_000
        )  # the first bill is told wrong: the test spent what nobody carried
    assert key["trafficCapGB"] * 1000 - key["trafficUsedMB"] > 100
    assert [path for method, path in network.calls].count(f"/v1/reseller/pool-keys/{key['id']}/topup") == 1
    assert standing(dynamo) == []


def test_a_key_that_met_its_cap_is_filled_and_used_again(network: Network, dynamo: SyncDynamo) -> None:
    watch(network, dynamo, 0)
    network.own_key.update(trafficUsedMB=5000.0, enabled=False)
    report = watch(network, dynamo, 300_000)
    assert (network.own_key["enabled"], report.findings) == (True, ["fleet.billing."])


def test_an_empty_key_of_its_own_is_the_watchdogs_fault_and_nobody_elses(
    network: Network, dynamo: SyncDynamo
) -> None:
    watch(network, dynamo, 0)
    network.own_key["trafficUsedMB"], network.no_top_ups = 1000.0, True
    for minute in range(1, 3):
        report = watch(network, dynamo, minute * 300_000)
        assert report.findings == ["watchdog.own_key."]
    assert standing(dynamo) == ["watchdog_watchdog"]
    network.no_top_ups = False
    watch(network, dynamo, 900_000)
    assert standing(dynamo) == []


@pytest.mark.parametrize(
    ("left_bytes", "run_bytes", "more_gb"),
    [
        (288, 1, 0),
        (287, 1, 1),
        (-5 * BYTES_PER_GB, 1, 6),
        (0, BYTES_PER_GB // 288, 2),
        (0, BYTES_PER_GB, 576),
        (10**12, 10**6, 0),
    ],
)
def test_a_key_is_raised_when_less_than_a_day_is_left_of_it(
    left_bytes: int, run_bytes: int, more_gb: int
) -> None:
    assert top_up_gb(left_bytes, run_bytes) == more_gb


def test_a_failed_purchase_and_a_failed_audit_are_told(network: Network, dynamo: SyncDynamo) -> None:
    audit = lambda: [Observation(Check.CERTIFICATE, ok=False, detail="gw: 3 days left")]  # noqa: E731
    report = watch(network, dynamo, 0, audits=[audit], purchase=lambda: "503")
    assert set(report.findings) == {"fleet.purchase.", "settings.certificate.gw: 3 days left"}


# Audits, against the cloud's own API


def test_recipients_are_held_to_what_they_should_be() -> None:
    expected = {"base": "0xAB", "solana": "So1"}
    assert audit_recipients({"base": "0xab", "solana": "So1"}, expected)[0].ok
    assert not audit_recipients({"base": "0xcd", "solana": "So1"}, expected)[0].ok
    assert not audit_recipients({"solana": "So1"}, expected)[0].ok


def test_schedules_must_be_there_and_enabled(dynamo: SyncDynamo) -> None:
    events: Any = boto3.client("events")
    for name, state in (("one", "ENABLED"), ("two", "DISABLED")):
        events.put_rule(Name=f"psx-test-{name}", ScheduleExpression="rate(1 minute)", State=state)
    assert audit_schedules(events, "psx-test-", ["one"])[0].ok
    (found,) = audit_schedules(events, "psx-test-", ["one", "two", "three"])
    assert (found.ok, found.detail) == (False, "not enabled: three, two")


def test_tables_must_be_recoverable(dynamo: SyncDynamo) -> None:
    client: Any = boto3.client("dynamodb")
    (found,) = audit_recovery(client, ["psx-test-guard"])
    assert not found.ok
    on = {"PointInTimeRecoveryEnabled": True}
    client.update_continuous_backups(TableName="psx-test-guard", PointInTimeRecoverySpecification=on)
    assert audit_recovery(client, ["psx-test-guard"])[0].ok


def test_alerts_are_published(dynamo: SyncDynamo) -> None:
    sns: Any = boto3.client("sns")
    sqs: Any = boto3.client("sqs")
    topic = sns.create_topic(Name="alerts")["TopicArn"]
    queue = sqs.create_queue(QueueName="q")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    _notifier(topic)("psx: fleet fault", "the whole network: http fails")
    (message,) = sqs.receive_message(QueueUrl=queue)["Messages"]
    assert json.loads(message["Body"])["Message"] == "the whole network: http fails"
