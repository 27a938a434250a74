"""The listing run: who should be on sale, against who is; only differences are written.

Truth is DynamoDB (`listed` of a grade); Redis is made to agree with it, which also heals a Redis that lost everything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from shared.access.table import get_account
from shared.grading import table as grades
from shared.grading.model import Grade
from shared.grading.rules import Listing, brake_allows, decide_listing
from shared.guard.model import Incident
from shared.guard.table import open_incident
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, DeviceId, EndpointId
from shared.pool import live
from shared.pool.model import Endpoint
from shared.runtime.dynamo import RunsDynamo
from shared.runtime.redis import SyncRedis
from shared.supply import table as devices
from shared.supply.model import Device, Kind

PAGE: Final = 500
CHANGES_TOLD_MAX: Final = 200


@dataclass(slots=True)
class ListingReport:
    """What a run saw and changed."""

    devices: int = 0
    listed: int = 0
    newly_listed: list[str] = field(default_factory=list)
    delisted: list[str] = field(default_factory=list)
    healed: int = 0
    braked: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListingRun:
    """One run's tools."""

    dynamo: RunsDynamo
    redis: SyncRedis
    table: Callable[[str], str]

    def run(self, now_ms: int) -> ListingReport:
        """Bring listings up to date. Safe to run twice, late, or beside itself."""
        report = ListingReport()
        known = {grade.device_id: grade for grade in self._pages(grades.all_grades, "grades")}
        consents: dict[AccountId, bool] = {}
        on_sale = {pool: self.redis.run(live.listed_ids(pool)) for pool in Pool}
        keep: dict[Pool, list[tuple[Device, Grade]]] = {pool: [] for pool in Pool}
        drop: dict[Pool, list[tuple[Device, Grade | None, Listing]]] = {pool: [] for pool in Pool}
        for device in self._pages(devices.all_devices, "devices"):
            report.devices += 1
            grade = known.get(device.device_id)
            consented = self._consented(device, consents)
            online = (
                device.kind is Kind.MODEM or self.redis.run(live.read_presence(device.device_id)) is not None
            )
            verdict = decide_listing(device, grade, online=online, account_consented=consented)
            report.reasons[verdict.value] = report.reasons.get(verdict.value, 0) + 1
            if verdict is Listing.LISTED and grade is not None:
                keep[device.pool].append((device, grade))
            elif device.device_id in on_sale[device.pool] or (grade is not None and grade.listed):
                drop[device.pool].append((device, grade, verdict))
        for pool in Pool:
            self._apply(pool, keep[pool], drop[pool], on_sale[pool], report, now_ms)
        return report

    def _pages(self, page_of: Callable[..., Any], table: str) -> Any:
        start: Mapping[str, Any] | None = None
        while True:
            page = self.dynamo.run(page_of(self.table(table), PAGE, start))
            yield from page.rows
            start = page.next_key
            if start is None:
                return

    def _consented(self, device: Device, seen: dict[AccountId, bool]) -> bool:
        if device.consent is not None:
            return True
        if device.account_id not in seen:
            account = self.dynamo.run(get_account(self.table("access"), device.account_id))
            seen[device.account_id] = account is not None and account.consent_version is not None
        return seen[device.account_id]

    def _apply(
        self,
        pool: Pool,
        keep: list[tuple[Device, Grade]],
        drop: list[tuple[Device, Grade | None, Listing]],
        on_sale: frozenset[str],
        report: ListingReport,
        now_ms: int,
    ) -> None:
        for device, grade in keep:
            self._list(device, grade, device.device_id in on_sale, report)
        report.listed += len(keep)
        braked = [d for d in drop if d[2] in {Listing.FAILING, Listing.OFFLINE}]
        if not brake_allows(len(braked), len(keep) + len(drop)):
            self._brake(pool, len(braked), report, now_ms)
            drop = [d for d in drop if d not in braked]
        for device, before, verdict in drop:
            self._unlist(pool, device.device_id, before, verdict, report)
        gone = on_sale - {d.device_id for d, _ in keep} - {d.device_id for d, _, _ in drop}
        gone -= {d.device_id for d, _, _ in braked}
        for device_id in gone:  # on sale in Redis, unknown to the truth
            self.redis.run(live.unlist_endpoint(pool, EndpointId(device_id)))
            report.healed += 1

    def _list(self, device: Device, grade: Grade, on_sale: bool, report: ListingReport) -> None:
        fresh = self.dynamo.run(
            grades.set_listed(
                self.table("grades"), device.device_id, listed=True, reason=Listing.LISTED.value
            )
        )
        self.redis.run(live.list_endpoint(endpoint_of(device, grade)))
        if fresh is not None:
            _tell(report.newly_listed, device.device_id)
        elif not on_sale:
            report.healed += 1

    def _unlist(
        self, pool: Pool, device_id: DeviceId, grade: Grade | None, verdict: Listing, report: ListingReport
    ) -> None:
        self.redis.run(live.unlist_endpoint(pool, EndpointId(device_id)))
        if grade is not None:
            self.dynamo.run(
                grades.set_listed(self.table("grades"), device_id, listed=False, reason=verdict.value)
            )
        _tell(report.delisted, f"{device_id}: {verdict.value}")

    def _brake(self, pool: Pool, count: int, report: ListingReport, now_ms: int) -> None:
        message = (
            f"{count} exits of {pool.value} would go off sale in one run: the prober or a relay is suspect"
        )
        report.braked.append(message)
        incident = Incident(f"{now_ms // 3_600_000}#brake#{pool.value}", "listing_brake", message, now_ms)
        self.dynamo.run(open_incident(self.table("guard"), incident))


def _tell(told: list[str], text: str) -> None:
    if len(told) < CHANGES_TOLD_MAX:
        told.append(text)


def endpoint_of(device: Device, grade: Grade) -> Endpoint:
    """A device as selection sees it: what the probe saw of its exit decides country and class."""
    latest = grade.latest
    origin = device.origin
    probed = latest is not None and latest.exit_ip_type is not IpType.UNKNOWN
    modem = device.modem
    return Endpoint(
        endpoint_id=EndpointId(device.device_id),
        pool=device.pool,
        account_id=device.account_id,
        country=latest.exit_country if latest and probed else origin.country,
        carrier=device.carrier,
        asn=latest.exit_asn if latest and probed else origin.asn,
        isp=latest.exit_isp if latest and probed else origin.isp,
        ip_type=latest.exit_ip_type if latest and probed else origin.ip_type,
        tier=grade.tier,
        modem_host=modem.host if modem else "",
        modem_port=modem.port if modem else 0,
        modem_credentials_sealed=modem.credentials_sealed if modem else "",
    )
