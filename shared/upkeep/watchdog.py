"""The synthetic customer: uses the network as strangers do, audits its settings, and says how far a fault reaches.

It opens and closes incidents and notifies. By rule it restarts nothing and changes nothing but its own two keys.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from shared.guard.model import Incident
from shared.guard.table import close_incident, open_incident, read_setting, write_setting
from shared.kernel.money import BYTES_PER_GB
from shared.runtime.dynamo import RunsDynamo
from shared.upkeep.customer import BODY_BYTES, Door, Fetched
from shared.upkeep.model import Check, Finding, Observation, Scope
from shared.upkeep.rules import advance, billing_fault, judge, run_need_bytes, top_up_gb

SETTING: Final = "watchdog"
LABEL, SUSPENDED_LABEL = "watchdog", "watchdog suspended"
CAP_GB: Final = 1
COUNTRIES_MAX: Final = 5
FETCHES_MAX: Final = 4 + COUNTRIES_MAX
"""Of one run, through one door, with the key that pays."""
RUN_MAX_S: Final = 150.0
"""Nothing is begun after this, and what was seen by then is told: the function itself ends at 240 s."""
KEYS: Final = "/v1/reseller/pool-keys"
REFUSED: Final = "refused_407"

log = logging.getLogger("psx.watchdog")


class Fetches(Protocol):
    """One fetch of a signed page; straight to the target without a door."""

    def __call__(
        self, door: Door | None, username: str, password: str, *, socks: bool = False
    ) -> Fetched: ...


Calls = Callable[[str, str, Mapping[str, Any] | None], tuple[int, Any]]
"""(method, path, body) -> (status, JSON) of the reseller API, with the watchdog's own API key."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a watchdog looks at. `purchase` buys something small and answers why it could not, or None."""

    account: str
    doors: Sequence[Door]
    audits: Sequence[Callable[[], list[Observation]]] = ()
    purchase: Callable[[], str | None] | None = None


@dataclass(slots=True)
class Visit:
    """What was seen through one door, and what the run's own key carried there."""

    seen: list[Observation] = field(default_factory=list)
    fetches: int = 0
    failed: int = 0
    body_bytes: int = 0


@dataclass(slots=True)
class WatchReport:
    """What a run saw, found and did."""

    tried: int = 0
    failed: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)


