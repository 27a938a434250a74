"""Counting and capping: what open tunnels carried is flushed every 5 s, and a key that is spent is suspended at once.

A flush cuts the journal, records its batches in DynamoDB under (gateway, sequence), adds them to the live counters in one
call, and only then forgets them. One cut is under way at a time: while a store is away bytes wait in the journal's slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from gateway_node.allowance import KeyBudget, TunnelBudget
from gateway_node.journal import Journal
from gateway_node.settings import LAST_FLUSH_MAX_S
from gateway_node.tunnel import Budget, Tunnel
from shared.access.model import Pak
from shared.access.table import get_pak, suspend_capped_item
from shared.guard.model import AuditEvent
from shared.guard.service import write_audited_async
from shared.kernel.ids import GatewayId, PakId
from shared.metering.live import flushes, lease, open_meter
from shared.metering.model import FLUSH_INTERVAL_S, FlushBatch, Meter
from shared.metering.rules import totals
from shared.metering.table import newest_sequence, put_batch
from shared.pool.live import publish_revoke_pak
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable
from shared.runtime.redis import AsyncRedis

RETRY_S: Final = 1.0
BATCHES_AT_ONCE: Final = 8
RECALL_EVERY_S: Final = 0.5
"""How often a gateway without a lease asks the others to give theirs back."""
WAIT_AGAIN_BYTES: Final = 1024 * 1024
"""After so much more, tunnels that have begun since are told to wait as well."""

log = logging.getLogger("psx.gateway")


class MeterService:
    """All counting of one gateway."""

    def __init__(
        self,
        dynamo: AsyncDynamo,
        redis: AsyncRedis,
        table: Callable[[str], str],
        gateway_id: GatewayId,
        now_ms: Callable[[], int],
        journal: Journal | None = None,
    ) -> None:
        """Without a journal counts live in memory, and a killed process loses up to a flush interval of them."""
        self._dynamo = dynamo
        self._redis = redis
        self._table = table
        self._gateway_id = gateway_id
        self._now_ms = now_ms
        self._loop = asyncio.get_running_loop()
        self._journal = journal or Journal(gateway_id)
        self._budgets: dict[PakId, KeyBudget] = {}
        self._open: dict[PakId, set[Tunnel]] = {}
        self._counting: dict[Tunnel, TunnelBudget] = {}
        self._recorded = 0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsuspended: dict[PakId, Meter] = {}
        self._untold: set[PakId] = set()
        self._recalled_s: dict[PakId, float] = {}
        self.fault: str | None = None

    async def start(self) -> None:
        """Go on where this gateway's last life ended: its numbering, and what it had counted."""
        newest = await self._dynamo.run(newest_sequence(self._table("usage"), self._gateway_id))
        journal = self._journal
        if not journal.number_from(newest):
            log.error("journal is older than the store, dropped", extra={"lines": journal.dropped_lines})
        elif journal.dropped_lines:
            log.error("journal was torn", extra={"lines": journal.dropped_lines})
        for line in journal.lines():
            self._key_budget(line.key.pak_id).pending_bytes += line.up + line.down - sum(line.confirmed)
        if journal.lines():
            log.warning("counts of the last life taken over", extra={"lines": len(journal.lines())})

    # tunnels

    def opened(self, tunnel: Tunnel) -> None:
        """A tunnel begins to count."""
        pak_id, line = tunnel.pak.pak_id, self._journal.line(tunnel.line)
        line.tunnels += 1
        budget = self._key_budget(pak_id)
        counting = TunnelBudget(budget, line, tunnel)
        self._counting[tunnel] = counting
        tunnel.budget = counting
        self._open.setdefault(pak_id, set()).add(tunnel)
        if budget.meter is None or budget.left_bytes is not None:
            self.expect(tunnel.pak)

    def expect(self, pak: Pak) -> None:
        """A tunnel of this key is about to open: its lease is there when its bytes are."""
        budget = self._key_budget(pak.pak_id)
        if budget.meter is None:
            budget.without_lease(Meter(pak.used_bytes, pak.cap_bytes))
        if budget.left_bytes is not None and budget.pending_bytes >= budget.left_bytes:
            self._ask_soon(pak.pak_id)

    def closed(self, tunnel: Tunnel) -> None:
        """A tunnel ended: its last bytes are counted."""
        counting = self._counting.pop(tunnel, None)
        if counting is None:
            return
        counting.close()
        mine = self._open[tunnel.pak.pak_id]
        mine.discard(tunnel)
        if not mine:
            del self._open[tunnel.pak.pak_id]

    def open_tunnels(self, pak_id: PakId) -> set[Tunnel]:
        """Open tunnels of a key."""
        return set(self._open.get(pak_id, ()))

    def all_tunnels(self) -> list[Tunnel]:
        """Every open tunnel."""
        return list(self._counting)

    def budget(self, pak_id: PakId) -> Budget:
        """The budget that all tunnels of a key share."""
        return self._key_budget(pak_id)

    def _key_budget(self, pak_id: PakId) -> KeyBudget:
        budget = self._budgets.get(pak_id)
        if budget is None:
            budget = KeyBudget(lambda: self._nearly_spent(pak_id))
            self._budgets[pak_id] = budget
        return budget

    async def met(self, pak: Pak) -> None:
        """A key was read from the truth: bring its live meter to it. Without Redis the truth alone is the budget."""
        pak_id, budget = pak.pak_id, self._key_budget(pak.pak_id)
        budget.truth_cap_bytes = pak.cap_bytes
        try:
            await self._redis.run(open_meter(pak_id, pak.used_bytes, pak.cap_bytes))
            await self._lease(pak_id, budget, wanted=pak_id in self._open)
            if pak_id not in self._open and budget.pending_bytes:
                self._wake.set()  # somebody may be waiting for what this gateway no longer needs
        except StoreUnavailable:
            known = budget.meter.used_bytes if budget.meter else 0
            budget.unknown(Meter(max(pak.used_bytes, known), pak.cap_bytes))

    def is_spent(self, pak_id: PakId) -> bool:
        """Whether a key has nothing left, as far as this gateway knows."""
        budget = self._key_budget(pak_id)
        if not budget.spent_now(self._loop.time()):
            return False
        if budget.meter is not None and budget.meter.left_bytes:
            self._ask_soon(pak_id)  # leases may have come back: the next try will know
        return True

    def overloaded(self) -> bool:
        """Whether so much waits that new tunnels must be refused rather than carried uncounted."""
        return self._journal.full

    # leases

    def _nearly_spent(self, pak_id: PakId) -> None:
        """Half of a lease is gone, three quarters before the next one came, or all of it and the overdraft."""
        budget = self._key_budget(pak_id)
        if budget.pending_bytes >= budget.cut_bytes:
            self._cut(pak_id)
        elif budget.asking and budget.pending_bytes >= budget.hold_bytes:
            waiting = self.open_tunnels(pak_id)
            budget.waiting_tunnels = len(waiting)
            for tunnel in waiting:
                tunnel.wait()
            budget.wake_bytes = min(budget.cut_bytes, budget.pending_bytes + WAIT_AGAIN_BYTES)
        else:
            budget.wake_bytes = min(budget.hold_bytes, budget.cut_bytes)
            self._ask_soon(pak_id)

    def _cut(self, pak_id: PakId) -> None:
        for tunnel in self.open_tunnels(pak_id):
            self._wake.set()
            tunnel.cut()

    def _ask_soon(self, pak_id: PakId) -> None:
        budget = self._key_budget(pak_id)
        if not budget.asking:
            budget.asking = True
            self._in_background(self._ask(pak_id, budget))

    async def _ask(self, pak_id: PakId, budget: KeyBudget) -> None:
        """The next lease of a key; where all is leased elsewhere, the others are asked for what they do not use."""
        try:
            await self._lease(pak_id, budget)
            used_up = budget.meter is None or budget.meter.left_bytes == 0
            if budget.denied_until_s and not used_up and self._may_recall(pak_id):
                await self._redis.run(publish_revoke_pak(pak_id))
        except StoreUnavailable:
            if budget.meter is not None:
                budget.unknown(budget.meter)
        finally:
            budget.asking, budget.waiting_tunnels = False, 0
            for tunnel in self.open_tunnels(pak_id):
                tunnel.go_on()

    def _may_recall(self, pak_id: PakId) -> bool:
        now_s = self._loop.time()
        if now_s - self._recalled_s.get(pak_id, 0.0) < RECALL_EVERY_S:
            return False
        self._recalled_s[pak_id] = now_s
        return True

    async def _lease(self, pak_id: PakId, budget: KeyBudget, *, wanted: bool = True) -> None:
        at, asks = budget.total_bytes, {pak_id: budget.ask(0, wanted=wanted)}
        meters = await self._redis.run(lease(self._gateway_id, asks))
        self._answered(pak_id, meters[pak_id], at, wanted=wanted)

    def _answered(self, pak_id: PakId, meter: Meter, asked_total_bytes: int, *, wanted: bool) -> None:
        budget = self._key_budget(pak_id)
        if meter.cap_bytes is None and budget.truth_cap_bytes is not None:
            self._reopen(pak_id, budget, meter)
            return
        budget.answered(meter, asked_total_bytes, self._loop.time(), wanted=wanted)
        if meter.left_bytes == 0:
            self._unsuspended[pak_id] = meter
            self._cut(pak_id)
            self._in_background(self._suspend(pak_id, meter))
        elif budget.pending_bytes >= budget.cut_bytes:
            self._cut(pak_id)

    def _reopen(self, pak_id: PakId, budget: KeyBudget, meter: Meter) -> None:
        """Redis lost a key's meter: give it back what is known. Until it leases again that is the budget, as while Redis is
        away.
        """
        known = budget.meter.used_bytes if budget.meter else 0
        meter = Meter(max(meter.used_bytes, known), budget.truth_cap_bytes)
        budget.unknown(meter)
        self._in_background(self._open_again(pak_id, budget, meter))

    async def _open_again(self, pak_id: PakId, budget: KeyBudget, meter: Meter) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self._redis.run(open_meter(pak_id, meter.used_bytes, meter.cap_bytes))
            await self._lease(pak_id, budget, wanted=pak_id in self._open)

    # flushing

    async def run(self) -> None:
        """Flush every `FLUSH_INTERVAL_S`, and earlier when a key is spent; until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_INTERVAL_S):
                    await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> bool:
        """Write everything counted so far. False when a store is away; what waits is written by a later flush."""
        for counting in list(self._counting.values()):
            counting.settle()
        try:
            if self._journal.pending:
                await self._write(self._journal.pending)
            if self._journal.cut(self._now_ms()):
                await self._write(self._journal.pending)
            await self._forget_idle()
        except StoreUnavailable as error:
            if self.fault is None:
                log.warning(
                    "flush waits", extra={"reason": str(error), "waiting": len(self._journal.pending)}
                )
            self.fault = str(error)
            await asyncio.sleep(RETRY_S)
            return False
        self.fault = None
        for pak_id, meter in list(self._unsuspended.items()):
            self._in_background(self._suspend(pak_id, meter))
        return True

    async def _write(self, pending: tuple[FlushBatch, ...]) -> None:
        table = self._table("usage")
        while self._recorded < len(pending):
            some = pending[self._recorded : self._recorded + BATCHES_AT_ONCE]
            await asyncio.gather(*(self._dynamo.run(put_batch(table, batch)) for batch in some))
            self._recorded += len(some)
        counted: dict[PakId, int] = {}
        for batch in pending:
            for pak_id, size in totals(batch).items():
                counted[pak_id] = counted.get(pak_id, 0) + size
        budgets = {pak_id: self._key_budget(pak_id) for pak_id in counted}
        asks = {p: budgets[p].ask(size, wanted=p in self._open) for p, size in counted.items()}
        totals_at_ask = {pak_id: budget.total_bytes for pak_id, budget in budgets.items()}
        meters: dict[PakId, Meter] = {}
        for call in flushes(self._gateway_id, pending[-1].sequence, counted, asks):
            meters.update((await self._redis.run(call)).items())
        self._journal.confirm()
        self._recorded = 0
        for pak_id, size in counted.items():
            budgets[pak_id].flushed(size)
        for pak_id, meter in meters.items():
            self._answered(pak_id, meter, totals_at_ask[pak_id], wanted=asks[pak_id].want_bytes > 0)

    async def _forget_idle(self) -> None:
        """Give back the leases of keys that nobody uses any more here, and forget their budgets."""
        now_s = self._loop.time()
        for pak_id, budget in list(self._budgets.items()):
            if pak_id in self._open or budget.pending_bytes or budget.asking or now_s < budget.kept_until_s:
                continue
            if budget.meter is not None and budget.meter.lease_bytes > 0:
                await self._lease(pak_id, budget, wanted=False)
            if pak_id not in self._open and not budget.pending_bytes:
                self._budgets.pop(pak_id, None)

    # suspension

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _suspend(self, pak_id: PakId, meter: Meter) -> None:
        """Turn the key off where everybody reads it, once, and tell the other gateways; not if its cap was raised."""
        table, now = self._table("access"), self._now_ms()
        try:
            pak = await self._dynamo.run(get_pak(table, pak_id))
            if pak is not None and pak.enabled:
                self._untold.add(pak_id)
                event = self._suspension(pak, meter, now)
                item = suspend_capped_item(table, pak_id, now, meter.cap_bytes)
                await write_audited_async(
                    self._dynamo, self._table("audit"), event, [item], account=pak.account_id
                )
            # Who hears it reads the key and meets its end too: told only by who may have turned it off, or it never ends.
            if pak_id in self._untold:
                await self._redis.run(publish_revoke_pak(pak_id))
                self._untold.discard(pak_id)
        except StoreUnavailable as error:
            log.warning("suspension waits for the next flush", extra={"pak": pak_id, "reason": str(error)})
        else:
            self._unsuspended.pop(pak_id, None)

    def _suspension(self, pak: Pak, meter: Meter, now_ms: int) -> AuditEvent:
        metadata = {"usedBytes": meter.used_bytes, "capBytes": meter.cap_bytes}
        actor, action = f"gateway:{self._gateway_id}", "auto_suspended_cap_exceeded"
        return AuditEvent(f"pak#{pak.pak_id}", action, actor, now_ms, metadata=metadata)

    async def stop(self, max_s: float = LAST_FLUSH_MAX_S) -> bool:
        """The last flush, tried until it is written, and the suspensions that it started.

        False when the stores were away for `max_s`: the counts stay in the journal, for this gateway's next life.
        """
        written = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max_s):
                while not written:
                    written = await self.flush()
        if not written:
            waiting = sum(budget.pending_bytes for budget in self._budgets.values())
            log.error("counts stay in the journal", extra={"bytes": waiting, "reason": self.fault})
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._journal.close()
        return written
