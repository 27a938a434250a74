"""The synthetic customer: uses the network as strangers do, audits its settings, and says how far a fault reaches.

It opens and closes incidents and notifies. By rule it restarts nothing and changes nothing but its own two keys.
"""

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
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
class Carried:
    """What this run's own key carried."""

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
    ) -> None:
        self._dynamo, self._guard = dynamo, guard_table
        self._call, self._fetch, self._notify, self._plan = call, fetch, notify, plan
        self._carried = Carried()

    def run(self, now_ms: int) -> WatchReport:
        """Look at everything once, and tell what changed since the last run."""
        state = self._dynamo.run(read_setting(self._guard, SETTING)) or {}
        control = self._fetch(None, "", "")
        seen = [Observation(Check.CONTROL, control.ok, detail=control.fault)]
        billed: dict[str, int] = {}
        if control.ok:
            seen += self._customer(state.get("billing") or {}, billed)
        for audit in self._plan.audits:
            seen += audit()
        return self._tell(seen, state, billed, now_ms)

    # as a customer

    def _customer(self, before: Mapping[str, int], billed: dict[str, int]) -> list[Observation]:
        key, suspended = self._key(LABEL, enabled=True), self._key(SUSPENDED_LABEL, enabled=False)
        if key is None or suspended is None:
            return [Observation(Check.BILLING, ok=False, detail="the reseller API gives no keys")]
        poor = self._keep_filled(key)
        if poor is not None:
            return [Observation(Check.OWN_KEY, ok=False, detail=poor)]
        seen = [self._billing(key, before)] if before else []
        used = int(key["usedBytes"])
        for door in self._plan.doors:
            seen += self._through(door, str(key["key"]))
            refused = self._fetch(door, f"{self._plan.account}-any-any", str(suspended["key"]))
            right = refused.fault == REFUSED
            detail = "" if right else f"a suspended key got {refused.fault or 'through'}"
            seen.append(Observation(Check.SUSPENDED, right, door.name, detail=detail))
        if self._plan.purchase is not None:
            fault = self._plan.purchase()
            seen.append(Observation(Check.PURCHASE, ok=fault is None, detail=fault or ""))
        carried = self._carried
        billed |= {
            "used": used,
            "carried": carried.body_bytes,
            "fetches": carried.fetches,
            "failed": carried.failed,
        }
        return seen

    def _through(self, door: Door, password: str) -> list[Observation]:
        account = self._plan.account
        seen = []
        for check, socks in ((Check.HTTP, False), (Check.SOCKS, True)):
            found = self._get(door, f"{account}-any-any-rot-ondemand", password, socks=socks)
            seen.append(Observation(check, found.ok, door.name, detail=found.fault))
        sid = secrets.token_hex(6)
        sticky = [self._get(door, f"{account}-any-any-sid-{sid}-rot-sticky", password) for _ in range(2)]
        stays = all(s.ok for s in sticky) and len({s.exit_ip for s in sticky}) == 1
        detail = next((s.fault for s in sticky if s.fault), "" if stays else "the session changed its exit")
        seen.append(Observation(Check.STICKY, stays, door.name, detail=detail))
        for country in self._countries():
            found = self._get(door, f"{account}-any-{country}", password)
            seen.append(Observation(Check.COUNTRY, found.ok, door.name, country, detail=found.fault))
        return seen

    def _get(self, door: Door, username: str, password: str, *, socks: bool = False) -> Fetched:
        found = self._fetch(door, username, password, socks=socks)
        self._carried.fetches += 1
        self._carried.failed += not found.ok
        self._carried.body_bytes += found.body_bytes
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
        turn = advance(state.get("counts") or {}, findings)
        incidents = dict(state.get("incidents") or {})
        report = WatchReport(
            len(seen), [f"{o.check.value} {o.gateway} {o.detail}".strip() for o in seen if not o.ok]
        )
        report.findings = [f.key for f in findings]
        for finding in turn.opened:
            incident = Incident(
                f"{now_ms // 60_000}#{finding.key}",
                f"watchdog_{finding.scope.value}",
                _words(finding),
                now_ms,
            )
            self._dynamo.run(open_incident(self._guard, incident))
            self._notify(f"psx: {finding.scope.value} fault", incident.message)
            incidents[finding.key] = incident.incident_id
            report.opened.append(finding.key)
        for key in turn.closed:
            incident_id = incidents.pop(key, None)
            if incident_id is not None:
                self._dynamo.run(close_incident(self._guard, incident_id, now_ms))
                self._notify("psx: fault is over", f"{key} is right again")
                report.closed.append(key)
        kept = {"counts": dict(turn.counts), "incidents": incidents, "billing": dict(billed)}
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