class Watchdog:
    """One run's tools."""

    def __init__(
        self,
        dynamo: RunsDynamo,
        guard_table: str,
        call: Calls,
        fetch: Fetches,
        notify: Callable[[str, str], None],
        plan: Plan,
        elapsed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dynamo, self._guard = dynamo, guard_table
        self._call, self._fetch, self._notify, self._plan = call, fetch, notify, plan
        self._elapsed_s, self._until_s = elapsed_s, elapsed_s() + RUN_MAX_S

    def run(self, now_ms: int) -> WatchReport:
        """Look at everything once, and tell what changed since the last run."""
        state = self._dynamo.run(read_setting(self._guard, SETTING)) or {}
        control = self._fetch(None, "", "")
        seen = [Observation(Check.CONTROL, control.ok, detail=control.fault)]
        billed: dict[str, int] = {}
        if control.ok:
            seen += self._customer(state.get("billing") or {}, billed)
        for audit in self._plan.audits:
            seen += self._audited(audit)
        return self._tell(seen, state, billed, now_ms)

    def _is_late(self) -> bool:
        return self._elapsed_s() >= self._until_s

    def _audited(self, audit: Callable[[], list[Observation]]) -> list[Observation]:
        """Nothing of one that breaks, or that there is no time for: what others saw is told in any case."""
        if self._is_late():
            return []
        try:
            return audit()
        except Exception:
            log.exception("an audit broke")
            return []

    # as a customer

    def _customer(self, before: Mapping[str, int], billed: dict[str, int]) -> list[Observation]:
        key, suspended = self._key(LABEL, enabled=True), self._key(SUSPENDED_LABEL, enabled=False)
        if key is None or suspended is None:
            return [Observation(Check.API, ok=False, detail="the reseller API gives no keys")]
        seen = [Observation(Check.API, ok=True)]
        poor = self._keep_filled(key)
        if poor is not None:
            return [*seen, Observation(Check.OWN_KEY, ok=False, detail=poor)]
        seen.append(Observation(Check.OWN_KEY, ok=True))
        seen += [self._billing(key, before)] if before else []
        used, countries = int(key["usedBytes"]), self._countries()
        with ThreadPoolExecutor(max(len(self._plan.doors), 1)) as side_by_side:

            def visited(door: Door) -> Visit:
                return self._visit(door, str(key["key"]), str(suspended["key"]), countries)

            visits = list(side_by_side.map(visited, self._plan.doors))
        seen += [one for visit in visits for one in visit.seen]
        if self._plan.purchase is not None:
            fault = self._plan.purchase()
            seen.append(Observation(Check.PURCHASE, ok=fault is None, detail=fault or ""))
        billed |= {
            "used": used,
            "carried": sum(visit.body_bytes for visit in visits),
            "fetches": sum(visit.fetches for visit in visits),
            "failed": sum(visit.failed for visit in visits),
        }
        return seen

    def _visit(self, door: Door, password: str, suspended: str, countries: Sequence[str]) -> Visit:
        """Everything through one door. One that carries nothing over either protocol is dead, and tried no further."""
        account, visit = self._plan.account, Visit()
        for check, socks in ((Check.HTTP, False), (Check.SOCKS, True)):
            found = self._get(visit, door, f"{account}-any-any-rot-ondemand", password, socks=socks)
            visit.seen.append(Observation(check, found.ok, door.name, detail=found.fault))
        if not any(one.ok for one in visit.seen) or self._is_late():
            return visit
        visit.seen.append(self._sticky(visit, door, password))
        for country in countries:
            if self._is_late():
                return visit
            found = self._get(visit, door, f"{account}-any-{country}", password)
            visit.seen.append(Observation(Check.COUNTRY, found.ok, door.name, country, detail=found.fault))
        refused = self._fetch(door, f"{account}-any-any", suspended)
        right = refused.fault == REFUSED
        detail = "" if right else f"a suspended key got {refused.fault or 'through'}"
        visit.seen.append(Observation(Check.SUSPENDED, right, door.name, detail=detail))
        return visit

    def _sticky(self, visit: Visit, door: Door, password: str) -> Observation:
        username = f"{self._plan.account}-any-any-sid-{secrets.token_hex(6)}-rot-sticky"
        found = [self._get(visit, door, username, password) for _ in range(2)]
        stays = all(one.ok for one in found) and len({one.exit_ip for one in found}) == 1
        fault = next((one.fault for one in found if one.fault), "")
        detail = "" if stays else fault or "the session changed its exit"
        return Observation(Check.STICKY, stays, door.name, detail=detail)

    def _get(self, visit: Visit, door: Door, username: str, password: str, *, socks: bool = False) -> Fetched:
        found = self._fetch(door, username, password, socks=socks)
        visit.fetches += 1
        visit.failed += not found.ok
        visit.body_bytes += found.body_bytes
        return found

    def _countries(self) -> list[str]:
        """Those with the most exits on sale, as the public stock has it."""
        status, stock = self._call("GET", "/v1/gateway/pool/stock", None)
        counts: dict[str, int] = {}
        for pool in stock["pools"].values() if status == 200 else ():
            for country, count in pool.items():
                counts[country] = counts.get(country, 0) + count
        return sorted(counts, key=lambda c: (-counts[c], c))[:COUNTRIES_MAX]

    def _keep_filled(self, key: Mapping[str, Any]) -> str | None:
        """Raise the key's cap when less than a day is left of it; answers why this run cannot be paid with it, or None."""
        if key["trafficCapGB"] is None:
            return None
        need = run_need_bytes(len(self._plan.doors) * FETCHES_MAX, BODY_BYTES)
        left = round(float(key["trafficCapGB"]) * BYTES_PER_GB) - int(key["usedBytes"])
        more = top_up_gb(left, need)
        if not more:
            return None
        status, _ = self._call("POST", f"{KEYS}/{key['id']}/topup", {"addTrafficGB": more})
        if status == 200:
            self._call(
                "PATCH", f"{KEYS}/{key['id']}", {"enabled": True}
            )  # it may have met its cap: a top-up enables nothing
            return None
        log.error("own key is not topped up", extra={"status": status, "left_bytes": left})
        return None if left >= need else f"{max(left, 0)} bytes left, top-up answered {status}"

    def _key(self, label: str, *, enabled: bool) -> dict[str, Any] | None:
        """The watchdog's key of this name, made when there is none, and put into the state that it is for."""
        status, listed = self._call("GET", KEYS, None)
        if status != 200:
            return None
        found = next((k for k in listed if k["label"] == label), None)
        if found is None:
            status, found = self._call("POST", KEYS, {"label": label, "trafficCapGB": CAP_GB})
            if status != 200:
                return None
        if found["enabled"] is not enabled:
            self._call("PATCH", f"{KEYS}/{found['id']}", {"enabled": enabled})
        status, revealed = self._call("POST", f"{KEYS}/{found['id']}/reveal", {})
        used = round(float(found["trafficUsedMB"]) * 1_000_000)
        return {**found, "key": revealed["key"], "usedBytes": used} if status == 200 else None

    def _billing(self, key: Mapping[str, Any], before: Mapping[str, int]) -> Observation:
        """What the last run carried, against how much the bill has grown since."""
        grown = int(key["usedBytes"]) - before["used"]
        fault = billing_fault(before["carried"], before["fetches"], before["failed"], grown)
        return Observation(Check.BILLING, ok=fault is None, detail=fault or "")

    # what is told

    def _tell(
        self, seen: list[Observation], state: Mapping[str, Any], billed: Mapping[str, int], now_ms: int
    ) -> WatchReport:
        findings = judge(seen)
        gateways = [door.name for door in self._plan.doors]
        turn = advance(state.get("counts") or {}, findings, seen, gateways)
        report = WatchReport(
            len(seen), [f"{o.check.value} {o.gateway} {o.detail}".strip() for o in seen if not o.ok]
        )
        report.findings = [f.key for f in findings]
        for finding in turn.standing:
            name, kind = f"watchdog#{finding.key}", f"watchdog_{finding.scope.value}"
            incident = Incident(name, kind, _words(finding), now_ms)
            if self._dynamo.run(open_incident(self._guard, incident)):  # or it stands, and was told
                self._notify(f"psx: {finding.scope.value} fault", incident.message)
                report.opened.append(finding.key)
        for key in turn.closed:
            if self._dynamo.run(close_incident(self._guard, f"watchdog#{key}", now_ms)) is not None:
                self._notify("psx: fault is over", f"{key} is right again")
                report.closed.append(key)
        kept = {"counts": dict(turn.counts), "billing": dict(billed) or state.get("billing") or {}}
        self._dynamo.run(write_setting(self._guard, SETTING, kept, now_ms))
        return report


_WHO: Final = {
    Scope.WATCHDOG: "the watchdog itself, which is blind meanwhile",
    Scope.FLEET: "the whole network",
    Scope.GATEWAY: "gateway",
    Scope.RELAY: "relay",
    Scope.COUNTRY: "country",
    Scope.SETTINGS: "settings",
}


def _words(finding: Finding) -> str:
    """One message for whoever meets it; it is public, so it holds names of ours and no address."""
    who = f"{_WHO[finding.scope]} {finding.name}".strip()
    if finding.scope is Scope.SETTINGS:
        who = _WHO[finding.scope]
    return f"{who}: {finding.check.value} fails" + (f" ({finding.detail})" if finding.detail else "")
