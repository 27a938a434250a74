"""The listing run: who should be on sale, against who is; only differences are read, and only differences are written.

Truth is DynamoDB (`listed` of a grade); Redis is made to agree with it. A run looks at what was marked as changed, and at
as many segments of all devices as its time allows, so that a lost mark is made up for. A Redis that lost all is filled
again from the index of what is on sale. Decision 0060. It reads by `fleet.py` and writes by `shelf.py`.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from shared.grading import live as marks
from shared.grading import table as grades
from shared.grading.barring import Barring
from shared.grading.fleet import PAGE, Fleet, parts_of
from shared.grading.model import Grade, Thresholds
from shared.grading.offer import Classes, Looked, endpoint_of, exits_from, facts_of
from shared.grading.rules import Listing, decide_listing, is_verified, stored_thresholds
from shared.grading.shelf import Brake, Shelf
from shared.grading.standing import is_revoked, settle_may_serve
from shared.guard.model import Incident
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import DeviceId, EndpointId
from shared.pool import live
from shared.pool.model import Endpoint, Presence
from shared.pool.numbers import put_fleet
from shared.runtime.dynamo import RunsDynamo
from shared.runtime.redis import SyncRedis
from shared.supply.hours import is_open
from shared.supply.live import put_crowded, put_regions, read_crowded
from shared.supply.model import Device, Kind, Owner
from shared.supply.proving import prove_device
from shared.supply.rules import TERMS, crowded_networks, has_consent, network_of, wants_listing

AT_ONCE: Final = 16
SEGMENTS: Final = 64
MARKS_MAX: Final = 50_000
SWEEP_S: Final = 6.0
"""No segment is begun after this: a segment of a large fleet takes a second or more itself."""
SWEEP_ALL_S: Final = 12.0
"""The same while everything is to be looked at: rounds are 20 s apart, and what was found is written within them, too."""
GHOSTS_PER_RUN: Final = 2_000
FORGOTTEN_WITHIN_MS: Final = 60_000
CHANGES_TOLD_MAX: Final = 200
CHANGES_LOGGED_MAX: Final = 5_000
PROVEN_PER_RUN_MAX: Final = 1_000

CROWD: Final = "crowd"

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
    barred: list[str] = field(default_factory=list)
    queued: int = 0
    swept: int = 0
    left: int = 0
    braked: list[str] = field(default_factory=list)
    crowded: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    def tell(self, device_id: str, verdict: Listing) -> None:
        """One change: counted, logged with its reason, and the first of them named."""
        self.changed += 1
        if self.changed <= CHANGES_LOGGED_MAX:
            log.info("listing", extra={"device": device_id, "verdict": verdict.value})
        is_new = verdict is Listing.LISTED
        told = self.newly_listed if is_new else self.delisted
        if len(told) < CHANGES_TOLD_MAX:
            told.append(device_id if is_new else f"{device_id}: {verdict.value}")


@dataclass(slots=True)
class Changes:
    """What a run has found to change."""

    put: list[Endpoint] = field(default_factory=list)
    heal: list[Endpoint] = field(default_factory=list)
    drop: list[Looked] = field(default_factory=list)
    gone: list[tuple[Pool, DeviceId]] = field(default_factory=list)


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
        fleet = Fleet(self.dynamo, self.redis, self.table, self._at_once, now_ms)
        return _Run(fleet, self._elapsed_s).go(sweep=sweep)


class _Run:
    def __init__(self, fleet: Fleet, elapsed_s: Callable[[], float]) -> None:
        self._fleet, self._redis = fleet, fleet.redis
        self._elapsed_s, self._began_s = elapsed_s, elapsed_s()
        self._changes = Changes()
        self._seen: set[DeviceId] = set()
        self._swept: dict[int, int] = {}
        self._marked: dict[DeviceId, Looked] = {}
        self._stays_marked: set[DeviceId] = set()
        self.report = ListingReport()
        self._shelf = Shelf(fleet, self.report.tell)
        self._terms = fleet.setting("terms") or TERMS
        self._thresholds: Thresholds
        self._thresholds, fault = stored_thresholds(fleet.setting("grading"))
        if fault:
            log.error("the setting grading is not used as it stands", extra={"reason": fault})
        self._brake = Brake(fleet, self._thresholds, self.report)
        self._classes = Classes(fleet.setting("ip_classes"), self._redis.run(read_crowded()))

    def go(self, *, sweep: bool) -> ListingReport:
        lost = not self._redis.run(marks.sweep_stands())
        if lost:
            self.report.rebuilt = self._shelf.rebuild()
            self._redis.run(marks.mark_changed([marks.EVERYTHING]))
        changed = self._redis.run(marks.read_changed(MARKS_MAX))
        everything = marks.EVERYTHING in changed
        self._look_at_marked(changed)
        if sweep or everything:
            self._sweep(SWEEP_ALL_S if everything else SWEEP_S)
            self._look_for_ghosts()
            self._tell_regions()
        self._apply()
        self._settle(changed)
        self.report.listed = sum(self._redis.run(live.listed_count(pool)) for pool in Pool)
        return self.report

    # what to look at

    def _look_at_marked(self, changed: Mapping[str, int]) -> None:
        accused = [found for mark in changed if (found := marks.marked_conduct(mark)) is not None]
        barring = Barring(self._fleet, self._thresholds, self._brake)
        self.report.barred, held = barring.judge(accused)
        self._stays_marked |= held
        ids = {found for mark in changed if (found := marks.marked_device(mark)) is not None}
        for part in parts_of(sorted(ids)):
            self._marked |= {one.device.device_id: one for one in self._look(self._fleet.by_id(part))}
        accounts = {owner for mark in changed if (owner := marks.marked_account(mark)) is not None}
        for account_id in sorted(accounts):
            for page in self._fleet.of_account(account_id):
                self._marked |= {one.device.device_id: one for one in self._look(page)}

    def _sweep(self, within_s: float) -> None:
        for _ in range(SEGMENTS):
            if self.report.swept and self._elapsed_s() - self._began_s >= within_s:
                break
            number, at_ms = self._redis.run(marks.begin_sweep(SEGMENTS))
            homes, counts = Counter[str](), Counter[str]()
            for page in self._fleet.segment(number, SEGMENTS):
                looked = self._look(page)
                looked += [self._marked[d.device_id] for d in page if d.device_id in self._marked]
                for one in looked:
                    counts.update(facts_of(one))
                    if one.presence is not None and one.presence.ip_type is IpType.RESIDENTIAL:
                        homes[network_of(one.presence.ip)] += 1
                    latest = one.grade.latest if one.grade else None
                    if latest is not None and latest.exit_ip_type is IpType.RESIDENTIAL:
                        homes[exits_from(latest)] += 1
                self._queue(looked)
            self._redis.run(marks.put_homes(number, homes))
            self._redis.run(marks.put_fleet_part(number, counts))
            self._swept[number] = at_ms
            self.report.swept += 1
        self._find_crowds()
        fleet: Counter[str] = self._redis.run(marks.read_fleet())
        self._redis.run(put_fleet(fleet))

    def _queue(self, looked: Sequence[Looked]) -> None:
        """Devices that no prober would come to: those that a lost Redis forgot. Absent peers are asked for as they come."""
        present = [
            one.device.device_id
            for one in looked
            if one.device.kind is Kind.MODEM or one.presence is not None
        ]
        for part in parts_of(present):
            self.report.queued += self._redis.run(marks.queue_forgotten(part, FORGOTTEN_WITHIN_MS))

    def _look_for_ghosts(self) -> None:
        """What Redis has on sale and the truth does not: a part of it, and the next part in the next run."""
        for pool in Pool:
            cursor, looked = self._redis.run(marks.read_ghost_cursor(pool)), 0
            while looked < GHOSTS_PER_RUN:
                cursor, ids = self._redis.run(live.scan_listed(pool, cursor, PAGE))
                unseen = [DeviceId(i) for i in ids if i not in self._seen]
                known = self._fleet.grades(unseen)
                self._changes.gone += [(pool, i) for i in unseen if i not in known or not known[i].listed]
                looked += len(ids)
                if cursor == "0":
                    break
            self._redis.run(marks.put_ghost_cursor(pool, cursor))

    # what is decided

    def _look(self, found: Sequence[Device]) -> list[Looked]:
        fresh = [d for d in found if d.device_id not in self._seen]
        self._seen.update(d.device_id for d in fresh)
        owners = self._fleet.owners({d.account_id for d in fresh})
        known = self._fleet.grades([d.device_id for d in fresh])
        present = self._fleet.present(fresh)
        looked = [
            self._decide(d, owners[d.account_id], known.get(d.device_id), present.get(d.device_id))
            for d in fresh
        ]
        self._compare(looked)
        settle_may_serve(self._redis, ((one.device, one.may_serve) for one in looked))
        return looked

    def _decide(self, device: Device, owner: Owner, grade: Grade | None, presence: Presence | None) -> Looked:
        fleet, report = self._fleet, self.report
        consented = has_consent(device, owner, self._terms)
        revoked = is_revoked(device, owner, presence)
        may_serve = consented and presence is not None and not revoked
        verdict = decide_listing(
            grade,
            wanted=wants_listing(device, owner),
            in_hours=is_open(owner.hours, fleet.now_ms),
            consented=consented,
            revoked=revoked,
            online=device.kind is Kind.MODEM or presence is not None,
            now_ms=fleet.now_ms,
            thresholds=self._thresholds,
        )
        report.devices += 1
        report.reasons[verdict.value] = report.reasons.get(verdict.value, 0) + 1
        unproven = device.proven_at_ms is None and report.proven < PROVEN_PER_RUN_MAX
        if unproven and is_verified(grade, self._thresholds):
            report.proven += prove_device(fleet.dynamo, fleet.table("devices"), device, fleet.now_ms)
        return Looked(device, grade, presence, verdict, may_serve)

    def _compare(self, looked: Sequence[Looked]) -> None:
        """Find what differs between what was decided, the truth and Redis."""
        for pool in Pool:
            for part in parts_of(one for one in looked if one.device.pool is pool):
                ids = [EndpointId(one.device.device_id) for one in part]
                on_sale: list[bool] = self._redis.run(live.are_listed(pool, ids))
                for one, is_on_sale in zip(part, on_sale, strict=True):
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
        changes, report = self._changes, self.report
        report.refreshed += self._shelf.put(changes.put)
        report.healed += self._shelf.show(changes.heal).count(True)
        for pool in Pool:
            drop = [one for one in changes.drop if one.device.pool is pool]
            held = self._brake.holds(pool, drop)
            self._stays_marked |= held
            self._shelf.take_off(pool, [one for one in drop if one.device.device_id not in held])
            ghosts = [device_id for of, device_id in changes.gone if of is pool]
            self._shelf.hide(pool, ghosts)
            report.healed += len(ghosts)

    def _settle(self, changed: Mapping[str, int]) -> None:
        """Marks are settled but for those whose devices the brake holds; everything, when all was swept since it was made,
        by however many runs.
        """
        if self._swept:
            self._redis.run(marks.put_swept(self._swept))
        swept_ms = self._redis.run(marks.all_swept_ms(SEGMENTS)) if marks.EVERYTHING in changed else 0
        settled = [
            (mark, at_ms)
            for mark, at_ms in changed.items()
            if marks.marked_device(mark) not in self._stays_marked
            and (mark != marks.EVERYTHING or swept_ms >= at_ms)
        ]
        for part in parts_of(settled):
            self._redis.run(marks.settle_changed(part))
        self.report.left = len(changed) - len(settled)

    # around

    def _find_crowds(self) -> None:
        """Find home networks with too many devices, and tell. The incident is public, so it names no network."""
        counts: Counter[str] = Counter()
        for number in range(SEGMENTS):
            counts.update(self._redis.run(marks.read_homes(number)))
        crowded = crowded_networks(counts)
        self._redis.run(put_crowded(crowded))
        self.report.crowded = sorted(crowded)[:CHANGES_TOLD_MAX]
        if not crowded:
            self._brake.close(CROWD)
        else:
            message = f"{len(crowded)} networks hold more devices than homes do: paid as unknown until somebody looks"
            self._brake.open(Incident(CROWD, "crowded_network", message, self._fleet.now_ms))

    def _tell_regions(self) -> None:
        regions = self._fleet.setting("relays")
        if regions:
            self._redis.run(put_regions(regions))
