"""Keys that changed or ended: what may not go on is cut within a second, whatever the stores do.

A change is pushed, and only a read says what it was: each push is looked at on its own, and a read that takes too long
counts as the worst. Sweeps are the net: they cut what was read to have ended, and nothing because a store is away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from gateway_node.auth import Authenticator
from gateway_node.buyer import may_use
from gateway_node.history import KeyHistory
from gateway_node.meter import MeterService
from shared.access.model import Pak
from shared.access.rules import is_expired
from shared.kernel.ids import PakId
from shared.pool.live import REVOKE_PAK
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis

RECHECK_MAX_S: Final = 0.75
EXPIRY_SWEEP_S: Final = 0.5
KEY_SWEEP_S: Final = 30.0
SWEPT_AT_ONCE: Final = 8
RESUBSCRIBE_S: Final = 1.0

log = logging.getLogger("psx.gateway")


async def follow_revocations(redis: AsyncRedis, auth: Authenticator, meter: MeterService) -> None:
    """Hear of changed keys and close what may not go on; sweep all known keys after a lost subscription."""
    checks: set[asyncio.Task[None]] = set()
    while True:
        try:
            async for channel, text in redis.messages(REVOKE_PAK):
                work = (
                    _recheck(auth, meter, PakId(text)) if channel else sweep_keys(auth, meter, auth.known())
                )
                task = asyncio.get_running_loop().create_task(work)
                checks.add(task)
                task.add_done_callback(checks.discard)
        except StoreUnavailable as error:
            log.warning("revocations not heard", extra={"reason": str(error)})
        await asyncio.sleep(RESUBSCRIBE_S)


async def _recheck(auth: Authenticator, meter: MeterService, pak_id: PakId) -> None:
    try:
        async with asyncio.timeout(RECHECK_MAX_S):
            pak = await auth.recheck(pak_id)
    except (StoreUnavailable, TimeoutError):
        pak = None  # it changed, and nobody knows how: cutting is the safe side
    _apply(meter, pak_id, pak)


def _apply(meter: MeterService, pak_id: PakId, pak: Pak | None) -> None:
    for tunnel in meter.open_tunnels(pak_id):
        if pak is None or tunnel.pak.secret_hash != pak.secret_hash or not may_use(pak, tunnel.acquired):
            tunnel.cut()
        else:
            tunnel.pak = pak


async def sweep_expired(meter: MeterService, history: KeyHistory | None = None) -> None:
    """Cut what has expired; waits for no store, so that it is never late."""
    while True:
        await asyncio.sleep(EXPIRY_SWEEP_S)
        now = now_ms()
        for tunnel in meter.all_tunnels():
            if is_expired(tunnel.pak, now):
                if history is not None:
                    history.expired(tunnel.pak)
                tunnel.cut()


async def sweep_open_keys(auth: Authenticator, meter: MeterService) -> None:
    """Read the keys of open tunnels again now and then."""
    while True:
        await asyncio.sleep(KEY_SWEEP_S)
        await sweep_keys(auth, meter, {tunnel.pak.pak_id for tunnel in meter.all_tunnels()})


async def sweep_keys(auth: Authenticator, meter: MeterService, pak_ids: Iterable[PakId]) -> None:
    """Read keys, a few at once, and apply what they are now. Ends early when a store is away."""
    left = iter(sorted(pak_ids))

    async def some() -> None:
        for pak_id in left:
            _apply(meter, pak_id, await auth.read(pak_id))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(SWEPT_AT_ONCE):
                group.create_task(some())
    except* StoreUnavailable as errors:  # nothing is known to have changed: go on
        log.warning("keys not swept", extra={"reason": str(errors.exceptions[0])})
