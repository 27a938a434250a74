"""Pure decisions of grading: what to probe and when, tiers, consecutive passes and failures, who is on sale, the brake.

Demotion is fast (three failures in a row, or one that altered content), readmission is free of history (two passes in a
row). Both directions are computed; nobody sets them by hand. Failures of the network never count against an exit. What
customers say of an exit beside its probes is judged in `conduct.py`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from enum import StrEnum
from typing import Any, Final

from shared.grading.conduct import CUSTOMERS_MIN, is_barred
from shared.grading.model import Cause, Failure, Grade, ProbePlan, ProbeResult, Stability, Thresholds
from shared.kernel.codes import SpeedTier
from shared.kernel.ids import UNKNOWN_COUNTRY

DEFAULTS: Final = Thresholds()
COUNTED_MAX: Final = 1_000
"""Consecutive passes and failures are counted up to this, so that a settled exit's row need not be written."""
MIN_MEASURED_BYTES: Final = 64 * 1024
MEASURING_BYTES: Final = 256 * 1024
LIGHT_BYTES: Final = 8 * 1024
"""On average: half of it to one and a half times as much, so that no exit knows how much is enough."""
LONG_SHARE: Final = 1 / 32
"""Of ordinary probes, whenever they come: a body of any size that can be measured, for exits that cut later."""
LONG_MEAN_BYTES: Final = (MIN_MEASURED_BYTES + MEASURING_BYTES) // 2
LONG_SHARE_URGENT: Final = 1 / 4
"""Of probes that a customer's failed tunnel asked for."""
PROBE_OVERHEAD_BYTES: Final = 8 * 1024
"""CONNECT, two certificates and heads: what a probe costs the owner beside its body."""
MEASURE_EVERY_MS: Final = 6 * 3600_000
PLAIN_EVERY_MS: Final = 3600_000
BRAKE_FLOOR: Final = 5
WRITE_EVERY_MS: Final = 3600_000
"""A settled exit's row is written this often, so that its latest result is never older."""
STABILITY_HALF_LIFE_MS: Final = 24 * 3600_000
STABILITY_KNOWN_MS: Final = 3600_000
"""An address that was watched for less says nothing of how rarely it changes."""
JITTER_PERCENT: Final = 20
UNWANTED_S: Final = 3600
"""A proven exit that its owner keeps off sale is probed this often: it is on sale at once when they change their mind."""


_CUT_SHORT: Final = frozenset({Failure.BODY_SHORT, Failure.OVERALL_TIMEOUT})


class Listing(StrEnum):
    """Why a device is or is not on sale, in the order in which reasons are looked at."""

    LISTED = "listed"
    OWNER_SAID_NO = "owner_said_no"
    OUTSIDE_HOURS = "outside_the_owners_hours"
    NO_CONSENT = "no_consent"
    REVOKED = "tokens_revoked"
    QUARANTINED = "quarantined"
    LETS_DOWN = "lets_customers_down"
    OFFLINE = "offline"
    NOT_PROBED = "not_probed"
    FAILING = "failing"
    NOT_PROVEN = "needs_more_passes"

    @property
    def braked_as(self) -> Cause | None:
        """Which brake holds a delisting for this reason; None for what owners decide, which nothing holds, and for what
        customers say, which was held before it was written.
        """
        if self in {Listing.FAILING, Listing.QUARANTINED}:
            return Cause.EXIT
        return Cause.NETWORK if self is Listing.OFFLINE else None


_UNWANTED: Final = frozenset(
    {
        Listing.OWNER_SAID_NO.value,
        Listing.OUTSIDE_HOURS.value,
        Listing.NO_CONSENT.value,
        Listing.REVOKED.value,
    }
)


