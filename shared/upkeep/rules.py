"""Pure decisions of the watchdog: what observations add up to, when incidents open and close, whether billing is right."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shared.kernel.money import BYTES_PER_GB
from shared.upkeep.model import Check, Finding, Observation, Scope

RUNS_TO_OPEN: Final = 2
"""One bad run may be the weather; two in a row are an incident."""
ROUTING: Final = frozenset({Check.HTTP, Check.SOCKS, Check.STICKY, Check.COUNTRY})
AUDITS: Final = frozenset({Check.RECIPIENTS, Check.SCHEDULES, Check.RECOVERY, Check.CERTIFICATE})
OVERHEAD_BYTES: Final = 12 * 1024
"""Of one fetch beside its body: handshake, heads, records. Twice more bounds what a failed one may have carried of it."""
SLACK_BYTES: Final = 64
RUNS_A_DAY: Final = 288


def run_need_bytes(fetches: int, body_bytes: int) -> int:
    """What a run costs the watchdog's own key at most."""
    return fetches * (body_bytes + OVERHEAD_BYTES)


def top_up_gb(left_bytes: int, run_bytes: int) -> int:
    """By how much the watchdog's own key is raised; 0 while it lasts for a day."""
    day_bytes = run_bytes * RUNS_A_DAY
    return 0 if left_bytes >= day_bytes else -(-(2 * day_bytes - left_bytes) // BYTES_PER_GB)


def judge(seen: Sequence[Observation]) -> list[Finding]:
    """What is wrong, each fault once and at its widest. While the watchdog cannot reach its control target, only that.

    A fault of its own key is its own: without one it is no customer, and sees nothing of what customers meet.
    """
    control = [o for o in seen if o.check is Check.CONTROL]
    if control and not any(o.ok for o in control):
        return [Finding(Scope.WATCHDOG, Check.CONTROL, detail=control[0].detail)]
    findings = [
        Finding(Scope.SETTINGS, o.check, o.detail, o.detail) for o in seen if o.check in AUDITS and not o.ok
    ]
    findings += [
        Finding(Scope.WATCHDOG, o.check, detail=o.detail)
        for o in seen
        if o.check is Check.OWN_KEY and not o.ok
    ]
    findings += [
        Finding(Scope.RELAY, o.check, o.relay, o.detail) for o in seen if o.check is Check.RELAY and not o.ok
    ]
    findings += [
        Finding(Scope.FLEET, o.check, detail=o.detail)
        for o in seen
        if o.check in {Check.API, Check.BILLING, Check.SUSPENDED, Check.PURCHASE} and not o.ok
    ]
    return [*findings, *_routing([o for o in seen if o.check in ROUTING])]


def _routing(seen: Sequence[Observation]) -> list[Finding]:
    by_gateway: dict[str, list[Observation]] = defaultdict(list)
    for one in seen:
        by_gateway[one.gateway].append(one)
    dead = [g for g, tried in by_gateway.items() if not any(o.ok for o in tried)]
    if dead and len(dead) == len(by_gateway):
        return [Finding(Scope.FLEET, seen[0].check, detail=seen[0].detail)]
    findings = [Finding(Scope.GATEWAY, by_gateway[g][0].check, g, by_gateway[g][0].detail) for g in dead]
    alive = [o for o in seen if o.gateway not in dead]
    by_country: dict[str, list[Observation]] = defaultdict(list)
    for one in alive:
        if one.check is Check.COUNTRY:
            by_country[one.country].append(one)
    for country, tried in by_country.items():
        if not any(o.ok for o in tried):
            findings.append(Finding(Scope.COUNTRY, Check.COUNTRY, country, tried[0].detail))
    told = {f.name for f in findings if f.scope is Scope.COUNTRY}
    for check in sorted(ROUTING):
        failed = [o for o in alive if o.check is check and not o.ok and o.country not in told]
        everywhere = {o.gateway for o in alive if o.check is check} == {o.gateway for o in failed}
        if failed and everywhere and check is not Check.COUNTRY:
            findings.append(Finding(Scope.FLEET, check, detail=failed[0].detail))
        else:
            findings += [Finding(Scope.GATEWAY, check, o.gateway, o.detail) for o in failed]
    return list({f.key: f for f in findings}.values())


@dataclass(frozen=True, slots=True)
class Turn:
    """What a run leads to: the counts to keep, which incidents must stand, and which to close.

    What stands is told in every run: who closed it by hand, while it is still wrong, sees it again.
    """

    counts: Mapping[str, int]
    standing: tuple[Finding, ...]
    closed: tuple[str, ...]


def was_looked_at(key: str, seen: Sequence[Observation], gateways: Collection[str]) -> bool:
    """Whether a run says anything of what was found wrong before. A gateway that is no more is looked at by nobody."""
    scope, check, name = key.split(".", 2)
    if scope == Scope.GATEWAY and name in gateways:
        return any(o.gateway == name and o.check == check for o in seen)
    if scope == Scope.GATEWAY:
        return True
    return any(o.check == check for o in seen)


def advance(
    counts: Mapping[str, int],
    findings: Sequence[Finding],
    seen: Sequence[Observation],
    gateways: Collection[str] = (),
) -> Turn:
    """Count runs in a row. Of what a run did not look at, or is blind for, it says nothing: that stays as it was."""
    now = {f.key: f for f in findings}
    blind = any(f.scope is Scope.WATCHDOG for f in findings)
    kept = {key: min(counts.get(key, 0) + 1, RUNS_TO_OPEN) for key in now}
    unseen = {k for k in counts if k not in now and (blind or not was_looked_at(k, seen, gateways))}
    kept |= {key: counts[key] for key in unseen}
    closed = tuple(sorted(k for k, n in counts.items() if k not in kept and n >= RUNS_TO_OPEN))
    standing = tuple(now[key] for key, count in kept.items() if key in now and count == RUNS_TO_OPEN)
    return Turn(kept, standing, closed)


def billing_fault(carried_bytes: int, fetches: int, failed: int, billed_bytes: int) -> str | None:
    """Why what was billed cannot be what was carried; None when it can. The watchdog counts bodies, the meter all bytes."""
    least, most = carried_bytes - SLACK_BYTES, carried_bytes + (fetches + failed * 2) * OVERHEAD_BYTES
    if least <= billed_bytes <= most:
        return None
    return f"billed {billed_bytes} bytes for {fetches} fetches of {carried_bytes} bytes of body"
