"""Who is on sale: fast down, free of history up, and the owner's word before everything."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.grading import table as grades
from shared.grading.model import Failure, Grade, ProbeResult
from shared.grading.rules import (
    FAILURES_TO_DELIST,
    PASSES_TO_LIST,
    Listing,
    add_result,
    brake_allows,
    compare_body,
    decide_listing,
    probe_body,
    throughput_kbps,
    tier_of,
)
from shared.kernel.codes import IpType, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId
from shared.runtime.dynamo import SyncDynamo
from shared.supply.model import Consent, Device, Kind, Origin

TABLE = "psx-test-grades"
ID = DeviceId("d1")
DEVICE = Device(
    ID, AccountId("psx_s"), "n", Kind.AGENT, Origin(), "", "eu", 0, consent=Consent("1", "sdk", 1)
)
PASS = ProbeResult(1, throughput_kbps=2000)
FAIL = ProbeResult(1, failure=Failure.TLS_DROPPED)
ALTERED = ProbeResult(1, failure=Failure.BODY_MISMATCH)


def after(*results: ProbeResult, grade: Grade = Grade(ID)) -> Grade:  # noqa: B008 - frozen
    for result in results:
        grade = add_result(grade, result)
    return grade


def decide(
    grade: Grade | None, device: Device = DEVICE, *, online: bool = True, account: bool = False
) -> Listing:
    return decide_listing(
        grade, wanted=device.listing_wanted, consented=device.consent is not None or account, online=online
    )


@pytest.mark.parametrize(
    ("kbps", "tier"),
    [
        (None, SpeedTier.UNKNOWN),
        (0, SpeedTier.SLOW),
        (249, SpeedTier.SLOW),
        (250, SpeedTier.MEDIUM),
        (1000, SpeedTier.FAST),
    ],
)
def test_tiers_follow_throughput(kbps: int | None, tier: SpeedTier) -> None:
    assert tier_of(kbps) is tier


def test_throughput_means_nothing_for_a_small_body() -> None:
    assert throughput_kbps(1000, 1) is None
    assert throughput_kbps(128_000, 0) == 128_000
    assert throughput_kbps(128_000, 100) == 1280


def test_two_passes_in_a_row_list_and_one_does_not() -> None:
    assert decide(after(PASS)) is Listing.NOT_PROVEN
    assert decide(after(PASS, PASS)) is Listing.LISTED
    assert decide(after(PASS, FAIL, PASS)) is Listing.NOT_PROVEN


def test_a_listed_device_stays_until_three_failures_in_a_row() -> None:
    listed = replace(after(PASS, PASS), listed=True)
    assert decide(after(FAIL, FAIL, grade=listed)) is Listing.LISTED
    assert decide(after(FAIL, FAIL, FAIL, grade=listed)) is Listing.FAILING
    assert decide(after(FAIL, FAIL, PASS, FAIL, grade=listed)) is Listing.LISTED


def test_altered_content_takes_a_device_off_at_once_until_it_has_passed_twice() -> None:
    listed = replace(after(PASS, PASS), listed=True)
    assert decide(after(ALTERED, grade=listed)) is Listing.QUARANTINED
    assert decide(after(ALTERED, PASS, grade=listed)) is Listing.QUARANTINED
    assert decide(after(ALTERED, PASS, PASS, grade=listed)) is Listing.LISTED


def test_reasons_are_looked_at_in_their_order() -> None:
    good = after(PASS, PASS)
    assert decide(good, replace(DEVICE, listing_wanted=False, consent=None)) is Listing.OWNER_SAID_NO
    assert decide(good, replace(DEVICE, consent=None)) is Listing.NO_CONSENT
    assert decide(good, replace(DEVICE, consent=None), account=True) is Listing.LISTED
    assert decide(None) is Listing.NOT_PROBED
    assert decide(good, online=False) is Listing.OFFLINE
    assert decide(after(FAIL)) is Listing.FAILING


@given(st.lists(st.sampled_from([PASS, FAIL]), max_size=30), st.booleans())
def test_only_the_latest_run_of_results_counts(results: list[ProbeResult], listed: bool) -> None:
    grade = after(*results, grade=Grade(ID, listed=listed))
    tail_fails = next((n for n, r in enumerate(reversed(results)) if r is PASS), len(results))
    tail_passes = next((n for n, r in enumerate(reversed(results)) if r is FAIL), len(results))
    assert (grade.failures, grade.passes) == (tail_fails, tail_passes)
    verdict = decide(grade)
    if tail_fails >= FAILURES_TO_DELIST:
        assert verdict is Listing.FAILING
    if tail_passes >= PASSES_TO_LIST:
        assert verdict is Listing.LISTED


@pytest.mark.parametrize(
    ("count", "listed", "allowed"), [(5, 5, True), (6, 10, False), (10, 100, True), (11, 100, False)]
)
def test_one_run_may_not_empty_the_shelf(count: int, listed: int, allowed: bool) -> None:
    assert brake_allows(count, listed) is allowed


@given(st.text(max_size=10), st.integers(0, 500))
def test_probe_bodies_are_compared_to_the_byte(nonce: str, size: int) -> None:
    body = probe_body(nonce, size)
    assert len(body) == size
    assert compare_body(body, nonce, size) is None
    if size:
        assert compare_body(body[:-1], nonce, size) is Failure.BODY_SHORT
        assert compare_body(body[:-1] + bytes([body[-1] ^ 1]), nonce, size) is Failure.BODY_MISMATCH


def test_grades_are_written_once_per_version(dynamo: SyncDynamo) -> None:
    grade = after(ProbeResult(5, None, 1, 2, 3, 4, exit_ip_type=IpType.MOBILE))
    assert dynamo.run(grades.get_grade(TABLE, ID)) is None
    assert dynamo.run(grades.put_result(TABLE, grade))
    assert not dynamo.run(grades.put_result(TABLE, grade))
    stored = dynamo.run(grades.get_grade(TABLE, ID))
    assert stored == replace(grade, version=1)
    assert dynamo.run(grades.put_result(TABLE, after(FAIL, grade=stored)))
    assert dynamo.run(grades.all_grades(TABLE, 10, None)).rows[0].failures == 1


def test_listing_is_written_only_when_it_changes(dynamo: SyncDynamo) -> None:
    assert dynamo.run(grades.set_listed(TABLE, ID, listed=True, reason="listed")) is None
    dynamo.run(grades.put_result(TABLE, after(PASS)))
    changed = dynamo.run(grades.set_listed(TABLE, ID, listed=True, reason="listed"))
    assert changed is not None
    assert changed.listed
    assert dynamo.run(grades.set_listed(TABLE, ID, listed=True, reason="listed")) is None
    assert dynamo.run(grades.set_listed(TABLE, ID, listed=False, reason="offline")) is not None


def test_a_failed_probe_leaves_what_was_known_of_the_exit_and_a_passed_one_replaces_it() -> None:
    known = replace(
        PASS, exit_country=Country("us"), exit_ip_type=IpType.DATACENTER, exit_asn=64621, exit_isp="X"
    )
    failed = after(known, known, FAIL)
    assert failed.latest is not None
    assert failed.latest.failure is FAIL.failure
    assert (failed.latest.exit_ip_type, failed.latest.exit_asn) == (IpType.DATACENTER, 64621)
    unknown = after(known, PASS)
    assert unknown.latest is not None
    assert (unknown.latest.exit_ip_type, unknown.latest.exit_asn) == (IpType.UNKNOWN, 0)