def parse_thresholds(value: Mapping[str, Any]) -> Thresholds:
    """The setting `grading` over the defaults. Raises ValueError naming what is wrong."""
    known = asdict(DEFAULTS)
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ValueError(f"no such threshold: {', '.join(unknown)}; there are: {', '.join(known)}")
    for name, given in value.items():
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise ValueError(f"{name}: an integer of 1 or more")
    found = Thresholds(**{**known, **value})
    if found.brake_percent > 100 or found.medium_kbps >= found.fast_kbps:
        raise ValueError("brake_percent is at most 100, and medium_kbps is below fast_kbps")
    if found.customers_to_bar < CUSTOMERS_MIN or not 51 <= found.bar_percent <= 100:
        raise ValueError(f"customers_to_bar is {CUSTOMERS_MIN} or more, and bar_percent 51 to 100")
    return found


def stored_thresholds(value: Mapping[str, Any]) -> tuple[Thresholds, str]:
    """What a stored setting means to this version, and what of it is left out, because another version wrote it.

    A job that ends at a name that it does not know would leave the whole shelf as it is.
    """
    try:
        return parse_thresholds(value), ""
    except ValueError as error:
        fault = str(error)
    try:
        return parse_thresholds({name: n for name, n in value.items() if name in asdict(DEFAULTS)}), fault
    except ValueError:
        return DEFAULTS, fault


def tier_of(throughput_kbps: int | None, thresholds: Thresholds = DEFAULTS) -> SpeedTier:
    """Speed tier of a measured throughput; unknown when the body was too small to measure."""
    if throughput_kbps is None:
        return SpeedTier.UNKNOWN
    if throughput_kbps >= thresholds.fast_kbps:
        return SpeedTier.FAST
    return SpeedTier.MEDIUM if throughput_kbps >= thresholds.medium_kbps else SpeedTier.SLOW


def throughput_kbps(body_bytes: int, elapsed_ms: int) -> int | None:
    """KB per second, or None when the body is too small to mean anything."""
    if body_bytes < MIN_MEASURED_BYTES:
        return None
    return body_bytes // max(elapsed_ms, 1)


# What a result does to a grade


def add_result(grade: Grade, result: ProbeResult, thresholds: Thresholds = DEFAULTS) -> Grade:
    """The grade after one more probe. A failed one that saw no exit leaves what was known of the exit."""
    if result.passed:
        return _passed(grade, result, thresholds)
    failure = result.failure
    assert failure is not None  # noqa: S101 - what did not pass failed
    result = _with_known_exit(result, grade.latest)
    if failure.cause is Cause.NETWORK:
        return replace(grade, latest=result)
    return replace(
        grade,
        passes=0,
        vantages=(),
        failures=min(grade.failures + 1, COUNTED_MAX),
        quarantined=grade.quarantined or failure.alters_content,
        cut_short=grade.cut_short or failure in _CUT_SHORT,
        latest=result,
    )


def _passed(grade: Grade, result: ProbeResult, thresholds: Thresholds) -> Grade:
    measured = result.throughput_kbps is not None
    if needs_long(grade) and not measured:
        return replace(grade, latest=result)
    passes = min(grade.passes + 1, COUNTED_MAX)
    return replace(
        grade,
        passes=passes,
        failures=0,
        cut_short=False,
        vantages=tuple(sorted({*grade.vantages, result.vantage} - {""})),
        tier=tier_of(result.throughput_kbps, thresholds) if measured else grade.tier,
        measured_ms=result.at_ms if measured else grade.measured_ms,
        plain_ms=result.at_ms if result.plain else grade.plain_ms,
        quarantined=grade.quarantined and passes < thresholds.passes_to_list,
        stability=watch_address(grade.stability, result.exit_mark, result.at_ms),
        latest=result,
    )


def needs_long(grade: Grade) -> bool:
    """Whether only a long body shows that an exit is what it was not: that it alters nothing, or cuts nothing short."""
    return grade.quarantined or grade.cut_short


