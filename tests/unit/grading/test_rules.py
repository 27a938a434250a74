"""Who is on sale: fast down, free of history up, and the owner's word before everything."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.grading import table as grades
from shared.grading.model import Cause, Failure, Grade, Phase, ProbePlan, ProbeResult, Stability, Thresholds
from shared.grading.rules import (
    ADVICE,
    DEFAULTS,
    LIGHT_BYTES,
    LONG_MEAN_BYTES,
    LONG_SHARE,
    LONG_SHARE_URGENT,
    MEASURE_EVERY_MS,
    MEASURING_BYTES,
    MIN_MEASURED_BYTES,
    Listing,
    add_result,
    brake_allows,
    choose_plan,
    compare_body,
    decide_listing,
    is_light,
    is_worth_writing,
    next_probe_ms,
    parse_thresholds,
    probe_body,
    stability_score,
    stored_thresholds,
    throughput_kbps,
    tier_of,
    wants_attention,
    watch_address,
)
from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId
from shared.pool.model import Endpoint
from shared.runtime.dynamo import SyncDynamo
from shared.supply.model import Consent, Device, Kind, Origin

TABLE = "psx-test-grades"
ID = DeviceId("d1")
DEVICE = Device(
    ID, AccountId("psx_s"), "n", Kind.AGENT, Origin(), "", "eu", 0, consent=Consent("1", "sdk", 1)
)
PASS = ProbeResult(1, throughput_kbps=2000, vantage="eu")
US = replace(PASS, vantage="us")
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
        grade,
        wanted=device.listing_wanted,
        consented=device.consent is not None or account,
        online=online,
        now_ms=1,
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
    assert decide(after(PASS, US)) is Listing.LISTED
    assert decide(after(PASS, FAIL, US)) is Listing.NOT_PROVEN


def test_the_first_listing_needs_two_places_and_a_later_one_does_not() -> None:
    assert decide(after(PASS, PASS, PASS)) is Listing.NOT_PROVEN
    assert decide(after(PASS, PASS, US)) is Listing.LISTED
    assert decide(after(PASS, US, FAIL, US)) is Listing.NOT_PROVEN
    known = Grade(ID, listed_before=True)
    assert decide(after(FAIL, PASS, PASS, grade=known)) is Listing.LISTED


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
    good = after(PASS, US)
    assert decide(good, replace(DEVICE, listing_wanted=False, consent=None)) is Listing.OWNER_SAID_NO
    assert decide(good, replace(DEVICE, consent=None)) is Listing.NO_CONSENT
    assert decide(good, replace(DEVICE, consent=None), account=True) is Listing.LISTED
    assert decide(None) is Listing.NOT_PROBED
    assert decide(good, online=False) is Listing.OFFLINE
    assert decide(after(FAIL)) is Listing.FAILING


@given(st.lists(st.sampled_from([PASS, FAIL]), max_size=30), st.booleans())
def test_only_the_latest_run_of_results_counts(results: list[ProbeResult], listed: bool) -> None:
    grade = after(*results, grade=Grade(ID, listed=listed, listed_before=True))
    tail_fails = next((n for n, r in enumerate(reversed(results)) if r is PASS), len(results))
    tail_passes = next((n for n, r in enumerate(reversed(results)) if r is FAIL), len(results))
    assert (grade.failures, grade.passes) == (tail_fails, tail_passes)
    verdict = decide(grade)
    if tail_fails >= DEFAULTS.failures_to_delist:
        assert verdict is Listing.FAILING
    if tail_passes >= DEFAULTS.passes_to_list:
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
    failed = dynamo.run(grades.get_grade(TABLE, ID))
    assert failed is not None
    assert (failed.failures, failed.version) == (1, 2)


ENDPOINT = Endpoint(
    EndpointId(ID),
    Pool.PEER,
    AccountId("psx_s"),
    Country("de"),
    "lab",
    1,
    "X",
    IpType.MOBILE,
    SpeedTier.FAST,
    stability=50,
)


def test_listing_is_written_only_when_it_changes(dynamo: SyncDynamo) -> None:
    assert dynamo.run(grades.set_listed(TABLE, ENDPOINT)) is None
    dynamo.run(grades.put_result(TABLE, after(PASS)))
    changed = dynamo.run(grades.set_listed(TABLE, ENDPOINT))
    assert changed is not None
    assert (changed.listed, changed.listed_before, changed.reason) == (True, True, "listed")
    assert dynamo.run(grades.set_listed(TABLE, ENDPOINT)) is None
    slower = replace(ENDPOINT, tier=SpeedTier.SLOW)
    assert dynamo.run(grades.set_listed(TABLE, slower)) is not None
    page = dynamo.run(grades.on_shelf(TABLE, Pool.PEER, int(grades.shelf_of(Pool.PEER, ID)[-2:]), 10, None))
    assert page.rows == (slower,)
    unlisted = dynamo.run(grades.set_unlisted(TABLE, ID, "offline"))
    assert unlisted is not None
    assert (unlisted.listed, unlisted.listed_before, unlisted.goods) == (False, True, "")
    assert dynamo.run(grades.set_unlisted(TABLE, ID, "offline")) is None
    assert dynamo.run(grades.set_unlisted(TABLE, ID, "failing")) is not None
    page = dynamo.run(grades.on_shelf(TABLE, Pool.PEER, int(grades.shelf_of(Pool.PEER, ID)[-2:]), 10, None))
    assert page.rows == ()


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


# Properties: nothing that a history can hold changes what the rules promise

RESULTS = st.lists(
    st.sampled_from([PASS, US, FAIL, ALTERED, ProbeResult(1, Failure.PEER_OFFLINE)]), max_size=40
)


def stepped(results: list[ProbeResult], grade: Grade) -> tuple[Grade, int]:
    """The grade with a listing run after each result, and how often it went on or off sale."""
    changes = 0
    for result in results:
        grade = add_result(grade, result)
        listed = decide(grade) is Listing.LISTED
        changes += listed != grade.listed
        grade = replace(grade, listed=listed, listed_before=grade.listed_before or listed)
    return grade, changes


@given(RESULTS)
def test_after_any_history_two_passes_from_two_places_readmit(results: list[ProbeResult]) -> None:
    grade, _ = stepped(results, Grade(ID))
    assert stepped([PASS, US], grade)[0].listed


@given(RESULTS)
def test_after_any_history_three_failures_delist(results: list[ProbeResult]) -> None:
    grade, _ = stepped(results, Grade(ID))
    assert not stepped([FAIL] * DEFAULTS.failures_to_delist, grade)[0].listed
    assert not stepped([ALTERED], grade)[0].listed


@given(RESULTS)
def test_nothing_flaps_faster_than_three_results_for_a_way_up_and_down(results: list[ProbeResult]) -> None:
    counted = [r for r in results if r.failure is not Failure.PEER_OFFLINE]
    _, changes = stepped(results, Grade(ID, listed_before=True))
    shortest = DEFAULTS.passes_to_list + 1  # two passes up; one result that altered content down
    assert changes <= 2 * (len(counted) // shortest) + 1


@given(RESULTS)
def test_what_the_network_did_never_counts_against_an_exit(results: list[ProbeResult]) -> None:
    of_exits = [r for r in results if r.failure is None or r.failure.cause is Cause.EXIT]
    one, other = after(*results), after(*of_exits)
    assert replace(one, latest=None) == replace(other, latest=None)


@given(RESULTS, st.booleans(), st.booleans(), st.booleans())
def test_no_grade_outweighs_an_owners_no(
    results: list[ProbeResult], listed: bool, consented: bool, online: bool
) -> None:
    grade = after(*results, grade=Grade(ID, listed=listed))
    verdict = decide_listing(grade, wanted=False, consented=consented, online=online, now_ms=1)
    assert verdict is Listing.OWNER_SAID_NO
    assert verdict.braked_as is None
    refused = decide_listing(grade, wanted=True, consented=False, online=online, now_ms=1)
    assert refused is Listing.NO_CONSENT


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 100))
def test_the_brake_holds_beyond_its_share(delisting: int, size: int, percent: int) -> None:
    if brake_allows(delisting, size, percent):
        assert delisting <= 5 or delisting * 100 <= size * percent


@given(st.lists(st.tuples(st.integers(-7_200_000, 7_200_000), st.sampled_from("ab")), max_size=40))
def test_a_clock_that_jumps_never_makes_an_address_steadier_than_it_was_seen(
    sights: list[tuple[int, str]],
) -> None:
    watched, now = Stability(), 10**12
    for step_ms, mark in sights:
        now += step_ms
        before = watched
        watched = watch_address(watched, mark, now)
        assert watched.changes_milli <= before.changes_milli + 1_000
        assert watched.seen_ms >= before.seen_ms
        score = stability_score(watched)
        assert score is None or 0 <= score <= 100


def test_stability_counts_changes_and_lets_them_fade() -> None:
    hour, day = 3_600_000, 86_400_000
    watched = watch_address(Stability(), "a", day)
    assert stability_score(watched) is None
    watched = watch_address(watched, "a", day + hour)
    assert stability_score(watched) == 100
    changed = watch_address(watched, "b", day + hour)
    assert stability_score(changed) == 50
    assert stability_score(watch_address(changed, "b", 2 * day + hour)) == 66
    assert watch_address(watched, "", day + 2 * hour) == watched


# What is probed, when, and what is written


def test_a_settled_exit_is_written_when_something_changed_or_an_hour_is_over() -> None:
    settled = replace(after(PASS, US), listed=True, measured_ms=1, plain_ms=1)
    light = replace(PASS, throughput_kbps=None)
    same = add_result(settled, replace(light, at_ms=60_000))
    assert not is_worth_writing(settled, same)
    assert is_worth_writing(settled, add_result(settled, replace(light, at_ms=3_600_001)))
    assert is_worth_writing(settled, add_result(settled, FAIL))
    moved = add_result(settled, replace(light, at_ms=2, exit_country=Country("fr")))
    assert is_worth_writing(settled, moved)
    assert wants_attention(settled, moved)
    assert not wants_attention(settled, same)
    assert is_worth_writing(replace(settled, listed=False), replace(same, listed=False))
    assert is_worth_writing(add_result(settled, FAIL), add_result(add_result(settled, FAIL), light))


def test_a_light_probe_keeps_the_tier_that_a_large_one_measured() -> None:
    light = replace(PASS, throughput_kbps=None)
    assert after(PASS, light).tier is SpeedTier.FAST
    assert after(light).tier is SpeedTier.UNKNOWN


NOW = 10**12
SETTLED = replace(after(PASS, US), listed=True, measured_ms=NOW, plain_ms=NOW)


def plan(grade: Grade | None, draw: float = 0.5, spent: int = 0, *, urgent: bool = False) -> ProbePlan:
    return choose_plan(grade, spent, NOW, DEFAULTS, draw, urgent=urgent)


def test_a_probe_measures_when_that_is_due_and_the_owners_budget_allows() -> None:
    assert plan(None) == ProbePlan(MEASURING_BYTES, plain=True)
    assert is_light(plan(SETTLED))
    old = replace(SETTLED, measured_ms=NOW - MEASURE_EVERY_MS, plain_ms=NOW - 3_600_000)
    assert plan(old) == ProbePlan(MEASURING_BYTES, plain=True)
    assert is_light(plan(old, urgent=True)), "a customer waits"


@given(
    st.floats(0, 1, exclude_max=True),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, MEASURING_BYTES),
)
def test_whatever_is_asked_of_a_probe_the_owners_budget_comes_first(
    draw: float, urgent: bool, quarantined: bool, cut: bool, left: int
) -> None:
    grade = replace(SETTLED, measured_ms=0, quarantined=quarantined, cut_short=cut)
    spent = DEFAULTS.bytes_per_day - left
    assert is_light(plan(grade, draw, spent, urgent=urgent)) is (draw >= LONG_SHARE), "nor then an exit knows"


@pytest.mark.parametrize(("urgent", "share"), [(False, LONG_SHARE), (True, LONG_SHARE_URGENT)])
def test_no_exit_knows_how_much_it_must_not_cut(urgent: bool, share: float) -> None:
    """Sizes of a thousand probes: some are long, none is like the next, and what they cost is as documented."""
    draws = [(n + 0.5) / 1000 for n in range(1000)]
    sizes = [plan(SETTLED, draw, urgent=urgent).size_bytes for draw in draws]
    long = [size for size in sizes if size >= MIN_MEASURED_BYTES]
    assert len(long) == round(1000 * share)
    assert min(sizes) == pytest.approx(LIGHT_BYTES // 2, abs=200)
    assert max(sizes) == pytest.approx(MEASURING_BYTES, rel=0.05)
    assert sum(sizes) / 1000 == pytest.approx((1 - share) * LIGHT_BYTES + share * LONG_MEAN_BYTES, rel=0.02)
    assert len(set(sizes)) > 900


def test_an_exit_that_cut_a_body_short_is_not_back_before_it_carried_a_long_one() -> None:
    light, long = replace(PASS, throughput_kbps=None), PASS
    cut = after(long, US, ProbeResult(1, Failure.BODY_SHORT))
    assert plan(cut) == plan(cut, urgent=True) == ProbePlan(MEASURING_BYTES, plain=plan(cut).plain)
    for failure in (Failure.BODY_SHORT, Failure.OVERALL_TIMEOUT):
        grade = after(*[light] * 3, ProbeResult(1, failure), *[light] * 9, grade=cut)
        assert (grade.passes, grade.failures, grade.cut_short) == (0, 2, True)
    carried = after(long, light, grade=cut)
    assert (carried.passes, carried.failures, carried.cut_short) == (2, 0, False)
    refused = after(long, ProbeResult(1, Failure.CONNECT_REFUSED), light)
    assert (refused.passes, refused.cut_short) == (1, False), "that says nothing of bodies"


def test_a_quarantined_exit_is_not_let_out_by_small_bodies() -> None:
    light = replace(PASS, throughput_kbps=None)
    altered = after(PASS, ProbeResult(1, Failure.PLAIN_ALTERED))
    assert plan(altered) == ProbePlan(MEASURING_BYTES, plain=True)
    assert after(*[light] * 9, grade=altered).quarantined
    assert not after(PASS, PASS, grade=altered).quarantined


def test_probes_are_spread_and_an_absent_peer_waits_for_its_return() -> None:
    settled, failing = replace(after(PASS, US), listed=True), after(FAIL)
    assert next_probe_ms(settled, 0, DEFAULTS, 0.5) == 300_000
    assert next_probe_ms(settled, 0, DEFAULTS, 0.0) == 240_000
    assert next_probe_ms(failing, 0, DEFAULTS, 0.5) == 20_000
    assert next_probe_ms(after(*[FAIL] * 6), 0, DEFAULTS, 0.5) == 60_000
    assert next_probe_ms(settled, DEFAULTS.bytes_per_day, DEFAULTS, 0.5) == 1_200_000
    assert next_probe_ms(after(ProbeResult(1, Failure.PEER_OFFLINE)), 0, DEFAULTS, 0.5) is None


@pytest.mark.parametrize("reason", ["owner_said_no", "no_consent", "outside_the_owners_hours"])
def test_what_its_owner_keeps_off_sale_is_hardly_probed(reason: str) -> None:
    """Unless it has yet to prove itself: its owner may be about to agree."""
    assert next_probe_ms(replace(after(PASS, US), reason=reason), 0, DEFAULTS, 0.5) == 3_600_000
    assert next_probe_ms(replace(after(PASS), reason=reason), 0, DEFAULTS, 0.5) == 20_000


def test_every_failure_says_what_to_do() -> None:
    assert set(ADVICE) == set(Failure)
    assert {failure.phase for failure in Failure} == set(Phase)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"interval": 1}, "no such threshold"),
        ({"interval_s": 0}, "interval_s"),
        ({"interval_s": True}, "interval_s"),
        ({"brake_percent": 101}, "brake_percent"),
        ({"medium_kbps": 1000}, "medium_kbps"),
        ({"customers_to_bar": 2}, "customers_to_bar"),
        ({"bar_percent": 50}, "bar_percent"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(value: dict[str, int], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_thresholds(value)


@pytest.mark.parametrize(
    ("stored", "means"),
    [
        ({"fast_kbps": 2_000}, replace(DEFAULTS, fast_kbps=2_000)),
        ({"fast_kbps": 2_000, "of_a_later_version": 7}, replace(DEFAULTS, fast_kbps=2_000)),
        ({"medium_kbps": 5_000}, DEFAULTS),
        ({}, DEFAULTS),
    ],
)
def test_what_another_version_stored_ends_no_job(stored: dict[str, int], means: Thresholds) -> None:
    found, fault = stored_thresholds(stored)
    assert found == means
    assert bool(fault) is (parse_fails(stored))


def parse_fails(stored: dict[str, int]) -> bool:
    try:
        parse_thresholds(stored)
    except ValueError:
        return True
    return False


def test_thresholds_are_those_that_were_set_over_the_defaults() -> None:
    assert parse_thresholds({"fast_kbps": 2_000}) == replace(DEFAULTS, fast_kbps=2_000)
    assert tier_of(1_500, parse_thresholds({"fast_kbps": 2_000})) is SpeedTier.MEDIUM
