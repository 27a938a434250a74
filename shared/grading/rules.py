"""Pure decisions of grading: tiers, consecutive passes and failures, who is on sale, and the body that probes compare.

Demotion is fast (three failures in a row, or one that altered content), readmission is free of history (two passes in a
row). Both directions are computed; nobody sets them by hand.
"""

import hashlib
from dataclasses import replace
from enum import StrEnum
from typing import Final

from shared.grading.model import Failure, Grade, ProbeResult
from shared.kernel.codes import SpeedTier
from shared.kernel.ids import UNKNOWN_COUNTRY

PASSES_TO_LIST: Final = 2
FAILURES_TO_DELIST: Final = 3
FAST_KBPS: Final = 1_000
MEDIUM_KBPS: Final = 250
MIN_MEASURED_BYTES: Final = 64 * 1024
BRAKE_PERCENT: Final = 10
BRAKE_FLOOR: Final = 5


class Listing(StrEnum):
    """Why a device is or is not on sale, in the order in which reasons are looked at."""

    LISTED = "listed"
    OWNER_SAID_NO = "owner_said_no"
    NO_CONSENT = "no_consent"
    QUARANTINED = "quarantined"
    OFFLINE = "offline"
    NOT_PROBED = "not_probed"
    FAILING = "failing"
    NOT_PROVEN = "needs_more_passes"


def tier_of(throughput_kbps: int | None) -> SpeedTier:
    """Speed tier of a measured throughput; unknown when the body was too small to measure."""
    if throughput_kbps is None:
        return SpeedTier.UNKNOWN
    if throughput_kbps >= FAST_KBPS:
        return SpeedTier.FAST
    return SpeedTier.MEDIUM if throughput_kbps >= MEDIUM_KBPS else SpeedTier.SLOW


def throughput_kbps(body_bytes: int, elapsed_ms: int) -> int | None:
    """KB per second, or None when the body is too small to mean anything."""
    if body_bytes < MIN_MEASURED_BYTES:
        return None
    return body_bytes // max(elapsed_ms, 1)


def add_result(grade: Grade, result: ProbeResult) -> Grade:
    """The grade after one more probe. A failed one that saw no exit leaves what was known of the exit."""
    if result.passed:
        return replace(
            grade,
            passes=grade.passes + 1,
            failures=0,
            tier=tier_of(result.throughput_kbps),
            quarantined=grade.quarantined and grade.passes + 1 < PASSES_TO_LIST,
            latest=result,
        )
    altered = result.failure is not None and result.failure.alters_content
    if grade.latest is not None and not result.exit_asn and result.exit_country == UNKNOWN_COUNTRY:
        before = grade.latest
        result = replace(
            result,
            exit_country=before.exit_country,
            exit_ip_type=before.exit_ip_type,
            exit_asn=before.exit_asn,
            exit_isp=before.exit_isp,
        )
    return replace(
        grade, passes=0, failures=grade.failures + 1, quarantined=grade.quarantined or altered, latest=result
    )


def exit_was_seen(grade: Grade | None) -> bool:
    """Whether a probe ever saw where a device exits; one that only failed has not."""
    latest = grade.latest if grade else None
    return latest is not None and (
        latest.passed or latest.exit_asn > 0 or latest.exit_country != UNKNOWN_COUNTRY
    )


def is_verified(grade: Grade | None) -> bool:
    """Whether probes have shown that a device serves."""
    return grade is not None and (grade.passes >= PASSES_TO_LIST or grade.listed)


def decide_listing(grade: Grade | None, *, wanted: bool, consented: bool, online: bool) -> Listing:
    """Whether a device is on sale. The owner's wish comes first; a listed device stays until three failures."""
    if not wanted:
        return Listing.OWNER_SAID_NO
    if not consented:
        return Listing.NO_CONSENT
    if grade is None or grade.latest is None:
        return Listing.NOT_PROBED
    if grade.quarantined:
        return Listing.QUARANTINED
    if not online:
        return Listing.OFFLINE
    if grade.failures >= FAILURES_TO_DELIST or (grade.failures and not grade.listed):
        return Listing.FAILING
    if grade.listed or grade.passes >= PASSES_TO_LIST:
        return Listing.LISTED
    return Listing.NOT_PROVEN


def brake_allows(delisting: int, listed: int) -> bool:
    """Whether one run may take this many off sale; beyond it the prober or a relay is broken, not the fleet."""
    return delisting <= max(BRAKE_FLOOR, listed * BRAKE_PERCENT // 100)


def probe_body(nonce: str, size_bytes: int) -> bytes:
    """The body that a probe target sends and a prober expects: SHA-256 in counter mode, so no exit can guess it."""
    seed = hashlib.sha256(nonce.encode()).digest()
    blocks = -(-size_bytes // len(seed))
    stream = b"".join(hashlib.sha256(seed + n.to_bytes(8, "big")).digest() for n in range(blocks))
    return stream[:size_bytes]


def compare_body(received: bytes, nonce: str, size_bytes: int) -> Failure | None:
    """What is wrong with a received body, if anything."""
    expected = probe_body(nonce, size_bytes)
    if received == expected:
        return None
    return Failure.BODY_SHORT if expected.startswith(received) else Failure.BODY_MISMATCH