def _with_known_exit(result: ProbeResult, before: ProbeResult | None) -> ProbeResult:
    if before is None or result.exit_asn or result.exit_country != UNKNOWN_COUNTRY:
        return result
    return replace(
        result,
        exit_country=before.exit_country,
        exit_ip_type=before.exit_ip_type,
        exit_asn=before.exit_asn,
        exit_isp=before.exit_isp,
        exit_mark=before.exit_mark,
        exit_network=before.exit_network,
        differs=before.differs,
    )


def watch_address(before: Stability, mark: str, at_ms: int) -> Stability:
    """What one more sight of the exit's address adds. A clock that went back fades nothing."""
    if not mark:
        return before
    if not before.mark:
        return Stability(mark, at_ms, at_ms)
    gone_ms = max(at_ms - before.seen_ms, 0)
    faded = int(before.changes_milli * 0.5 ** (gone_ms / STABILITY_HALF_LIFE_MS))
    changed = 1_000 if mark != before.mark else 0
    return Stability(mark, min(before.since_ms, at_ms), max(at_ms, before.seen_ms), faded + changed)


def stability_score(watched: Stability) -> int | None:
    """How rarely the address changes, 0 to 100: 50 for one change just now; None while it was not watched for an hour."""
    if not watched.mark or watched.seen_ms - watched.since_ms < STABILITY_KNOWN_MS:
        return None
    return 100_000 // (1_000 + watched.changes_milli)


def is_worth_writing(before: Grade, after: Grade) -> bool:
    """Whether a result changed anything but the time of the latest one, or that is old by now.

    Most probes find a settled exit as it was; the store is told of those once an hour.
    """
    if before.latest is None or after.latest is None or not after.latest.passed:
        return True
    if after.latest.at_ms - before.latest.at_ms >= WRITE_EVERY_MS or not before.latest.passed:
        return True
    settled = before.passes >= max(DEFAULTS.passes_to_list, DEFAULTS.first_passes) and before.listed
    same = _facts(before) == _facts(after)
    return not (settled and same)


def _facts(grade: Grade) -> tuple[object, ...]:
    latest = grade.latest
    assert latest is not None  # noqa: S101 - looked at before
    seen = latest.exit_country, latest.exit_ip_type, latest.exit_asn, latest.exit_mark, latest.differs
    return (grade.tier, needs_long(grade), grade.failures, grade.measured_ms, grade.plain_ms, *seen)


# What to probe, and when


def choose_plan(
    grade: Grade | None,
    spent_bytes: int,
    now_ms: int,
    thresholds: Thresholds,
    draw: float,
    *,
    urgent: bool = False,
) -> ProbePlan:
    """Measure when it is due, otherwise a small body or now and then a long one, as `draw` in [0, 1) decides: no exit can
    know how much it must not cut, also when the owner's budget of the day is spent: then a body is long by the draw alone.

    A quarantined exit is shown a page, too. Urgent: a customer waits for the verdict on an exit that is on sale.
    """
    if grade is None:
        return ProbePlan(MEASURING_BYTES, plain=True)
    hurried = urgent and grade.listed and not grade.quarantined
    proving = not grade.listed and grade.passes < thresholds.first_passes
    plain = proving or grade.quarantined or now_ms - grade.plain_ms >= PLAIN_EVERY_MS
    measure = now_ms - grade.measured_ms >= MEASURE_EVERY_MS or grade.tier is SpeedTier.UNKNOWN
    spent = thresholds.bytes_per_day - spent_bytes <= MEASURING_BYTES
    share = LONG_SHARE_URGENT if hurried and not spent else LONG_SHARE
    if not spent and (needs_long(grade) or (measure and not hurried)):
        size = MEASURING_BYTES
    elif draw < share:
        size = MIN_MEASURED_BYTES + int((MEASURING_BYTES - MIN_MEASURED_BYTES) * draw / share)
    else:
        size = _light_bytes((draw - share) / (1 - share))
    return ProbePlan(size, plain and not hurried)


def _light_bytes(draw: float) -> int:
    return LIGHT_BYTES // 2 + int(LIGHT_BYTES * draw)


