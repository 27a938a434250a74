"""The job that keeps leases: what is idle is released, what Redis lost is held again, whose device is gone is moved.

Every step is conditional on the row, so two runs at once, or a crash, do nothing twice. A fault with one lease, or with one
part of them, keeps no other waiting.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from shared.access.table import ended_paks
from shared.guard.model import AuditEvent
from shared.guard.service import write_audited
from shared.kernel.codes import Pool
from shared.kernel.ids import PakId
from shared.pool import lease_table as rows
from shared.pool.leases import TOLD_STEP_MS, Fate, Lease, fate_of, is_due_to_rotate
from shared.pool.leasing import Leasing
from shared.pool.ports import Hold, tend_holds
from shared.runtime.clock import new_id
from shared.runtime.dynamo import StoreUnavailable

PAGE: Final = 100
ACTOR: Final = "job:keep_leases"


@dataclass(slots=True)
class Kept:
    """What one run did."""

    leases: int = 0
    put_back: int = 0
    idle: int = 0
    keyless: int = 0
    moved: int = 0
    rotated: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class KeepLeases:
    """One run of the job."""

    leasing: Leasing
    audit: str
    now_ms: Callable[[], int]

    def run(self) -> Kept:
        """Look at every lease."""
        report = Kept()
        first = (
            self.now_ms() // 60_000 % len(rows.PARTS)
        )  # a run that is ended leaves others than the one before
        for part in rows.PARTS[first:] + rows.PARTS[:first]:
            self._tried(report, partial(self._part, part, report))
        return report

    def _tried(self, report: Kept, work: Callable[[], None]) -> None:
        try:
            work()
        except StoreUnavailable as error:
            report.failures.append(str(error))

    def _part(self, part: str, report: Kept) -> None:
        start = None
        while True:
            page = self.leasing.dynamo.run(rows.leases_in(self.leasing.table, part, PAGE, start))
            self._page(page.rows, report)
            start = page.next_key
            if start is None:
                return

    def _page(self, found: Sequence[Lease], report: Kept) -> None:
        now_ms = self.now_ms()  # what is read is judged by the time of reading
        keyless = self._keyless({lease.pak_id for lease in found if not lease.released_at_ms})
        for pool in Pool:
            some = [lease for lease in found if lease.pool is pool]
            if not some:
                continue
            call = tend_holds(pool, [lease.lease_id for lease in some], now_ms)
            holds: list[Hold | None] = self.leasing.redis.run(call)
            for lease, hold in zip(some, holds, strict=True):
                self._tried(report, partial(self._keep, lease, hold, keyless, now_ms, report))

    def _keyless(self, pak_ids: set[PakId]) -> frozenset[PakId]:
        """Those of the keys that were deleted."""
        if not pak_ids:
            return frozenset()
        return self.leasing.dynamo.run(ended_paks(self.leasing.table, sorted(pak_ids)))

    def _keep(
        self, lease: Lease, hold: Hold | None, keyless: frozenset[PakId], now_ms: int, report: Kept
    ) -> None:
        if lease.released_at_ms:
            if hold is not None:
                self.leasing.let_go(lease)
            return
        report.leases += 1
        if lease.pak_id in keyless:
            report.keyless += self._release(lease, "key_deleted")
            return
        match fate_of(lease, hold, now_ms):
            case Fate.IDLE:
                report.idle += self._release(lease, "idle", as_read=True)
                return
            case Fate.LOST:
                report.put_back += self._put_back(lease)
            case Fate.AWAY if hold is not None:  # used all the time, by way of others
                self._write_use(lease, hold)
                ends = max(lease.expires_at_ms, hold.expires_at_ms)
                report.moved += self._move(replace(lease, expires_at_ms=ends))
            case Fate.STAYS if hold is not None:
                self._write_use(lease, hold)
        away = hold is None or hold.away_since_ms
        if not away and is_due_to_rotate(lease, now_ms):
            report.rotated += self._rotate(lease)

    def _release(self, lease: Lease, reason: str, *, as_read: bool = False) -> bool:
        facts = {"lease": lease.lease_id, "pakId": lease.pak_id, "reason": reason}
        event = self._event(lease, "lease_release", facts)
        items = rows.release_items(self.leasing.table, lease, self.now_ms(), as_read=as_read)
        released = write_audited(self.leasing.dynamo, self.audit, event, items) is None
        if released:
            self.leasing.let_go(lease)
        return released

    def _event(self, lease: Lease, action: str, facts: dict[str, str]) -> AuditEvent:
        return AuditEvent(f"acct#{lease.account_id}", action, ACTOR, self.now_ms(), metadata=facts)

    def _put_back(self, lease: Lease) -> bool:
        """Also undone by the next run, when the lease was released in the same moment."""
        found = self.leasing.hold(lease)
        if found is not None and found != lease.endpoint_id:
            self.leasing.place(lease, found)
        return found is not None

    def _move(self, lease: Lease) -> bool:
        return self.leasing.move(lease) is not None

    def _write_use(self, lease: Lease, hold: Hold) -> None:
        """The row follows what was used, in steps; where the hold is behind the row it is brought up."""
        if hold.endpoint_id != lease.endpoint_id:
            self.leasing.place(lease, hold.endpoint_id)
        if hold.expires_at_ms >= lease.expires_at_ms + TOLD_STEP_MS:
            used = {"expires_at_ms": hold.expires_at_ms, "used_at_ms": hold.used_at_ms}
            self.leasing.dynamo.run(rows.change(self.leasing.table, lease, used))
        elif hold.expires_at_ms < lease.expires_at_ms:
            self.leasing.hold(lease)

    def _rotate(self, lease: Lease) -> bool:
        asked = {"rotated_at_ms": self.now_ms(), "rotation_id": new_id()}
        rotated = self.leasing.dynamo.run(rows.change(self.leasing.table, lease, asked, unless_rotated=True))
        if rotated is not None:
            self.leasing.ask_rotation(rotated)
        return rotated is not None
