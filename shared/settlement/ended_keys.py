"""Keys that ended: those whose time ran out while nobody used them are turned off, deleted ones give back what they hold.

Gateways turn off what they meet (`gateway_node/history.py`); this finds the rest. Everything is conditional and tells its
event in the same transaction, so that two runs at once, or a crash, do nothing twice. Their live counters are dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from shared.access import settling
from shared.access import table as access
from shared.access.model import Pak
from shared.access.prepaid import get_prepaid
from shared.guard.model import AuditEvent
from shared.guard.service import write_audited
from shared.kernel.ids import PakId
from shared.metering.live import close_meter, open_meter, read_used
from shared.pool.live import publish_revoke_pak
from shared.runtime.dynamo import RunsDynamo, StoreUnavailable
from shared.runtime.redis import SyncRedis

PAGE: Final = 100
RUN_MAX: Final = 1_000
"""Keys of each kind that one run looks at; the rest waits for the next one."""
ACTOR: Final = "job:end_keys"


@dataclass(slots=True)
class Ended:
    """What one run did."""

    expired: int = 0
    settled: int = 0
    given_back_bytes: int = 0
    closed: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class EndKeys:
    """One run of the job."""

    dynamo: RunsDynamo
    redis: SyncRedis
    table: Callable[[str], str]
    now_ms: Callable[[], int]

    def run(self) -> Ended:
        """Look at everything that is due; a fault with one key keeps no other waiting."""
        report = Ended()
        expired = self.dynamo.run(access.expired_paks(self.table("access"), self.now_ms(), RUN_MAX))
        for pak_id in expired.rows:
            self._tried(report, lambda pak_id=pak_id: self._expire(pak_id, report))  # type: ignore[misc]
        due = self.dynamo.run(settling.due_keys(self.table("access"), self.now_ms(), RUN_MAX))
        for place, pak_id in due.rows:
            self._tried(report, lambda p=place, k=pak_id: self._settle(p, k, report))  # type: ignore[misc]
        return report

    def _tried(self, report: Ended, work: Callable[[], None]) -> None:
        try:
            work()
        except StoreUnavailable as error:
            report.failures.append(str(error))

    def _pak(self, pak_id: PakId) -> Pak | None:
        return self.dynamo.run(access.get_pak(self.table("access"), pak_id))

    def _event(self, pak: Pak, action: str, **facts: int | None) -> AuditEvent:
        return AuditEvent(f"pak#{pak.pak_id}", action, ACTOR, self.now_ms(), metadata=facts)

    def _expire(self, pak_id: PakId, report: Ended) -> None:
        pak, now = self._pak(pak_id), self.now_ms()
        if pak is None or pak.expires_at_ms is None or pak.expires_at_ms > now:
            return  # its end moved since the index was written
        if not pak.enabled:
            self._close(pak_id, pak.used_bytes, report)
            self.dynamo.run(access.unlist_expired(self.table("access"), pak))
            return
        event = self._event(pak, "auto_suspended_expired", expiresAt=pak.expires_at_ms)
        items = [access.suspend_expired_item(self.table("access"), pak, now)]
        if write_audited(self.dynamo, self.table("audit"), event, items, pak.account_id) is None:
            report.expired += 1
            self.redis.run(publish_revoke_pak(pak_id))
            self._close(pak_id, pak.used_bytes, report)

    def _settle(self, place: str, pak_id: PakId, report: Ended) -> None:
        pak = self._pak(pak_id)
        if pak is None:
            return
        table = self.table("access")
        used = max(pak.used_bytes, self.redis.run(read_used(pak_id)) or 0)
        if not pak.drawn_bytes:  # on invoice: nothing goes back
            if self._close(pak_id, used, report):
                self.dynamo.run(settling.settled(table, place))
            return
        prepaid = self.dynamo.run(get_prepaid(table, pak.account_id))
        items = settling.settle_items(table, place, pak, prepaid, used, self.now_ms())
        back = settling.unused_bytes(pak, used)
        event = self._event(pak, "balance_returned", bytes=back, usedBytes=used)
        if write_audited(self.dynamo, self.table("audit"), event, items, pak.account_id) is None:
            report.settled += 1
            report.given_back_bytes += back
            self._close(pak_id, used, report)

    def _close(self, pak_id: PakId, used_bytes: int, report: Ended) -> bool:
        """Keep no live counter for a key that ended: the cache evicts nothing by itself. False while it is carried for.

        A key that carries to its last moment keeps its few bytes. One that was given more time meanwhile is opened again:
        whoever changes a key writes first and opens it then, so either of the two sees the change.
        """
        closed = self.redis.run(close_meter(pak_id, used_bytes))
        report.closed += closed
        pak = self._pak(pak_id)
        if pak is not None and pak.enabled:
            self.redis.run(open_meter(pak_id, pak.used_bytes, pak.cap_bytes))
        return closed