def is_light(plan: ProbePlan) -> bool:
    """Whether a probe's body is too small to measure by it."""
    return plan.size_bytes < MIN_MEASURED_BYTES


def next_probe_ms(grade: Grade, spent_bytes: int, thresholds: Thresholds, draw: float) -> int | None:
    """In how many ms a device is probed again; None: when it comes back. `draw` in [0, 1) spreads a fleet evenly.

    Proving and failing exits are probed soon, settled ones and those that failed for long more seldom; an owner whose
    budget is spent, four times as seldom, and what its owner keeps off sale, hourly.
    """
    latest = grade.latest
    if latest is not None and latest.failure is Failure.PEER_OFFLINE:
        return None
    unsure = latest is None or not latest.passed or not is_verified(grade, thresholds)
    wait_s = thresholds.retry_s if unsure else thresholds.interval_s
    if grade.failures >= 2 * thresholds.failures_to_delist:
        wait_s = min(thresholds.failing_s, thresholds.interval_s)
    if spent_bytes >= thresholds.bytes_per_day:
        wait_s = max(wait_s, thresholds.interval_s) * 4
    if grade.reason in _UNWANTED and is_verified(grade, thresholds):
        wait_s = max(wait_s, UNWANTED_S)
    return int(wait_s * 1000 * (1 + (draw - 0.5) * 2 * JITTER_PERCENT / 100))


# Who is on sale


def exit_was_seen(grade: Grade | None) -> bool:
    """Whether a probe ever saw where a device exits; one that only failed has not."""
    latest = grade.latest if grade else None
    return latest is not None and (
        latest.passed or latest.exit_asn > 0 or latest.exit_country != UNKNOWN_COUNTRY
    )


def is_verified(grade: Grade | None, thresholds: Thresholds = DEFAULTS) -> bool:
    """Whether probes have shown that a device serves: for the first time, from as many places as are asked."""
    if grade is None:
        return False
    if grade.listed:
        return True
    if grade.listed_before:
        return grade.passes >= thresholds.passes_to_list
    return grade.passes >= thresholds.first_passes and len(grade.vantages) >= thresholds.first_vantages


def decide_listing(
    grade: Grade | None,
    *,
    wanted: bool,
    consented: bool,
    online: bool,
    now_ms: int,
    in_hours: bool = True,
    revoked: bool = False,
    thresholds: Thresholds = DEFAULTS,
) -> Listing:
    """Whether a device is on sale. The owner's wish comes first; a listed device stays until three failures, or until its
    customers have been let down.
    """
    if not wanted:
        return Listing.OWNER_SAID_NO
    if not in_hours:
        return Listing.OUTSIDE_HOURS
    if not consented:
        return Listing.NO_CONSENT
    if revoked:
        return Listing.REVOKED
    if grade is None or grade.latest is None:
        return Listing.NOT_PROBED
    if grade.quarantined:
        return Listing.QUARANTINED
    if is_barred(grade.bar, now_ms):
        return Listing.LETS_DOWN
    if not online:
        return Listing.OFFLINE
    if grade.failures >= thresholds.failures_to_delist or (grade.failures and not grade.listed):
        return Listing.FAILING
    return Listing.LISTED if is_verified(grade, thresholds) else Listing.NOT_PROVEN


def wants_attention(before: Grade, after: Grade, thresholds: Thresholds = DEFAULTS) -> bool:
    """Whether a result says something else than where a device stands, so that the listing run should look."""
    latest = after.latest
    now_ms = latest.at_ms if latest else 0
    verdict = decide_listing(
        after, wanted=True, consented=True, online=True, now_ms=now_ms, thresholds=thresholds
    )
    if (verdict is Listing.LISTED) != after.listed:
        return True
    if latest is not None and latest.failure is Failure.PEER_OFFLINE:
        return after.listed
    return after.listed and before.latest is not None and _sold(before) != _sold(after)


