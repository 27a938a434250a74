"""The listing run against both stores: only differences are written, the brake holds, a lost Redis heals."""

from collections.abc import Iterator

import pytest

from shared.grading import table as grades
from shared.grading.listing import ListingRun
from shared.grading.live import enqueue_probe, forget_probe, report_fault, take_due
from shared.grading.model import Failure, Grade, ProbeResult
from shared.grading.rules import add_result
from shared.guard.table import open_incidents
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId
from shared.pool import live
from shared.pool.numbers import derive, run
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis, command
from shared.supply import table as devices
from shared.supply.model import Consent, Device, Kind, Modem, Origin, OwnerConsent
from shared.supply.owners import change_owner, owner_consent_row
from tests.contract.test_pool_live import presence

pytestmark = pytest.mark.slow
OWNER = AccountId("psx_s")
NOW = 1_800_000_000_000
PASS = ProbeResult(
    NOW,
    throughput_kbps=2000,
    exit_country=Country("us"),
    exit_ip_type=IpType.MOBILE,
    exit_asn=1,
    exit_isp="X",
)
FAIL = ProbeResult(NOW, failure=Failure.CONNECT_REFUSED)


@pytest.fixture
def redis(any_valkey_url: str) -> Iterator[SyncRedis]:
    executor = SyncRedis(any_valkey_url)
    yield executor
    executor.close()


@pytest.fixture
def listing(dynamo: SyncDynamo, redis: SyncRedis) -> ListingRun:
    return ListingRun(dynamo, redis, lambda name: f"psx-test-{name}")


def enrol(
    listing: ListingRun, name: str, *results: ProbeResult, kind: Kind = Kind.MODEM, consent: bool = True
) -> None:
    device = Device(
        DeviceId(name),
        OWNER,
        name,
        kind,
        Origin(Country("de"), IpType.RESIDENTIAL),
        "lab",
        "eu",
        NOW,
        consent=Consent("2026-11", "sdk", NOW) if consent else None,
        modem=Modem("127.0.0.1", 1, "sealed") if kind is Kind.MODEM else None,
    )
    listing.dynamo.run(devices.create("psx-test-devices", device))
    probe(listing, name, *results)


def probe(listing: ListingRun, name: str, *results: ProbeResult) -> None:
    for result in results:
        before = listing.dynamo.run(grades.get_grade("psx-test-grades", DeviceId(name))) or Grade(
            DeviceId(name)
        )
        assert listing.dynamo.run(grades.put_result("psx-test-grades", add_result(before, result)))


def test_what_works_is_listed_once_as_its_exit_was_seen(listing: ListingRun) -> None:
    enrol(listing, "good", PASS, PASS)
    enrol(listing, "bad", FAIL)
    enrol(listing, "new", kind=Kind.AGENT)
    report = listing.run(NOW)
    assert (report.devices, report.listed, report.newly_listed) == (3, 1, ["good"])
    assert report.reasons == {"listed": 1, "failing": 1, "not_probed": 1}
    assert run(listing.redis, derive()).stock_of(Pool.MBL) == {"us": 1}
    again = listing.run(NOW)
    assert (again.newly_listed, again.delisted, again.healed) == ([], [], 0)


def test_three_failures_take_an_exit_off_with_its_reason(listing: ListingRun) -> None:
    enrol(listing, "m", PASS, PASS)
    listing.run(NOW)
    probe(listing, "m", FAIL, FAIL, FAIL)
    assert listing.run(NOW).delisted == ["m: failing"]
    assert run(listing.redis, derive()).stock_of(Pool.MBL) == {}
    grade = listing.dynamo.run(grades.get_grade("psx-test-grades", DeviceId("m")))
    assert grade is not None
    assert (grade.listed, grade.reason) == (False, "failing")
    probe(listing, "m", PASS, PASS)
    assert listing.run(NOW).newly_listed == ["m"]


def test_a_peer_is_listed_while_it_is_online(listing: ListingRun) -> None:
    enrol(listing, "p", PASS, PASS, kind=Kind.SDK)
    assert listing.run(NOW).reasons == {"offline": 1}
    for call in [live.put_presence(presence("p"))]:
        listing.redis.run(call)
    assert listing.run(NOW).newly_listed == ["p"]


def test_consent_of_the_account_counts_for_its_devices(listing: ListingRun) -> None:
    enrol(listing, "m", PASS, PASS, consent=False)
    assert listing.run(NOW).reasons == {"no_consent": 1}
    given = OwnerConsent("2026-11", NOW, "key 1", 1)
    listing.dynamo.run(change_owner("psx-test-devices", OWNER, {"consent": owner_consent_row(given)}))
    assert listing.run(NOW).newly_listed == ["m"]


def test_a_redis_that_lost_everything_is_healed_from_the_truth(listing: ListingRun) -> None:
    enrol(listing, "m", PASS, PASS)
    listing.run(NOW)
    listing.redis.run(command("FLUSHALL", parse=bool))
    report = listing.run(NOW)
    assert (report.newly_listed, report.healed) == ([], 1)
    assert run(listing.redis, derive()).stock_of(Pool.MBL) == {"us": 1}


def test_what_the_truth_does_not_know_is_taken_off(listing: ListingRun) -> None:
    enrol(listing, "m", PASS, PASS)
    listing.run(NOW)
    listing.redis.run(command("SADD", "{mbl}:listed:any", "ghost", parse=int))
    assert listing.run(NOW).healed == 1


def test_the_brake_keeps_the_shelf_when_too_much_fails_at_once(listing: ListingRun) -> None:
    names = [f"m{n}" for n in range(7)]
    for name in names:
        enrol(listing, name, PASS, PASS)
    assert listing.run(NOW).listed == 7
    for name in names:
        probe(listing, name, FAIL, FAIL, FAIL)
    report = listing.run(NOW)
    assert (report.delisted, len(report.braked)) == ([], 1)
    assert run(listing.redis, derive()).stock_of(Pool.MBL) == {"us": 7}
    assert len(listing.dynamo.run(open_incidents("psx-test-guard", 10)).rows) == 1


def test_due_probes_are_leased_and_come_back(redis: SyncRedis) -> None:
    redis.run(enqueue_probe(DeviceId("a"), 100))
    redis.run(enqueue_probe(DeviceId("b"), 200))
    assert redis.run(take_due(150, 1000, 10)) == ("a",)
    assert redis.run(take_due(150, 1000, 10)) == ()
    assert redis.run(take_due(1150, 1000, 10)) == ("b", "a")
    redis.run(forget_probe(DeviceId("a")))
    assert redis.run(take_due(10**6, 1000, 10)) == ("b",)


def test_reported_faults_are_debounced(redis: SyncRedis) -> None:
    redis.run(enqueue_probe(DeviceId("a"), 10**9))
    assert redis.run(report_fault(DeviceId("a"), 100))
    assert not redis.run(report_fault(DeviceId("a"), 200))
    assert redis.run(take_due(100, 1000, 10)) == ("a",)
