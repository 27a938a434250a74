"""What gateways add to keys' histories: who used a key from where, who failed to, and keys that ran out of time.

Never on the byte path: events wait here, bounded, and are written one by one; what does not fit is counted and dropped.
What turns a key off waits apart and goes first: a flood of strangers' failures takes no place from it. Of one key and
network one success an hour and one failure a minute are told, over all gateways.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter

from shared.access.live import first_in
from shared.access.model import Pak
from shared.access.table import get_account, suspend_expired_item
from shared.guard.model import AuditEvent
from shared.guard.service import append_audit_async, write_audited_async
from shared.kernel.codes import Refusal
from shared.kernel.ids import AccountId, GatewayId
from shared.pool.live import publish_revoke_pak
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable
from shared.runtime.redis import AsyncRedis

SUCCESS_TOLD_EVERY_S: Final = 3600
FAILURE_TOLD_EVERY_S: Final = 60
WAITING_MAX: Final = 1000
HEARD_MAX: Final = 50_000
RETRY_S: Final = 1.0
TRIES_MAX: Final = 30

DROPPED = Counter("psx_gateway_history_dropped", "Audit events that could not be kept")

log = logging.getLogger("psx.gateway")


@dataclass(slots=True)
class _Entry:
    event: AuditEvent
    account_id: AccountId
    every_s: int
    seen_as: str
    pak: Pak | None = None
    tries: int = 0


class KeyHistory:
    """Events on their way to the audit."""

    def __init__(
        self,
        dynamo: AsyncDynamo,
        redis: AsyncRedis,
        table: Callable[[str], str],
        gateway_id: GatewayId,
        now_ms: Callable[[], int],
        house_account: str = "",
    ) -> None:
        self._dynamo = dynamo
        self._redis = redis
        self._table = table
        self._gateway_id = gateway_id
        self._now_ms = now_ms
        self._house_account = house_account
        self._heard: dict[str, int] = {}
        self._waiting: deque[_Entry] = deque()
        self._ending: deque[_Entry] = deque()
        self._wake = asyncio.Event()

    def authenticated(self, pak: Pak, address: str, request_id: str) -> None:
        """A key was used from a network."""
        if self._is_news(seen_as := f"ok:{pak.pak_id}:{address}", SUCCESS_TOLD_EVERY_S):
            event = self._event(f"pak#{pak.pak_id}", "gateway_auth_success", address, request_id)
            self._later(_Entry(event, pak.account_id, SUCCESS_TOLD_EVERY_S, seen_as))

    def failed(
        self, account_id: AccountId, pak: Pak | None, refusal: Refusal, address: str, request_id: str
    ) -> None:
        """Somebody was refused: with a known key it is on the key's record, without one on its account's."""
        if pak is None and account_id == self._house_account:
            return  # strangers share it, and nobody owns its log
        owner = f"pak#{pak.pak_id}" if pak else f"auth#{account_id}"
        if self._is_news(seen_as := f"no:{owner}:{address}", FAILURE_TOLD_EVERY_S):
            event = self._event(
                owner, "gateway_auth_failure", address, request_id, reason=refusal.value, account=account_id
            )
            self._later(_Entry(event, pak.account_id if pak else account_id, FAILURE_TOLD_EVERY_S, seen_as))

    def expired(self, pak: Pak) -> None:
        """A key's time is over: it is turned off where everybody reads it, once."""
        if pak.enabled and self._is_news(f"end:{pak.pak_id}:{pak.expires_at_ms}", FAILURE_TOLD_EVERY_S):
            event = self._event(
                f"pak#{pak.pak_id}", "auto_suspended_expired", "", "", expiresAt=pak.expires_at_ms
            )
            self._later(_Entry(event, pak.account_id, 0, "", pak))

    def _event(
        self, stream: str, action: str, address: str, request_id: str, **facts: str | int | None
    ) -> AuditEvent:
        return AuditEvent(
            stream,
            action,
            f"gateway:{self._gateway_id}",
            self._now_ms(),
            ip=address,
            request_id=request_id,
            auth_method="pool_key" if address else "",
            metadata={"gateway": self._gateway_id, **facts},
        )

    def _is_news(self, what: str, every_s: int) -> bool:
        now = self._now_ms()
        if self._heard.get(what, 0) > now:
            return False
        if len(self._heard) >= HEARD_MAX:
            self._heard = {known: until for known, until in self._heard.items() if until > now}
            if len(self._heard) >= HEARD_MAX:
                self._heard.clear()
        self._heard[what] = now + every_s * 1000
        return True

    def _later(self, entry: _Entry) -> None:
        if (
            entry.pak is not None
        ):  # a key that is there once: as many as there are keys, and no stranger adds one
            self._ending.append(entry)
        elif len(self._waiting) >= WAITING_MAX:
            DROPPED.inc()
            return
        else:
            self._waiting.append(entry)
        self._wake.set()

    async def run(self) -> None:
        """Write what waits, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.drain()

    async def drain(self) -> None:
        """Write everything that waits now; what a store keeps refusing is dropped in the end."""
        while queue := self._ending or self._waiting:
            entry = queue[0]
            try:
                await self._write(entry)
            except StoreUnavailable as error:
                entry.tries += 1
                if entry.tries < TRIES_MAX or queue is self._ending:
                    await asyncio.sleep(RETRY_S)
                    continue
                DROPPED.inc()
                log.warning("audit event dropped", extra={"reason": str(error)})
            queue.popleft()

    async def _write(self, entry: _Entry) -> None:
        """Each step that was taken is not taken again by a later try."""
        if entry.pak is not None:
            item = suspend_expired_item(self._table("access"), entry.pak, entry.event.at_ms)
            audit, told = self._table("audit"), entry.event
            await write_audited_async(self._dynamo, audit, told, [item], account=entry.account_id)
            await self._redis.run(publish_revoke_pak(entry.pak.pak_id))
            return
        if entry.every_s:
            if not await self._redis.run(first_in(entry.seen_as, entry.every_s)):
                return
            entry.every_s = 0
        if entry.event.stream.startswith(
            "auth#"
        ):  # anybody can make a name up: only real accounts have a log
            access = self._table("access")
            if await self._dynamo.run(get_account(access, entry.account_id)) is None:
                return
        await append_audit_async(self._dynamo, self._table("audit"), entry.event, entry.account_id)
