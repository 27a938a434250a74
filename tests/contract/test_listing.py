"""The listing run against both stores: only differences are written, the brake holds, a lost Redis heals."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.listing import device_row, fill, listed_row
from shared.grading import table as grades
from shared.grading.listing import SEGMENTS, ListingRun
from shared.grading.live import (
    DOUBT_WAITS_S,
    EVERYTHING,
    FAULT_WAITS_S,
    Leased,
    account_mark,
    ask_probe,
    device_mark,
    excuse_conduct,
    finish_probe,
    mark_changed,
    next_probe,
    queue_forgotten,
    queue_lengths,
    read_changed,
    report_fault,
    settle_changed,
    spent_bytes,
    take_due,
)
from shared.grading.model import Failure, Grade, ProbeResult
from shared.grading.rules import add_result
from shared.guard.service import all_incidents
from shared.guard.table import write_setting
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId
from shared.pool.numbers import derive, run
from shared.pool.presence import drop_presences, put_presence
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis, command
from shared.supply import table as devices
from shared.supply.model import Consent, Device, Kind, Modem, Origin, OwnerConsent
from shared.supply.owners import change_owner, owner_consent_row
from tests.support.pool import presence

pytestmark = pytest.mark.slow
OWNER = AccountId("psx_s")
NOW = 1_800_000_000_000
BUDGET = 1_000_000
CHANGED = "{probe}:changed"
PASS = ProbeResult(
    NOW,
    throughput_kbps=2000,
    exit_country=Country("us"),
    exit_ip_type=IpType.MOBILE,
    exit_asn=1,
    exit_isp="X",
    vantage="eu",
)
US = replace(PASS, vantage="us")
FAIL = ProbeResult(NOW, failure=Failure.CONNECT_REFUSED)


@pytest.fixture
def listing(dynoxide: SyncDynamo, redis: SyncRedis) -> ListingRun:
    return ListingRun(dynoxide, redis, lambda name: f"psx-test-{name}")


def enrol(
    listing: ListingRun, name: str, *results: ProbeResult, kind: Kind = Kind.MODEM, consent: bool = True
) -> None:
    device = modem(name) if consent else replace(modem(name), consent=None)
    if kind is not Kind.MODEM:
        device = replace(device, kind=kind, modem=None)
    listing.dynamo.run(devices.create("psx-test-devices", device))
    probe(listing, name, *results)


def modem(name: str, modem_host: str = "127.0.0.1", modem_port: int = 1, sealed: str = "sealed") -> Device:
    """A device of a farm whose owner agreed."""
    return Device(
        DeviceId(name),
        OWNER,
        name,
        Kind.MODEM,
        Origin(Country("de"), IpType.RESIDENTIAL),
        "lab",
        "eu",
        NOW,
        consent=Consent("2026-11", "sdk", NOW),
        modem=Modem(modem_host, modem_port, sealed),
    )


def probe(listing: ListingRun, name: str, *results: ProbeResult) -> None:
    for result in results:
        before = listing.dynamo.run(grades.get_grade("psx-test-grades", DeviceId(name))) or Grade(
            DeviceId(name)
        )
        assert listing.dynamo.run(grades.put_result("psx-test-grades", add_result(before, result)))


def test_what_works_is_listed_once_as_its_exit_was_seen(listing: ListingRun) -> None:
    enrol(listing, "good", PASS, US)
    enrol(listing, "bad", FAIL)
    enrol(listing, "new", kind=Kind.AGENT)
    report = listing.run(NOW)
    assert (report.devices, report.listed, report.newly_listed) == (3, 1, ["good"])
    assert report.reasons == {"listed": 1, "failing": 1, "not_probed": 1}
    assert run(listing.redis, derive()).stock_of(Pool.MBL) == {"us": 1}
    again = listing.run(NOW)
    assert (again.newly_listed, again.delisted, again.healed) == ([], [], 0)
    assert (again.changed, again.refreshed, again.left) == (0, 0, 0)


def test_three_failures_take_an_exit_off_with_its_reason(
    listing: ListingRun, caplog: pytest.LogCaptureFixture
) -> None:
    enrol(listing, "m", PASS, US)
    listing.run(NOW)
    probe(listing, "m", FAIL, FAIL, FAIL)
    caplog.set_level("INFO", "psx.listing")
    caplog.clear()
    assert listing.run(NOW).delisted == ["m: failing"]
    assert [(r.device, r.verdict) for r in caplog.records if r.name == "psx.listing"] == [("m", "failing")]  # type: ignore[attr-defined]
    assert run(listing.redis, derive()).stock_of(Pool.MBL) == {}
    grade = listing.dynamo.run(grades.get_grade("psx-test-grades", DeviceId("m")))
    assert grade is not None
    assert (grade.listed, grade.reason) == (False, "failing")
    probe(listing, "m", PASS, US)
    assert listing.run(NOW).newly_listed == ["m"]


def test_a_peer_is_listed_while_it_is_online(listing: ListingRun) -> None:
    enrol(listing, "p", PASS, US, kind=Kind.SDK)
    assert listing.run(NOW).reasons == {"offline": 1}
    for call in [put_presence(presence("p"))]:
        listing.redis.run(call)
    assert listing.run(NOW).newly_listed == ["p"]


def test_consent_of_the_account_counts_for_its_devices(listing: ListingRun) -> None:
    enrol(listing, "m", PASS, US, consent=False)
    assert listing.run(NOW).reasons == {"no_consent": 1}
    given = OwnerConsent("2026-11", NOW, "key 1", 1)
    listing.dynamo.run(change_owner("psx-test-devices", OWNER, {"consent": owner_consent_row(given)}))
    assert listing.run(NOW).newly_listed == ["m"]


def test_a_redis_that_lost_everything_is_healed_from_the_truth(listing: ListingRun) -> None:
    enrol(listing, "m", PASS, US)
    listing.run(NOW)
    listing.redis.run(command("FLUSHALL", parse=bool))
    report = listing.run(NOW, sweep=False)
    assert (report.newly_listed, report.rebuilt, report.healed, report.queued) == ([], 1, 0, 1)
    assert (report.swept, report.left) == (SEGMENTS, 0), (
        "and compared with the truth, by as many runs as that takes"
    )
    assert run(listing.redis, derive()).stock_of(Pool.MBL) == {"us": 1}


def test_what_the_truth_does_not_know_is_taken_off(listing: ListingRun) -> None:
    enrol(listing, "m", PASS, US)
    listing.run(NOW)
    listing.redis.run(command("SADD", "{mbl}:listed:any", "ghost", parse=int))
    assert listing.run(NOW).healed == 1


def test_the_brake_keeps_the_shelf_when_too_much_fails_at_once(listing: ListingRun) -> None:
    names = [f"m{n}" for n in range(7)]
    for name in names:
        enrol(listing, name, PASS, US)
    assert listing.run(NOW).listed == 7
    for name in names:
        probe(listing, name, FAIL, FAIL, FAIL)
    report = listing.run(NOW)
    assert (report.delisted, len(report.braked)) == ([], 1)
    assert run(listing.redis, derive()).stock_of(Pool.MBL) == {"us": 7}
    assert len(all_incidents(listing.dynamo, "psx-test-guard")) == 1


def test_the_brake_counts_what_exits_did_apart_from_what_the_network_did(
    listing: ListingRun, redis: SyncRedis
) -> None:
    names = [f"p{n}" for n in range(12)]
    for name in names:
        enrol(listing, name, PASS, US, kind=Kind.SDK)
        redis.run(put_presence(presence(name)))
    assert listing.run(NOW).listed == 12
    for name in names[:5]:
        probe(listing, name, FAIL, FAIL, FAIL)
    for name in names[5:]:
        redis.run(drop_presences([DeviceId(name)], presence(name).relay_id))
    report = listing.run(NOW)
    assert sorted(report.delisted) == [f"p{n}: failing" for n in range(5)]
    assert [text for text in report.braked if "(network)" in text] == report.braked
    assert report.listed == 7
    opened = all_incidents(listing.dynamo, "psx-test-guard")
    assert [(i.kind, i.closed_at_ms) for i in opened] == [("listing_brake", None)]
    for name in names[5:]:
        redis.run(put_presence(presence(name)))
    assert listing.run(NOW + 1).braked == []
    assert all_incidents(listing.dynamo, "psx-test-guard")[0].closed_at_ms == NOW + 1


def test_an_owners_word_is_carried_out_whatever_the_brake_says(listing: ListingRun) -> None:
    for number in range(8):
        enrol(listing, f"m{number}", PASS, US)
    assert listing.run(NOW).listed == 8
    no = {"listing_all": False, "listing_all_ms": NOW + 1}
    listing.dynamo.run(change_owner("psx-test-devices", OWNER, no))
    listing.redis.run(mark_changed([account_mark(OWNER)]))
    report = listing.run(NOW, sweep=False)
    assert (report.listed, report.braked, report.reasons) == (0, [], {"owner_said_no": 8})


def test_without_a_sweep_only_what_was_marked_is_looked_at(listing: ListingRun, redis: SyncRedis) -> None:
    for name in ("a", "b"):
        enrol(listing, name, PASS, US)
    listing.run(NOW)
    for name in ("a", "b"):
        probe(listing, name, FAIL, FAIL, FAIL)
    redis.run(mark_changed([device_mark(DeviceId("a"))]))
    report = listing.run(NOW, sweep=False)
    assert (report.devices, report.delisted, report.swept) == (1, ["a: failing"], 0)
    assert redis.run(read_changed(10)) == {}
    redis.run(mark_changed([EVERYTHING]))
    report = listing.run(NOW, sweep=False)
    assert (report.devices, report.delisted, report.swept) == (2, ["b: failing"], SEGMENTS)
    assert redis.run(read_changed(10)) == {}


def test_everything_is_looked_at_by_as_many_runs_as_it_takes(
    listing: ListingRun, dynoxide: SyncDynamo, redis: SyncRedis
) -> None:
    """A fleet whose sweep takes longer than a run, and a setting that changed meanwhile."""
    enrol(listing, "a", PASS, US)
    listing.run(NOW)
    redis.run(mark_changed([EVERYTHING]))
    clock = iter(range(10_000))
    slow = ListingRun(dynoxide, redis, listing.table, elapsed_s=lambda: float(next(clock)))
    reports = [slow.run(NOW, sweep=False)]
    while reports[-1].left:
        reports.append(slow.run(NOW, sweep=False))
        assert len(reports) < 10
    assert len(reports) > 3
    assert sum(report.swept for report in reports) >= SEGMENTS > reports[0].swept
    assert redis.run(read_changed(10)) == {}


def test_a_setting_of_another_version_keeps_nothing_from_being_listed(listing: ListingRun) -> None:
    listing.dynamo.run(write_setting("psx-test-guard", "grading", {"of_a_later_version": 1}, 1))
    enrol(listing, "a", PASS, US)
    assert listing.run(NOW).listed == 1


def test_what_was_marked_is_counted_with_the_rest_of_the_fleet(listing: ListingRun, redis: SyncRedis) -> None:
    for name in ("a", "b"):
        enrol(listing, name, PASS, US)
    redis.run(mark_changed([device_mark(DeviceId("a"))]))
    listing.run(NOW)
    assert run(redis, derive()).fleet == {"devices": 2, "verdict.listed": 2, "tier.fast": 2}


def test_what_the_brake_holds_stays_marked(listing: ListingRun, redis: SyncRedis) -> None:
    for number in range(7):
        enrol(listing, f"m{number}", PASS, US)
    listing.run(NOW)
    for number in range(7):
        probe(listing, f"m{number}", FAIL, FAIL, FAIL)
    redis.run(mark_changed([device_mark(DeviceId(f"m{n}")) for n in range(7)]))
    assert listing.run(NOW, sweep=False).left == 7
    assert len(redis.run(read_changed(10))) == 7


def test_two_runs_at_once_write_each_change_once(listing: ListingRun) -> None:
    for number in range(6):
        enrol(listing, f"m{number}", PASS, US)
    with ThreadPoolExecutor(2) as threads:
        reports = list(threads.map(listing.run, [NOW, NOW]))
    assert {r.listed for r in reports} <= set(range(7))
    assert run(listing.redis, derive()).stock_of(Pool.MBL) == {"us": 6}
    again = listing.run(NOW)
    assert (again.changed, again.refreshed, again.healed) == (0, 0, 0)


def test_a_tier_that_changed_is_sold_as_it_is_now(listing: ListingRun) -> None:
    enrol(listing, "m", PASS, US)
    listing.run(NOW)
    probe(listing, "m", replace(PASS, throughput_kbps=100))
    report = listing.run(NOW)
    assert (report.refreshed, report.newly_listed) == (1, [])
    assert run(listing.redis, derive()).quality["mbl"]["us"] == {"slow": 1, "paused": 0}


def test_an_owners_hours_are_carried_out_when_they_begin_and_end(
    listing: ListingRun, redis: SyncRedis
) -> None:
    """However many devices that is: no brake holds what an owner wishes. Nobody marks anything when the hours change."""
    for number in range(8):
        enrol(listing, f"m{number}", PASS, US)
    hours = {"begins": 22 * 60, "ends": 6 * 60, "zone": "Europe/Berlin"}
    listing.dynamo.run(change_owner("psx-test-devices", OWNER, {"hours": hours}))
    noon, night = 1_800_010_800_000, 1_800_050_400_000  # 12:00 and 23:00 in Berlin on 15 January 2027
    assert listing.run(noon).reasons == {"outside_the_owners_hours": 8}
    assert listing.run(night).listed == 8
    assert listing.run(noon).listed == 0
    (again_at,) = redis.run(
        command("ZMSCORE", CHANGED, f"hours:{OWNER}", parse=lambda a: [int(n) for n in a])
    )
    in_ms = again_at - redis_now(redis)
    assert abs(in_ms - 10 * 3_600_000) < 60_000, "it is looked at again when the hours begin"
    redis.run(command("ZADD", CHANGED, 1, f"hours:{OWNER}", parse=int))
    assert listing.run(night, sweep=False).listed == 8
    (again_at,) = redis.run(
        command("ZMSCORE", CHANGED, f"hours:{OWNER}", parse=lambda a: [int(n) for n in a])
    )
    assert abs(again_at - redis_now(redis) - 7 * 3_600_000) < 60_000, "and when they end"


def redis_now(redis: SyncRedis) -> int:
    return redis.run(command("TIME", parse=lambda a: int(a[0]) * 1000))


def test_a_thousand_that_fail_at_once_stay_on_sale_until_somebody_looked(
    dynoxide: SyncDynamo, valkey_url: str
) -> None:
    """And when most of them work again, the others go: the brake asks how many in one run."""
    redis = SyncRedis(valkey_url)
    listing = ListingRun(dynoxide, redis, lambda name: f"psx-test-{name}")
    modems = [replace(modem(f"m{n:04d}"), proven_at_ms=NOW) for n in range(1_000)]
    good = add_result(add_result(Grade(DeviceId("")), PASS), US)
    bad = add_result(add_result(add_result(replace(good, listed=True), FAIL), FAIL), FAIL)

    def now_all(found: list[Device], grade: Grade) -> None:
        rows = [listed_row(one, replace(grade, device_id=one.device_id)) for one in found]
        fill(dynoxide, [("psx-test-grades", row) for row in rows])
        redis.run(mark_changed([device_mark(one.device_id) for one in found]))

    fill(dynoxide, [("psx-test-devices", device_row(one)) for one in modems])
    now_all(modems, good)
    assert listing.run(NOW).listed == 1_000
    now_all(modems, bad)
    report = listing.run(NOW, sweep=False)
    assert (report.delisted, len(report.braked), report.left, report.listed) == ([], 1, 1_000, 1_000)
    now_all(modems[100:], good)
    report = listing.run(NOW + 20_000, sweep=False)
    assert (len(report.delisted), report.braked, report.left, report.listed) == (100, [], 0, 900)
    closed = [i.closed_at_ms for i in all_incidents(dynoxide, "psx-test-guard")]
    assert closed == [NOW + 20_000]
    redis.close()


def test_a_clock_that_jumps_takes_nothing_off_sale(listing: ListingRun) -> None:
    for name in ("a", "b"):
        enrol(listing, name, PASS, US)
    for now in (NOW, NOW - 86_400_000, NOW + 30 * 86_400_000, 0):
        report = listing.run(now)
        assert (report.listed, report.delisted, report.left) == (2, [], 0), now


def test_a_redis_that_is_flushed_in_the_middle_of_a_run_is_whole_after_the_next(
    listing: ListingRun, redis: SyncRedis
) -> None:
    for number in range(6):
        enrol(listing, f"m{number}", PASS, US)
    listing.run(NOW)
    probe(listing, "m0", FAIL, FAIL, FAIL)

    class Flushes:
        """DynamoDB, and a Redis that loses everything just before something is written."""

        def run(self, request: Any) -> Any:
            if request.operation == "update_item":
                redis.run(command("FLUSHALL", parse=bool))
            return listing.dynamo.run(request)

    ListingRun(Flushes(), redis, listing.table, at_once=1).run(NOW)
    assert listing.run(NOW + 20_000).delisted == []
    assert run(redis, derive()).stock_of(Pool.MBL) == {"us": 5}
    again = listing.run(NOW + 40_000)
    assert (again.changed, again.healed, again.rebuilt) == (0, 0, 0)


def test_ghosts_are_looked_for_all_over_the_shelf_a_part_at_a_time(
    listing: ListingRun, redis: SyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.grading.listing.GHOSTS_PER_RUN", 1)
    ghosts = [f"ghost{n}" for n in range(3_000)]
    redis.run(command("SADD", "{mbl}:listed:any", *ghosts, parse=int))
    healed = [listing.run(NOW).healed for _ in range(8)]
    assert sum(healed) == 3_000
    assert max(healed) < 3_000, "no run looks at everything"


# The queue of probes


def finish(redis: SyncRedis, device_id: str, ends_ms: int, next_ms: int | None, spent: int = 0) -> bool:
    return redis.run(finish_probe(DeviceId(device_id), ends_ms, next_ms, "2026-11-21", spent))


def take(redis: SyncRedis, limit: int, lease_ms: int = 60_000) -> Leased:
    return redis.run(take_due(lease_ms, limit, "2026-11-21", BUDGET))


def test_due_probes_are_leased_to_one_and_taken_over_when_it_dies(redis: SyncRedis) -> None:
    redis.run(ask_probe(DeviceId("a"), -1000))
    redis.run(ask_probe(DeviceId("b"), 60_000))
    taken = take(redis, 10)
    assert taken.device_ids == ("a",)
    assert take(redis, 10).device_ids == ()
    assert finish(redis, "a", taken.ends_ms, -1)
    dying = take(redis, 10, -1)
    heir = take(redis, 10)
    assert (dying.device_ids, heir.device_ids) == (("a",), ("a",))
    assert not finish(redis, "a", dying.ends_ms, 0), "the dead one's word does not count any more"
    assert take(redis, 10).device_ids == ()
    assert finish(redis, "a", heir.ends_ms, None)
    assert redis.run(next_probe(DeviceId("a"))) is None


def test_a_fault_reported_during_a_probe_is_probed_next_and_by_nobody_else_meanwhile(
    redis: SyncRedis,
) -> None:
    redis.run(ask_probe(DeviceId("a")))
    first = take(redis, 10)
    assert redis.run(report_fault(DeviceId("a")))
    assert take(redis, 10).device_ids == ()
    assert finish(redis, "a", first.ends_ms, 300_000)
    again = take(redis, 10)
    assert (again.device_ids, again.urgent) == (("a",), 1)


def test_the_stalest_comes_first_and_a_reported_one_before_all(redis: SyncRedis) -> None:
    for name, late_ms in (("new", 10), ("stale", 5_000), ("older", 3_000)):
        redis.run(ask_probe(DeviceId(name), -late_ms))
    redis.run(report_fault(DeviceId("hurt")))
    assert take(redis, 1).device_ids == ("hurt",)
    assert take(redis, 2).device_ids == ("stale", "older")
    assert take(redis, 2).device_ids == ("new",)


def test_reported_faults_are_debounced_per_device(redis: SyncRedis) -> None:
    assert redis.run(report_fault(DeviceId("a")))
    assert not redis.run(report_fault(DeviceId("a")))
    assert redis.run(report_fault(DeviceId("b")))


@pytest.mark.parametrize(
    ("key", "doubtful", "waits_s"),
    [("{probe}:soon:a", False, FAULT_WAITS_S), ("{probe}:maybe:a", True, DOUBT_WAITS_S)],
)
def test_probes_that_faults_ask_for_come_the_more_seldom_the_more_of_them_pass(
    redis: SyncRedis, key: str, doubtful: bool, waits_s: Sequence[int]
) -> None:
    fault = report_fault(DeviceId("a"), doubtful=doubtful)
    for asked, wait_s in enumerate((*waits_s, waits_s[-1]), 1):
        assert redis.run(fault), f"after {asked - 1} that passed"
        count, at_ms = redis.run(command("GET", key, parse=lambda raw: raw.decode().split()))
        assert int(count) == asked
        assert redis.run(command("TTL", key, parse=int)) > wait_s
        for ago_ms in (wait_s * 900, wait_s * 1000):
            assert not redis.run(fault)
            redis.run(command("SET", key, f"{count} {int(at_ms) - ago_ms}", "EX", 60, parse=bool))
    redis.run(excuse_conduct(DeviceId("a")))
    assert redis.run(fault), "one failed: the next fault is looked at without delay"


def test_a_word_of_an_older_version_about_a_fault_stops_no_report(redis: SyncRedis) -> None:
    redis.run(command("SET", "{probe}:soon:a", "1", "EX", 60, parse=bool))
    assert redis.run(report_fault(DeviceId("a")))


def test_nothing_is_urgent_on_a_line_whose_budget_of_the_day_is_spent(redis: SyncRedis) -> None:
    for name, spent in (("poor", BUDGET), ("rich", BUDGET - 1), ("lost", BUDGET)):
        redis.run(ask_probe(DeviceId(name), -1000))
        finish(redis, name, take(redis, 1).ends_ms, None if name == "lost" else 600_000, spent)
    for name in ("poor", "rich", "lost"):
        assert redis.run(report_fault(DeviceId(name)))
    due_ms = redis.run(command("ZSCORE", "{probe}:due", "poor", parse=float))
    found = take(redis, 10)
    assert (found.device_ids, found.urgent) == (("rich", "lost"), 1), "what is in no queue is due, not urgent"
    assert redis.run(command("ZSCORE", "{probe}:due", "poor", parse=float)) == due_ms
    assert redis.run(queue_lengths()).urgent == 0
    assert not redis.run(report_fault(DeviceId("poor"))), "no probe would end what customers' words begin"


def test_many_probers_share_the_queue_without_doubles(redis: SyncRedis) -> None:
    for number in range(200):
        redis.run(ask_probe(DeviceId(f"d{number}"), -number))
    with ThreadPoolExecutor(4) as threads:
        taken = list(threads.map(lambda _: take(redis, 7).device_ids, range(40)))
    ids = [device_id for part in taken for device_id in part]
    assert (len(ids), len(set(ids))) == (200, 200)


def test_what_a_device_spent_on_probes_is_counted_by_day(redis: SyncRedis) -> None:
    redis.run(ask_probe(DeviceId("a")))
    ends_ms = take(redis, 1).ends_ms
    finish(redis, "a", ends_ms, 1000, spent=20_000)
    finish(redis, "a", ends_ms, 1000, spent=5_000)
    assert redis.run(spent_bytes(DeviceId("a"), "2026-11-21")) == 25_000
    assert redis.run(spent_bytes(DeviceId("a"), "2026-11-22")) == 0


def test_only_what_no_prober_would_come_to_is_queued_again(redis: SyncRedis) -> None:
    redis.run(ask_probe(DeviceId("a"), 1_000))
    ids = [DeviceId(name) for name in "abc"]
    assert redis.run(queue_forgotten(ids, 60_000)) == 2
    assert redis.run(queue_forgotten(ids, 60_000)) == 0


def test_a_change_made_while_a_run_looks_is_not_settled_by_it(redis: SyncRedis) -> None:
    marks = [device_mark(DeviceId(name)) for name in "ab"]
    redis.run(mark_changed(marks, -1000))
    seen = redis.run(read_changed(10))
    redis.run(mark_changed(marks[:1]))
    assert redis.run(settle_changed(seen.items())) == 1
    left = redis.run(read_changed(10))
    assert list(left) == marks[:1]
