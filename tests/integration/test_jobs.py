"""The jobs as they are deployed: their handlers, their settings, the roles that they run with."""

from collections.abc import Iterator
from typing import Any

import pytest

from functions.jobs import list_exits, refresh_ip_data, roll_up
from functions.jobs.wiring import wiring
from shared.grading.listing import ListingRun
from shared.guard.table import write_setting
from shared.metering.table import put_batch
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis
from tests.contract.test_listing import FAIL, PASS, enrol, probe
from tests.support.permissions import as_function
from tests.unit.settlement.test_settlement import NOW, RATES, batch, line, mint

pytestmark = pytest.mark.slow


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
    enrol(ListingRun(dynamo, redis, lambda name: f"psx-test-{name}"), "good", PASS, PASS)
    assert run("list-exits", list_exits.handler)["newly_listed"] == ["good"]
    redis.close()


def test_the_listing_job_brakes_within_its_role(dynamo: SyncDynamo, valkey_url: str) -> None:
    redis = SyncRedis(valkey_url)
    listing = ListingRun(dynamo, redis, lambda name: f"psx-test-{name}")
    for number in range(7):
        enrol(listing, f"m{number}", PASS, PASS)
    assert run("list-exits", list_exits.handler)["listed"] == 7
    for number in range(7):
        probe(listing, f"m{number}", FAIL, FAIL, FAIL)
    assert len(run("list-exits", list_exits.handler)["braked"]) == 1
    redis.close()


def test_the_roll_up_applies_batches_within_its_role(dynamo: SyncDynamo) -> None:
    mint(dynamo, "p1")
    dynamo.run(write_setting("psx-test-guard", "rates", RATES, NOW))
    dynamo.run(put_batch("psx-test-usage", batch(0, line("d1", 10, 20))))
    assert run("roll-up", roll_up.handler)["applied"] == 1
    assert run("roll-up", roll_up.handler)["applied"] == 0


def test_address_data_without_a_bucket_is_left_alone_within_its_role(dynamo: SyncDynamo) -> None:
    assert "skipped" in run("refresh-ip-data", refresh_ip_data.handler)
