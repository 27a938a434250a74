"""The listing run: who should be on sale, against who is; only differences are read, and only differences are written.

Truth is DynamoDB (`listed` of a grade); Redis is made to agree with it. A run looks at what was marked as changed, and at
as many segments of all devices as its time allows, so that a lost mark is made up for. A Redis that lost all is filled
again from the index of what is on sale. Decision 0060.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from shared.grading import live as marks
from shared.grading import table as grades
from shared.grading.model import Cause, Grade, Thresholds
from shared.grading.rules import (
    Listing,
    brake_allows,
    decide_listing,
    is_verified,
    parse_thresholds,
    stability_score,
)
from shared.guard.model import Incident
from shared.guard.table import close_incident, open_incident, open_incidents, read_setting
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, DeviceId, EndpointId
from shared.pool import live
from shared.pool.model import Endpoint, Presence
from shared.pool.numbers import put_fleet
from shared.runtime.dynamo import (
    BATCH_GET_MAX,
    Batch,
    DynamoRequest,
    Item,
    RunsDynamo,
    StoreUnavailable,
    batch_get,
    fan_out,
)
from shared.runtime.redis import SyncRedis
from shared.supply import table as devices
from shared.supply.live import put_crowded, put_regions, read_crowded
from shared.supply.model import Device, Kind, Owner
from shared.supply.owners import owner_key, read_owner
from shared.supply.proving import prove_device
from shared.supply.rules import CROWD_MAX, TERMS, has_consent, network_of, override_for, wants_listing

T = TypeVar("T")
PAGE: Final = 1_000
AT_ONCE: Final = 16
SEGMENTS: Final = 32
MARKS_MAX: Final = 50_000
SWEEP_S: Final = 6.0
"""No segment is begun after this: a segment of a large fleet takes a few seconds itself."""
RUN_MAX_S: Final = 20.0
LIST_BATCH: Final = 200
GHOSTS_PER_RUN: Final = 20_000
FORGOTTEN_WITHIN_MS: Final = 60_000
CHANGES_TOLD_MAX: Final = 200
CHANGES_LOGGED_MAX: Final = 5_000
PROVEN_PER_RUN_MAX: Final = 1_000
INCIDENTS_MAX: Final = 100
READ_ATTEMPTS_MAX: Final = 8
BRAKE: Final = "listing_brake"
STABILITY_STEP: Final = 10
"""Scores are sold in steps, because one that fades a little every hour is no change."""

log = logging.getLogger("psx.listing")


@dataclass(slots=True)
class ListingReport:
    """What a run looked at and changed. `left` marks wait for the next run, `swept` segments of all were looked at."""

    devices: int = 0
    listed: int = 0
    newly_listed: list[str] = field(default_factory=list)
    delisted: list[str] = field(default_factory=list)
    changed: int = 0
    refreshed: int = 0
    healed: int = 0
    rebuilt: int = 0
    proven: int = 0
    queued: int = 0
    swept: int = 0
    left: int = 0
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
class Looked:
    """A device with all that decides on its listing, and the decision."""

    device: Device
    grade: Grade | None
    presence: Presence | None
    verdict: Listing


@dataclass(slots=True)
class Changes:
    """What a run has found to change."""

    put: list[Endpoint] = field(default_factory=list)
    heal: list[Endpoint] = field(default_factory=list)
    drop: list[Looked] = field(default_factory=list)
    gone: list[tuple[Pool, EndpointId]] = field(default_factory=list)


class ListingRun:
    """One run's tools. `elapsed_s` is a clock that only goes forward."""

    def __init__(
        self,
        dynamo: RunsDynamo,
        redis: SyncRedis,
        table: Callable[[str], str],
        at_once: int = AT_ONCE,
        elapsed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dynamo = dynamo
        self.redis = redis
        self.table = table
        self._at_once = at_once
        self._elapsed_s = elapsed_s

    def run(self, now_ms: int, *, sweep: bool = True) -> ListingReport:
        """Bring listings up to date. Safe to run twice, late, or beside itself. Without `sweep` it looks at marks only."""
        run = _Run(self.dynamo, self.redis, self.table, self._at_once, self._elapsed_s, now_ms)
        return run.go(sweep=sweep)


class _Run:
    def __init__(
        self,
        dynamo: RunsDynamo,
        redis: SyncRedis,
        table: Callable[[str], str],
        at_once: int,
        elapsed_s: Callable[[], float],
        now_ms: int,
    ) -> None:
        self._dynamo, self._redis, self._table, self._at_once = dynamo, redis, table, at_once
        self._elapsed_s, self._began_s, self._now_ms = elapsed_s, elapsed_s(), now_ms
        self._owners: dict[AccountId, Owner] = {}
        self._changes = Changes()
        self._seen: set[DeviceId] = set()
        self._stays_marked: set[DeviceId] = set()
        self.report = ListingReport()
        self._terms = self._setting("terms") or TERMS
        self._thresholds: Thresholds = parse_thresholds(self._setting("grading"))
        self._classes = Classes(self._setting("ip_classes"), redis.run(read_crowded()))

    def go(self, *, sweep: bool) -> ListingReport:
        lost = not self._redis.run(marks.sweep_stands())
        if lost:
            self._rebuild()
        changed = self._redis.run(marks.read_changed(MARKS_MAX))
        everything = lost or marks.EVERYTHING in changed
        self._look_at_marked(changed)
        if sweep or everything:
            self._sweep(RUN_MAX_S if everything else SWEEP_S, everything=everything)
            self._look_for_ghosts()
            self._tell_regions()
        self._apply()
        self._settle(changed)
        self.report.listed = sum(self._redis.run(live.listed_count(pool)) for pool in Pool)
        return self.report

    # what to look at

    def _look_at_marked(self, changed: Mapping[str, int]) -> None:
        ids = {found for mark in changed if (found := marks.marked_device(mark)) is not None}
        self._look(self._devices_by_id(sorted(ids)))
        for mark in changed:
            account_id = marks.marked_account(mark)
            if account_id is not None:
                for part in self._parts(self._devices_of(account_id)):
                    self._look(self._devices_by_id(part))

    def _devices_of(self, account_id: AccountId) -> Iterator[DeviceId]:
        start: Mapping[str, Any] | None = None
        while True:
            page = self._dynamo.run(devices.of_account(self._table("devices"), account_id, PAGE, start))
            yield from (device.device_id for device in page.rows)
            start = page.next_key
            if start is None:
                return

    def _devices_by_id(self, ids: Sequence[DeviceId]) -> list[Device]:
        keys = [devices.device_key(device_id) for device_id in ids]
        return self._read_many("devices", keys, devices.read_device)

    def _sweep(self, within_s: float, *, everything: bool) -> None:
        for _ in range(SEGMENTS):
            if self.report.swept and self._elapsed_s() - self._began_s >= within_s:
                return
            number = self._redis.run(marks.begin_sweep(SEGMENTS))
            homes, fleet = Counter[str](), Counter[str]()
            for page in self._segment(number):
                for looked in self._look(page):
                    fleet.update(_facts(looked))
                    presence = looked.presence
                    if presence is not None and presence.ip_type is IpType.RESIDENTIAL:
                        homes[network_of(presence.ip)] += 1
                self._queue(page)
            self._redis.run(marks.put_homes(number, homes))
            self._redis.run(marks.put_fleet_part(number, fleet))
            self.report.swept += 1
        self._find_crowds()
        fleet = self._redis.run(marks.read_fleet())
        self._redis.run(put_fleet(fleet))

    def _segment(self, number: int) -> Iterator[list[Device]]:
        start: Mapping[str, Any] | None = None
        while True:
            segment = (number, SEGMENTS)
            page = self._dynamo.run(devices.all_devices(self._table("devices"), PAGE, start, segment))
            if page.rows:
                yield list(page.rows)
            start = page.next_key
            if start is None:
                return

    def _queue(self, found: list[Device]) -> None:
        """Devices that no prober would come to: those that a lost Redis forgot. Absent peers are asked for as they come."""
        present = [d.device_id for d in found if d.kind is Kind.MODEM or d.device_id in self._online]
        for part in self._parts(present):
            self.report.queued += self._redis.run(marks.queue_forgotten(part, FORGOTTEN_WITHIN_MS))

    def _look_for_ghosts(self) -> None:
        """What Redis has on sale and the truth does not."""
        for pool in Pool:
            cursor, looked = "0", 0
            while looked < GHOSTS_PER_RUN:
                cursor, ids = self._redis.run(live.scan_listed(pool, cursor, PAGE))
                unseen = [i for i in ids if i not in self._seen]
                known = {
                    g.device_id: g
                    for g in self._read_many(
                        "grades", [grades.grade_key(i) for i in unseen], grades.read_grade
                    )
                }
                ghosts = [i for i in unseen if i not in known or not known[i].listed]
                self._changes.gone += [(pool, EndpointId(i)) for i in ghosts]
                looked += len(ids)
                if cursor == "0":
                    break

    # what is decided

    def _look(self, found: list[Device]) -> list[Looked]:
        fresh = [d for d in found if d.device_id not in self._seen]
        self._seen.update(d.device_id for d in fresh)
        self._read_owners({d.account_id for d in fresh})
        keys = [grades.grade_key(d.device_id) for d in fresh]
        known = {g.device_id: g for g in self._read_many("grades", keys, grades.read_grade)}
        present = self._presences(fresh)
        looked = [self._decide(d, known.get(d.device_id), present.get(d.device_id)) for d in fresh]
        self._compare(looked)
        return looked

    def _presences(self, found: list[Device]) -> dict[DeviceId, Presence]:
        peers = [d.device_id for d in found if d.kind is not Kind.MODEM]
        present: dict[DeviceId, Presence] = {}
        for part in self._parts(peers):
            for presence in self._redis.run(live.read_presences(part)):
                if presence is not None:
                    present[presence.device_id] = presence
        self._online = present
        return present

    def _decide(self, device: Device, grade: Grade | None, presence: Presence | None) -> Looked:
        owner = self._owners[device.account_id]
        verdict = decide_listing(
            grade,
            wanted=wants_listing(device, owner),
            consented=has_consent(device, owner, self._terms),
            online=device.kind is Kind.MODEM or presence is not None,
            thresholds=self._thresholds,
        )
        report = self.report
        report.devices += 1
        report.reasons[verdict.value] = report.reasons.get(verdict.value, 0) + 1
        if (
            device.proven_at_ms is None
            and is_verified(grade, self._thresholds)
            and report.proven < PROVEN_PER_RUN_MAX
        ):
            report.proven += prove_device(self._dynamo, self._table("devices"), device, self._now_ms)
        return Looked(device, grade, presence, verdict)

    def _compare(self, looked: list[Looked]) -> None:
        """Find what differs between what was decided, the truth and Redis."""
        for pool in Pool:
            of_pool = [one for one in looked if one.device.pool is pool]
            ids = [EndpointId(one.device.device_id) for one in of_pool]
            on_sale: list[bool] = []
            for part in self._parts(ids):
                found: list[bool] = self._redis.run(live.are_listed(pool, part))
                on_sale += found
            for one, is_on_sale in zip(of_pool, on_sale, strict=True):
                self._compare_one(one, is_on_sale)

    def _compare_one(self, one: Looked, on_sale: bool) -> None:
        grade = one.grade
        if one.verdict is Listing.LISTED and grade is not None:
            endpoint = endpoint_of(one.device, grade, self._classes.of(grade, one.presence))
            if not grade.listed or grade.goods != grades.goods_of(endpoint):
                self._changes.put.append(endpoint)
            elif not on_sale:
                self._changes.heal.append(endpoint)
        elif on_sale or (grade is not None and (grade.listed or grade.reason != one.verdict.value)):
            self._changes.drop.append(one)

    # what is done

    def _apply(self) -> None:
        self._put_on_sale()
        standing = {
            i.incident_id: i
            for i in self._dynamo.run(open_incidents(self._table("guard"), INCIDENTS_MAX)).rows
            if i.kind == BRAKE and i.closed_at_ms is None
        }
        for pool in Pool:
            drop = [one for one in self._changes.drop if one.device.pool is pool]
            size = self._redis.run(live.listed_count(pool))
            for cause in Cause:
                held = [one for one in drop if one.verdict.braked_as is cause and self._is_on_sale(one)]
                name = f"brake#{pool.value}#{cause.value}"
                if brake_allows(len(held), size, self._thresholds.brake_percent):
                    self._close(standing, name)
                else:
                    self._brake(pool, cause, len(held), size, name, standing)
                    stays = {one.device.device_id for one in held}
                    self._stays_marked |= stays
                    drop = [one for one in drop if one.device.device_id not in stays]
            self._take_off_sale(pool, drop)
        for pool in Pool:
            gone = [endpoint_id for of, endpoint_id in self._changes.gone if of is pool]
            for part in self._parts(gone, LIST_BATCH):
                self._redis.run(live.unlist_endpoints(pool, part))
                self.report.healed += len(part)

    def _is_on_sale(self, one: Looked) -> bool:
        return one.grade is not None and one.grade.listed

    def _put_on_sale(self) -> None:
        put = self._changes.put
        table = self._table("grades")
        for part in self._parts(put):
            written = fan_out(self._dynamo.run, [grades.set_listed(table, e) for e in part], self._at_once)
            stands = [e for e, grade in zip(part, written, strict=True) if grade is not None]
            for endpoint, is_new in zip(stands, self._show(stands), strict=True):
                if is_new:
                    self._tell(self.report.newly_listed, endpoint.endpoint_id, Listing.LISTED)
                else:
                    self.report.refreshed += 1
        for part in self._parts(self._changes.heal):
            self.report.healed += self._show(part).count(True)

    def _show(self, endpoints: Sequence[Endpoint]) -> list[bool]:
        """Put endpoints into Redis; whether each is new there, in their order."""
        new: dict[EndpointId, bool] = {}
        for pool in Pool:
            for part in self._parts([e for e in endpoints if e.pool is pool], LIST_BATCH):
                answers = self._redis.run(live.list_endpoints(part))
                new |= dict(zip((e.endpoint_id for e in part), answers, strict=True))
        return [new[e.endpoint_id] for e in endpoints]

    def _take_off_sale(self, pool: Pool, drop: list[Looked]) -> None:
        table = self._table("grades")
        for part in self._parts(drop, LIST_BATCH):
            ids = [EndpointId(one.device.device_id) for one in part]
            was = self._redis.run(live.unlist_endpoints(pool, ids))
            graded = [one for one in part if one.grade is not None]
            fan_out(
                self._dynamo.run,
                [grades.set_unlisted(table, one.device.device_id, one.verdict.value) for one in graded],
                self._at_once,
            )
            for one, was_on_sale in zip(part, was, strict=True):
                if was_on_sale or self._is_on_sale(one):
                    self._tell(self.report.delisted, one.device.device_id, one.verdict)

    def _brake(
        self, pool: Pool, cause: Cause, count: int, size: int, name: str, standing: Mapping[str, Incident]
    ) -> None:
        suspect = "the prober" if cause is Cause.EXIT else "a relay or the live store"
        message = (
            f"{count} of {size} exits of {pool.value} would go off sale in one run "
            f"({cause.value}): {suspect} is suspect"
        )
        self.report.braked.append(message)
        if not any(i.endswith(name) for i in standing):
            incident = Incident(f"{self._now_ms // 60_000}#{name}", BRAKE, message, self._now_ms)
            self._dynamo.run(open_incident(self._table("guard"), incident))

    def _close(self, standing: Mapping[str, Incident], name: str) -> None:
        for incident_id in standing:
            if incident_id.endswith(name):
                self._dynamo.run(close_incident(self._table("guard"), incident_id, self._now_ms))

    def _settle(self, changed: Mapping[str, int]) -> None:
        """Marks are settled but for those whose devices the brake holds, and for everything, until all was swept."""
        swept_all = self.report.swept >= SEGMENTS
        settled = [
            (mark, at_ms)
            for mark, at_ms in changed.items()
            if marks.marked_device(mark) not in self._stays_marked and (mark != marks.EVERYTHING or swept_all)
        ]
        for part in self._parts(settled):
            self._redis.run(marks.settle_changed(part))
        self.report.left = len(changed) - len(settled)

    # a Redis that lost everything

    def _rebuild(self) -> None:
        """What the truth has on sale, straight from its index; the sweep looks at each of them afterwards."""
        table = self._table("grades")
        for pool in Pool:
            for number in range(grades.SHELVES):
                start: Mapping[str, Any] | None = None
                while True:
                    page = self._dynamo.run(grades.on_shelf(table, pool, number, PAGE, start))
                    self.report.rebuilt += self._show(page.rows).count(True)
                    start = page.next_key
                    if start is None:
                        break

    # around

    def _find_crowds(self) -> None:
        """Find home networks with too many devices, and tell. The incident is public, so it names no network."""
        counts: Counter[str] = Counter()
        for number in range(SEGMENTS):
            counts.update(self._redis.run(marks.read_homes(number)))
        crowded = frozenset(n for n, count in counts.items() if n and count > CROWD_MAX)
        self._redis.run(put_crowded(crowded))
        self.report.crowded = sorted(crowded)[:CHANGES_TOLD_MAX]
        if crowded:
            message = f"{len(crowded)} networks hold more devices than homes do: paid as unknown until somebody looks"
            incident = Incident(
                f"{self._now_ms // 86_400_000}#crowd", "crowded_network", message, self._now_ms
            )
            self._dynamo.run(open_incident(self._table("guard"), incident))

    def _tell_regions(self) -> None:
        regions = self._setting("relays")
        if regions:
            self._redis.run(put_regions(regions))

    def _setting(self, name: str) -> dict[str, Any]:
        return self._dynamo.run(read_setting(self._table("guard"), name)) or {}

    def _read_owners(self, accounts: set[AccountId]) -> None:
        asked = sorted(accounts - self._owners.keys())
        found = self._read_many("devices", [owner_key(a) for a in asked], read_owner)
        self._owners |= {a: Owner(a) for a in asked} | {o.account_id: o for o in found}

    def _read_many(self, table: str, keys: Sequence[tuple[str, str]], parse: Callable[[Item], T]) -> list[T]:
        """Rows by their keys, in no order; those that are not there are left out. Raises StoreUnavailable."""
        found: list[T] = []
        asked = list(keys)
        for _ in range(READ_ATTEMPTS_MAX):
            if not asked:
                return found
            requests: list[DynamoRequest[Batch[T]]] = [
                batch_get(self._table(table), part, parse=parse) for part in self._parts(asked, BATCH_GET_MAX)
            ]
            asked = []
            for batch in fan_out(self._dynamo.run, requests, self._at_once):
                found += batch.rows
                asked += batch.left
        raise StoreUnavailable(f"{table}: the store has no time for a batch")

    def _parts(self, items: Iterable[Any], size: int = PAGE) -> Iterator[list[Any]]:
        part: list[Any] = []
        for item in items:
            part.append(item)
            if len(part) == size:
                yield part
                part = []
        if part:
            yield part

    def _tell(self, told: list[str], device_id: str, verdict: Listing) -> None:
        self.report.changed += 1
        if self.report.changed <= CHANGES_LOGGED_MAX:
            log.info("listing", extra={"device": device_id, "verdict": verdict.value})
        if len(told) < CHANGES_TOLD_MAX:
            told.append(device_id if verdict is Listing.LISTED else f"{device_id}: {verdict.value}")


def _facts(looked: Looked) -> list[str]:
    """What a device is counted as."""
    grade = looked.grade
    facts = ["devices", f"verdict.{looked.verdict.value}", f"tier.{grade.tier.value if grade else 'unknown'}"]
    return [*facts, "quarantined"] if grade is not None and grade.quarantined else facts


def endpoint_of(device: Device, grade: Grade, ip_type: IpType) -> Endpoint:
    """A device as selection sees it: what the probes saw of its exit, and nothing that it registered with."""
    latest, modem = grade.latest, device.modem
    score = stability_score(grade.stability)
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
        stability=None if score is None else score // STABILITY_STEP * STABILITY_STEP,
    )
