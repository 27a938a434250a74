"""The listing run: who should be on sale, against who is; only differences are written.

Truth is DynamoDB (`listed` of a grade); Redis is made to agree with it, which also heals a Redis that lost everything.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from shared.grading import table as grades
from shared.grading.model import Grade
from shared.grading.rules import Listing, brake_allows, decide_listing, is_verified
from shared.guard.model import Incident
from shared.guard.table import open_incident, read_setting
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, DeviceId, EndpointId
from shared.pool import live
from shared.pool.model import Endpoint, Presence
from shared.runtime.dynamo import RunsDynamo
from shared.runtime.redis import SyncRedis
from shared.supply import table as devices
from shared.supply.live import put_crowded, put_regions
from shared.supply.model import Device, Kind, Owner
from shared.supply.owners import get_owner
from shared.supply.proving import prove_device
from shared.supply.rules import (
    TERMS,
    crowded_networks,
    has_consent,
    network_of,
    override_for,
    wants_listing,
)

PAGE: Final = 500
CHANGES_TOLD_MAX: Final = 200
PROVEN_PER_RUN_MAX: Final = 1_000


@dataclass(slots=True)
class ListingReport:
    """What a run saw and changed."""

    devices: int = 0
    listed: int = 0
    newly_listed: list[str] = field(default_factory=list)
    delisted: list[str] = field(default_factory=list)
    healed: int = 0
    proven: int = 0
    braked: list[str] = field(default_factory=list)
    crowded: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Classes:
    """What decides the class of an exit beside its probe: home networks that are none, unless an operator has spoken.

    What an operator says of the exit's own address is in the probe's result already. The address that a device connects
    from is no proof of where it exits, so a word on that one can only clear a crowd.
    """

    overrides: Mapping[str, Any]
    crowded: frozenset[str] = frozenset()

    def of(self, grade: Grade, presence: Presence | None) -> IpType:
        """The class that is sold and paid. An exit that no probe has seen is unknown."""
        seen = grade.latest.exit_ip_type if grade.latest else IpType.UNKNOWN
        if seen is not IpType.RESIDENTIAL or presence is None or network_of(presence.ip) not in self.crowded:
            return seen
        cleared = override_for(self.overrides, presence.ip, presence.asn) is not None
        return seen if cleared else IpType.UNKNOWN


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
        terms = self._setting("terms") or TERMS
        owners: dict[AccountId, Owner] = {}
        on_sale = {pool: self.redis.run(live.listed_ids(pool)) for pool in Pool}
        keep: dict[Pool, list[tuple[Device, Grade, Presence | None]]] = {pool: [] for pool in Pool}
        drop: dict[Pool, list[tuple[Device, Grade | None, Listing]]] = {pool: [] for pool in Pool}
        seen: list[tuple[str, IpType]] = []
        for device in self._pages(devices.all_devices, "devices"):
            report.devices += 1
            grade, presence = known.get(device.device_id), self._presence(device)
            if presence is not None:
                seen.append((presence.ip, presence.ip_type))
            owner = self._owner(device.account_id, owners)
            verdict = decide_listing(
                grade,
                wanted=wants_listing(device, owner),
                consented=has_consent(device, owner, terms),
                online=device.kind is Kind.MODEM or presence is not None,
            )
            self._prove(device, grade, report, now_ms)
            report.reasons[verdict.value] = report.reasons.get(verdict.value, 0) + 1
            if verdict is Listing.LISTED and grade is not None:
                keep[device.pool].append((device, grade, presence))
            elif device.device_id in on_sale[device.pool] or (grade is not None and grade.listed):
                drop[device.pool].append((device, grade, verdict))
        classes = Classes(self._setting("ip_classes"), self._crowded(seen, report, now_ms))
        for pool in Pool:
            self._apply(pool, keep[pool], drop[pool], on_sale[pool], classes, report, now_ms)
        self._tell_regions()
        return report

    def _setting(self, name: str) -> dict[str, Any]:
        return self.dynamo.run(read_setting(self.table("guard"), name)) or {}

    def _pages(self, page_of: Callable[..., Any], table: str) -> Iterator[Any]:
        start: Mapping[str, Any] | None = None
        while True:
            page = self.dynamo.run(page_of(self.table(table), PAGE, start))
            yield from page.rows
            start = page.next_key
            if start is None:
                return

    def _presence(self, device: Device) -> Presence | None:
        if device.kind is Kind.MODEM:
            return None
        return self.redis.run(live.read_presence(device.device_id))

    def _owner(self, account_id: AccountId, known: dict[AccountId, Owner]) -> Owner:
        if account_id not in known:
            known[account_id] = self.dynamo.run(get_owner(self.table("devices"), account_id))
        return known[account_id]

    def _prove(self, device: Device, grade: Grade | None, report: ListingReport, now_ms: int) -> None:
        if device.proven_at_ms is None and is_verified(grade) and report.proven < PROVEN_PER_RUN_MAX:
            report.proven += prove_device(self.dynamo, self.table("devices"), device, now_ms)

    def _crowded(self, seen: list[tuple[str, IpType]], report: ListingReport, now_ms: int) -> frozenset[str]:
        """Find home networks with too many devices, and tell. The incident is public, so it names no network."""
        crowded = crowded_networks(seen)
        self.redis.run(put_crowded(crowded))
        report.crowded = sorted(crowded)[:CHANGES_TOLD_MAX]
        if crowded:
            message = f"{len(crowded)} networks hold more devices than homes do: paid as unknown until somebody looks"
            incident = Incident(f"{now_ms // 86_400_000}#crowd", "crowded_network", message, now_ms)
            self.dynamo.run(open_incident(self.table("guard"), incident))
        return crowded

    def _tell_regions(self) -> None:
        regions = self._setting("relays")
        if regions:
            self.redis.run(put_regions(regions))

    def _apply(
        self,
        pool: Pool,
        keep: list[tuple[Device, Grade, Presence | None]],
        drop: list[tuple[Device, Grade | None, Listing]],
        on_sale: frozenset[str],
        classes: Classes,
        report: ListingReport,
        now_ms: int,
    ) -> None:
        for device, grade, presence in keep:
            endpoint = endpoint_of(device, grade, classes.of(grade, presence))
            self._list(endpoint, device.device_id in on_sale, report)
        report.listed += len(keep)
        braked = [d for d in drop if d[2] in {Listing.FAILING, Listing.OFFLINE}]
        if not brake_allows(len(braked), len(keep) + len(drop)):
            self._brake(pool, len(braked), report, now_ms)
            drop = [d for d in drop if d not in braked]
        for device, before, verdict in drop:
            self._unlist(pool, device.device_id, before, verdict, report)
        gone = on_sale - {d.device_id for d, _, _ in keep} - {d.device_id for d, _, _ in drop}
        gone -= {d.device_id for d, _, _ in braked}
        for device_id in gone:  # on sale in Redis, unknown to the truth
            self.redis.run(live.unlist_endpoint(pool, EndpointId(device_id)))
            report.healed += 1

    def _list(self, endpoint: Endpoint, on_sale: bool, report: ListingReport) -> None:
        device_id = DeviceId(endpoint.endpoint_id)
        request = grades.set_listed(self.table("grades"), device_id, listed=True, reason=Listing.LISTED.value)
        fresh = self.dynamo.run(request)
        self.redis.run(live.list_endpoint(endpoint))
        if fresh is not None:
            _tell(report.newly_listed, device_id)
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


def endpoint_of(device: Device, grade: Grade, ip_type: IpType) -> Endpoint:
    """A device as selection sees it: what the probes saw of its exit, and nothing that it registered with."""
    latest, modem = grade.latest, device.modem
    return Endpoint(
        endpoint_id=EndpointId(device.device_id),
        pool=device.pool,
        account_id=device.account_id,
        country=latest.exit_country if latest else device.origin.country,
        carrier=device.carrier,
        asn=latest.exit_asn if latest else 0,
        isp=latest.exit_isp if latest else "",
        ip_type=ip_type,
        tier=grade.tier,
        modem_host=modem.host if modem else "",
        modem_port=modem.port if modem else 0,
        modem_credentials_sealed=modem.credentials_sealed if modem else "",
    )
