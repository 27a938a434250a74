"""Counting and capping: what open tunnels carried is flushed every 5 s, and a key that is spent is suspended at once.

A flush first records its batch in DynamoDB under (gateway, sequence), then adds it to the live counters. Batches that
could not be written wait, in order, and nothing is counted twice. Near a cap the flush comes early.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from gateway_node.tunnel import Budget, Tunnel
from shared.access.model import DisabledReason, Pak
from shared.access.table import suspend
from shared.guard.model import AuditEvent
from shared.guard.service import append_audit_async
from shared.kernel.ids import GatewayId, PakId
from shared.metering.live import flush, open_meter
from shared.metering.model import FLUSH_INTERVAL_S, FlushBatch, Meter
from shared.metering.rules import Tally, batches, totals
from shared.metering.table import newest_sequence, put_batch
from shared.pool.live import publish_revoke_pak
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable
from shared.runtime.redis import AsyncRedis

EARLY_FLUSH_FLOOR_BYTES: Final = 64 * 1024
RETRY_S: Final = 1.0
WAITING_BATCHES_MAX: Final = 10_000

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
    ) -> None:
        self._dynamo = dynamo
        self._redis = redis
        self._table = table
        self._gateway_id = gateway_id
        self._now_ms = now_ms
        self._tally = Tally()
        self._budgets: dict[PakId, Budget] = {}
        self._open: dict[PakId, set[Tunnel]] = {}
        self._waiting: deque[FlushBatch] = deque()
        self._recorded = 0
        self._next_sequence = 0
        self._wake = asyncio.Event()
        self._suspending: set[asyncio.Task[None]] = set()
        self.fault: str | None = None

    async def start(self) -> None:
        """Go on numbering where this gateway's last life ended."""
        newest = await self._dynamo.run(newest_sequence(self._table("usage"), self._gateway_id))
        self._next_sequence = newest + 1

    # tunnels

    def opened(self, tunnel: Tunnel) -> None:
        """A tunnel begins to count."""
        self._open.setdefault(tunnel.pak.pak_id, set()).add(tunnel)

    def closed(self, tunnel: Tunnel) -> None:
        """A tunnel ended: its last bytes are counted."""
        self._collect(tunnel)
        mine = self._open.get(tunnel.pak.pak_id)
        if mine is not None:
            mine.discard(tunnel)
            if not mine:
                del self._open[tunnel.pak.pak_id]

    def open_tunnels(self, pak_id: PakId) -> set[Tunnel]:
        """Open tunnels of a key."""
        return set(self._open.get(pak_id, ()))

    def all_tunnels(self) -> list[Tunnel]:
        """Every open tunnel."""
        return [tunnel for tunnels in self._open.values() for tunnel in tunnels]

    def budget(self, pak_id: PakId) -> Budget:
        """The budget that all tunnels of a key share."""
        budget = self._budgets.get(pak_id)
        if budget is None:
            budget = Budget(lambda: self._nearly_spent(pak_id))
            self._budgets[pak_id] = budget
        return budget

    async def met(self, pak: Pak) -> None:
        """A key was read from the truth: bring its live meter to it. Without Redis the truth alone is the budget."""
        try:
            meter = await self._redis.run(open_meter(pak.pak_id, pak.used_bytes, pak.cap_bytes))
        except StoreUnavailable:
            meter = Meter(pak.used_bytes, pak.cap_bytes)
        self._set_budget(pak.pak_id, meter)

    def is_spent(self, pak_id: PakId) -> bool:
        """Whether a key has nothing left, as far as this gateway knows."""
        budget = self.budget(pak_id)
        return budget.left_bytes is not None and budget.pending_bytes >= budget.left_bytes

    def _set_budget(self, pak_id: PakId, meter: Meter) -> None:
        budget = self.budget(pak_id)
        budget.left_bytes = meter.left_bytes
        if meter.left_bytes is None:
            budget.wake_bytes = 1 << 62
        else:
            budget.wake_bytes = min(max(meter.left_bytes // 4, EARLY_FLUSH_FLOOR_BYTES), meter.left_bytes)

    def _nearly_spent(self, pak_id: PakId) -> None:
        self._wake.set()
        if self.is_spent(pak_id):
            for tunnel in self.open_tunnels(pak_id):
                tunnel.cut()

    def _collect(self, tunnel: Tunnel) -> None:
        up, down = tunnel.up_bytes - tunnel.flushed_up, tunnel.down_bytes - tunnel.flushed_down
        if up or down:
            tunnel.flushed_up, tunnel.flushed_down = tunnel.up_bytes, tunnel.down_bytes
            self._tally.add(tunnel.line, up, down)

    # flushing

    async def run(self) -> None:
        """Flush every `FLUSH_INTERVAL_S`, and earlier when a key nears its cap; until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), FLUSH_INTERVAL_S)
            self._wake.clear()
            await self.flush()

    async def flush(self) -> bool:
        """Write everything counted so far. False when a store is away; what waits is written by a later flush."""
        for tunnel in self.all_tunnels():
            self._collect(tunnel)
        lines = self._tally.cut()
        for batch in batches(self._gateway_id, self._next_sequence, self._now_ms(), lines):
            self._next_sequence = batch.sequence + 1
            self._waiting.append(batch)
        try:
            while self._waiting:
                await self._write(self._waiting[0])
                self._waiting.popleft()
                self._recorded = 0
        except StoreUnavailable as error:
            if self.fault is None:
                log.warning("flush waits", extra={"reason": str(error), "waiting": len(self._waiting)})
            self.fault = str(error)
            await asyncio.sleep(RETRY_S)
            return False
        self.fault = None
        return True

    def overloaded(self) -> bool:
        """Whether so much waits that new tunnels must be refused rather than carried uncounted."""
        return len(self._waiting) >= WAITING_BATCHES_MAX

    async def _write(self, batch: FlushBatch) -> None:
        if self._recorded != batch.sequence + 1:
            await self._dynamo.run(put_batch(self._table("usage"), batch))
            self._recorded = batch.sequence + 1
        counted = totals(batch)
        meters = await self._redis.run(flush(self._gateway_id, batch.sequence, counted))
        for pak_id, meter in meters.items():
            self.budget(pak_id).pending_bytes -= counted[pak_id]
            self._set_budget(pak_id, meter)
            if meter.left_bytes == 0:
                self._suspend(pak_id, meter)

    def _suspend(self, pak_id: PakId, meter: Meter) -> None:
        for tunnel in self.open_tunnels(pak_id):
            tunnel.cut()
        task = asyncio.get_running_loop().create_task(self._suspend_in_truth(pak_id, meter))
        self._suspending.add(task)
        task.add_done_callback(self._suspending.discard)

    async def _suspend_in_truth(self, pak_id: PakId, meter: Meter) -> None:
        """Turn the key off where everybody reads it, once, and tell the other gateways."""
        try:
            pak = await self._dynamo.run(
                suspend(self._table("access"), pak_id, DisabledReason.CAP, self._now_ms())
            )
            await self._redis.run(publish_revoke_pak(pak_id))
            if pak is None:
                return
            metadata = {"usedBytes": meter.used_bytes, "capBytes": meter.cap_bytes}
            event = AuditEvent(
                f"pak#{pak_id}",
                "auto_suspended_cap_exceeded",
                f"gateway:{self._gateway_id}",
                self._now_ms(),
                metadata=metadata,
            )
            await append_audit_async(self._dynamo, self._table("audit"), event)
        except StoreUnavailable as error:
            log.warning("suspension waits for the next flush", extra={"pak": pak_id, "reason": str(error)})

    async def stop(self) -> None:
        """The last flush, and the suspensions that it started."""
        await self.flush()
        if self._suspending:
            await asyncio.gather(*self._suspending, return_exceptions=True)