def _sold(grade: Grade) -> tuple[object, ...]:
    latest = grade.latest
    assert latest is not None  # noqa: S101 - looked at before
    return grade.tier, latest.exit_country, latest.exit_ip_type, latest.exit_asn, latest.exit_isp


def brake_allows(delisting: int, pool_size: int, percent: int = DEFAULTS.brake_percent) -> bool:
    """Whether one run may take this many off sale; beyond it the prober or a relay is broken, not the fleet."""
    return delisting <= max(BRAKE_FLOOR, pool_size * percent // 100)


ADVICE: Final[Mapping[Failure, str]] = {
    Failure.PEER_OFFLINE: "The device is not connected. Start the agent, or check its power and its network.",
    Failure.RELAY_UNREACHABLE: "Nothing to do: a part of ours could not be reached, and the probe is repeated.",
    Failure.RELAY_DRAINING: "Nothing to do: the relay restarts, and the device moves to another one by itself.",
    Failure.TARGET_DOWN: "Nothing to do: our own probe target was away, and the probe is repeated.",
    Failure.MODEM_UNREACHABLE: "The modem's proxy port does not answer from outside: check its address, port, firewall.",
    Failure.MODEM_CREDENTIALS: "The modem's proxy refused the credentials: register the modem again with the right ones.",
    Failure.CONNECT_REFUSED: "The device could not open a connection to our target: check its network and DNS.",
    Failure.CONNECT_TIMEOUT: "The device did not open a connection in time: its uplink is overloaded or stalls.",
    Failure.TLS_DROPPED: "Connections end at the first bytes: a filter or carrier on the device's path cuts them.",
    Failure.TLS_TIMEOUT: "The TLS handshake took too long: the uplink loses packets or is overloaded.",
    Failure.TLS_UNTRUSTED: "Somebody on the path answers with another certificate: remove it, then wait for two passes.",
    Failure.BODY_SHORT: "The transfer stopped before its end: the uplink is unstable.",
    Failure.BODY_MISMATCH: "What came through was altered: remove whatever changes traffic, then wait for two passes.",
    Failure.BODY_UNSIGNED: "What came through was not what we sent: remove what changes it, then wait for two passes.",
    Failure.HTTP_STATUS: "Somebody on the path answered for our target: a captive portal or filter.",
    Failure.PLAIN_FAILED: "Unencrypted pages do not come through: a filter on the path blocks port 80.",
    Failure.PLAIN_ALTERED: "An unencrypted page was altered: remove the ad injector or filter, then wait for two passes.",
    Failure.NO_EXIT_IP: "The address that the device exits from could not be seen.",
    Failure.OVERALL_TIMEOUT: "The probe took too long as a whole: the uplink is too slow.",
}
"""What a supplier can do about each failure."""


# The body that a target sends and a prober expects


def probe_body(nonce: str, size_bytes: int) -> bytes:
    """The body that a probe target sends and a prober expects: SHAKE-256 of the nonce, so no exit can guess it.

    A target makes one for whoever asks, so it has to cost little: about a millisecond at the size that measures.
    """
    return hashlib.shake_256(nonce.encode()).digest(size_bytes)


def plain_page(nonce: str) -> bytes:
    """The unencrypted page: HTML, because that is what injectors look for."""
    mark = hashlib.sha256(nonce.encode()).hexdigest()
    return (
        f"<!DOCTYPE html><html><head><title>{mark}</title></head><body><h1>probe</h1><p>{mark}</p>"
        '<a href="/">home</a><script>var mark = 1;</script></body></html>\n'
    ).encode()


def compare_body(received: bytes, nonce: str, size_bytes: int) -> Failure | None:
    """What is wrong with a received body, if anything."""
    expected = probe_body(nonce, size_bytes)
    if received == expected:
        return None
    return Failure.BODY_SHORT if expected.startswith(received) else Failure.BODY_MISMATCH
