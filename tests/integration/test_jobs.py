"""The jobs as they are deployed: their handlers, their settings, the roles that they run with."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from functions.api.wiring import ApiSettings, open_origins
from functions.jobs import (
    drop_ghosts,
    end_keys,
    keep_leases,
    list_exits,
    live_numbers,
    refresh_ip_data,
    roll_up,
    watchdog,
)
from functions.jobs.wiring import wiring
from local.lab import LabFiles
from shared.access.model import DisabledReason
from shared.access.prepaid import credit_items
from shared.access.settling import SETTLE_AFTER_MS, settle_later_item
from shared.access.table import mint as mint_pak
from shared.grading.listing import ListingRun
from shared.grading.live import account_mark, mark_changed
from shared.guard.model import Incident
from shared.guard.service import all_incidents, standing_incidents
from shared.guard.table import open_incident, write_setting
from shared.kernel.ids import UNKNOWN_COUNTRY, EndpointId, PakId
from shared.metering.table import put_batch
from shared.pool.lease_table import create_items, get_lease
from shared.pool.leasing import Leasing
from shared.pool.live import list_endpoint
from shared.pool.model import Rotation
from shared.pool.presence import put_presence
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo, put, transact
from shared.runtime.redis import SyncRedis, command
from shared.supply.model import Kind
from shared.upkeep.customer import Fetched
from shared.upkeep.history import Span, newest
from tests.contract.test_listing import FAIL, OWNER, PASS, US, enrol, probe
from tests.support.permissions import as_function
from tests.support.pool import peer, presence
from tests.unit.access.test_access import GOOD
from tests.unit.pool.test_leases import LEASE
from tests.unit.settlement.test_settlement import NOW, RATES, batch, line, mint, spoil

pytestmark = pytest.mark.slow
BUCKET = "psx-test-ip-data"
PHONE = "127.10.1.7"


@pytest.fixture(autouse=True)
def _wired(monkeypatch: pytest.MonkeyPatch, dynamo: SyncDynamo, valkey_url: str) -> Iterator[None]:
    for name, value in {"STAGE": "dev", "TABLE_PREFIX": "psx-test-", "REDIS_URL": valkey_url}.items():
        monkeypatch.setenv(f"PSX_{name}", value)
    wiring.cache_clear()
    yield
    wiring().redis.close()
    wiring.cache_clear()


def run(name: str, handler: Any) -> dict[str, Any]:
    """One scheduled run under the role that it has when deployed."""
    with as_function(name):
        answer: dict[str, Any] = handler({"job": name.replace("-", "_")}, None)
    return answer


def test_the_listing_job_lists_within_its_role(dynamo: SyncDynamo, valkey_url: str) -> None:
    redis = SyncRedis(valkey_url)
    enrol(ListingRun(dynamo, redis, lambda name: f"psx-test-{name}"), "good", PASS, US)
    assert run("list-exits", list_exits.handler)["newly_listed"] == ["good"]
    redis.run(command("FLUSHALL", parse=bool))
    redis.run(mark_changed([account_mark(OWNER)]))
    assert run("list-exits", list_exits.handler)["rebuilt"] == 1
    redis.close()


def test_the_listing_job_brakes_within_its_role(dynamo: SyncDynamo, valkey_url: str) -> None:
    redis = SyncRedis(valkey_url)
    listing = ListingRun(dynamo, redis, lambda name: f"psx-test-{name}")
    for number in range(7):
        enrol(listing, f"m{number}", PASS, US)
    assert run("list-exits", list_exits.handler)["listed"] == 7
    for number in range(7):
        probe(listing, f"m{number}", FAIL, FAIL, FAIL)
    assert len(run("list-exits", list_exits.handler)["braked"]) == 1
    redis.close()


def test_live_numbers_are_derived_and_kept_within_their_role(dynamo: SyncDynamo) -> None:
    run("live-numbers", live_numbers.handler)
    assert dynamo.run(newest("psx-test-usage", Span.MINUTE)) is not None


def test_the_watchdog_looks_and_tells_within_its_role(
    dynamo: SyncDynamo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its targets are not there: it is blind, says so once in two runs, and audits all the same."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    boto3.client("secretsmanager").create_secret(
        Name="psx/test/watchdog",
        SecretString=json.dumps(
            {"PSX_WATCHDOG_API_KEY": "psx_0", "PSX_WATCHDOG_TARGETS": "", "PSX_WATCHDOG_RECIPIENTS": "{}"}
        ),
    )
    topic: Any = boto3.client("sns").create_topic(Name="alarms")
    asking = json.dumps({"PSX_PROBE_ASKING_KEY": "k"})
    boto3.client("secretsmanager").create_secret(Name="psx/test/probe-asking", SecretString=asking)
    monkeypatch.setenv("PSX_SECRETS", "psx/test/watchdog,psx/test/probe-asking")
    monkeypatch.setenv("PSX_ALERT_TOPIC", topic["TopicArn"])
    monkeypatch.setenv("PSX_API_BASE_URL", "http://127.0.0.1:9")
    assert run("watchdog", watchdog.handler)["opened"] == []
    assert run("watchdog", watchdog.handler)["opened"] == ["watchdog.control_target."]
    monkeypatch.setattr(watchdog, "fetch", lambda *a, **k: Fetched("203.0.113.9", body_bytes=1))
    targets = '[{"place": "eu", "name": "t", "address": "a", "port": 1}]'
    boto3.client("secretsmanager").put_secret_value(
        SecretId="psx/test/watchdog",
        SecretString=json.dumps({"PSX_WATCHDOG_API_KEY": "psx_0", "PSX_WATCHDOG_TARGETS": targets}),
    )
    assert run("watchdog", watchdog.handler)["closed"] == ["watchdog.control_target."]


def test_ended_keys_are_turned_off_and_settled_within_the_jobs_role(dynamo: SyncDynamo) -> None:
    table, now = "psx-test-access", now_ms()
    late = replace(GOOD, pak_id=PakId("p2"), secret_hash="h2", expires_at_ms=now - 1)
    deleted = replace(
        GOOD, drawn_bytes=80, enabled=False, disabled_reason=DisabledReason.DELETED, expires_at_ms=now - 1
    )
    dynamo.run(transact(credit_items(table, deleted.account_id, "c1", 100, {})))
    for pak in (late, deleted):
        dynamo.run(mint_pak(table, pak))
    dynamo.run(transact([settle_later_item(table, deleted, now - SETTLE_AFTER_MS - 1)]))
    report = run("end-keys", end_keys.handler)
    assert (report["expired"], report["settled"], report["given_back_bytes"], report["failures"]) == (
        1,
        1,
        80,
        [],
    )


def test_leases_are_kept_within_the_jobs_role(dynamo: SyncDynamo, valkey_url: str) -> None:
    """One is used, one nobody used, one whose key is gone, one that is to rotate."""
    redis, table, now = SyncRedis(valkey_url), "psx-test-access", now_ms()
    dynamo.run(mint_pak(table, GOOD))
    redis.run(put_presence(presence("d1")))
    stays = replace(LEASE, pak_id=GOOD.pak_id, created_at_ms=now - 600_000, expires_at_ms=now + 600_000)
    used = replace(stays, lease_id="l00000000001", expires_at_ms=now + 60_000, endpoint_id=EndpointId("d2"))
    idle = replace(stays, lease_id="l00000000002", expires_at_ms=now - 1)
    keyless = replace(stays, lease_id="l00000000003", pak_id=PakId("gone"))
    rotating = replace(stays, lease_id="l00000000004", rotation=Rotation.AUTO5, endpoint_id=EndpointId("d4"))
    for lease in (stays, used, idle, keyless, rotating):
        assert dynamo.run(transact(create_items(table, lease, 9))) is None
    leasing = Leasing(dynamo, redis, table, lambda: now)
    for lease in (replace(used, expires_at_ms=now + 120_000), rotating):
        redis.run(list_endpoint(peer(lease.endpoint_id)))
        redis.run(put_presence(presence(lease.endpoint_id)))
        assert leasing.hold(lease) == lease.endpoint_id
    redis.close()
    report = run("keep-leases", keep_leases.handler)
    assert report == {
        "leases": 5, "put_back": 1, "idle": 1, "keyless": 1, "moved": 0, "rotated": 1, "failures": [],
    }  # fmt: skip
    kept = dynamo.run(get_lease(table, used.lease_id))
    assert kept is not None
    assert kept.expires_at_ms == now + 120_000


def test_the_roll_up_applies_batches_and_proves_devices_within_its_role(
    dynamo: SyncDynamo, valkey_url: str
) -> None:
    redis = SyncRedis(valkey_url)
    enrol(ListingRun(dynamo, redis, lambda name: f"psx-test-{name}"), "d1", PASS)
    redis.close()
    mint(dynamo, "p1")
    dynamo.run(write_setting("psx-test-guard", "rates", RATES, NOW))
    dynamo.run(put_batch("psx-test-usage", batch(0, line("d1", 10, 20))))
    first, second = (run("roll-up", roll_up.handler) for _ in range(2))
    assert (first["applied"], first["proven"]) == (1, 1)
    assert (second["applied"], second["proven"]) == (0, 0)
    dynamo.run(put("psx-test-usage", spoil(lines="")))
    dynamo.run(put_batch("psx-test-usage", batch(1, line("d1", 10, 20))))
    with pytest.raises(roll_up.SpoiledBatches, match="batch#evil"):
        run("roll-up", roll_up.handler)
    (told,) = all_incidents(dynamo, "psx-test-guard")
    assert (told.kind, "batch#evil" in told.message) == ("spoiled_batch", True)
    assert run("roll-up", roll_up.handler)["applied"] == 0
    assert len(standing_incidents(dynamo, "psx-test-guard")) == 1, "the row still waits for a human"
    dynamo.run(put("psx-test-usage", spoil() | {"fault": "told before"}))  # mended by a human
    other = Incident("spoiled#batch#old 3: as it was named once", "spoiled_batch", "a human's to close", NOW)
    dynamo.run(open_incident("psx-test-guard", other))
    assert run("roll-up", roll_up.handler)["applied"] == 1
    assert [i.name for i in standing_incidents(dynamo, "psx-test-guard")] == [other.name]


def test_ghosts_are_dropped_within_the_jobs_role(
    dynamo: SyncDynamo, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = SyncRedis(valkey_url)
    enrol(ListingRun(dynamo, redis, lambda name: f"psx-test-{name}"), "ghost", kind=Kind.AGENT)
    redis.close()
    assert run("drop-ghosts", drop_ghosts.handler)["dropped"] == 0
    monkeypatch.setattr(drop_ghosts, "now_ms", lambda: 10**13)
    assert run("drop-ghosts", drop_ghosts.handler)["dropped"] == 1


def test_address_data_without_a_bucket_is_left_alone_within_its_role(dynamo: SyncDynamo) -> None:
    assert "skipped" in run("refresh-ip-data", refresh_ip_data.handler)


def test_address_data_is_published_by_the_job_and_fetched_by_the_api_within_their_roles(
    dynamo: SyncDynamo, lab_files: LabFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSX_IP_DATA_BUCKET", BUCKET)
    bucket: Any = boto3.client("s3")
    bucket.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    settings = ApiSettings.model_construct(
        asn_mmdb=tmp_path / "data" / "asn.mmdb",
        country_mmdb=tmp_path / "data" / "country.mmdb",
        ip_data_bucket=BUCKET,
    )
    with as_function("api"):
        early = open_origins(settings)
    assert early.lookup(PHONE).country == UNKNOWN_COUNTRY
    nothing = dict.fromkeys(("asn", "country"), "nothing uploaded")
    assert run("refresh-ip-data", refresh_ip_data.handler) == nothing
    bucket.put_object(Bucket=BUCKET, Key="incoming/asn.mmdb", Body=b"no database")
    bucket.upload_file(str(lab_files.country_mmdb), BUCKET, "incoming/country.mmdb")
    report = run("refresh-ip-data", refresh_ip_data.handler)
    assert (report["asn"], report["country"]) == ("refused: is no MMDB file", "published")
    with as_function("api"):
        origins = open_origins(settings)
    early.follow()
    for reader in (early, origins):
        assert reader.lookup(PHONE).country != UNKNOWN_COUNTRY
        assert reader.lookup(PHONE).asn == 0
        reader.close()
