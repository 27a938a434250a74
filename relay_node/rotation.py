"""Rotations that devices were asked for: remembered until they answer, on whatever socket or relay they are then."""

import asyncio
import logging
from typing import Final

from shared.kernel.ids import DeviceId
from shared.pool.leases import ROTATION_MAX_MS
from shared.pool.rotation import Outcome, RotationState, tell_rotated
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis
from shared.wire.peer import Text

ASKED_MAX: Final = 10_000
UNTOLD_MAX: Final = 1_000
RETRY_S: Final = 1.0

log = logging.getLogger("psx.relay")


class Rotations:
    """What devices were asked and have not answered; only such an answer is told on, and only once."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[str, str, int]] = {}

    def asked(self, device_id: str, request_id: str, address: str, now_ms: int) -> None:
        """A device is to change its address; "" when it is not here. The oldest are forgotten first."""
        self._asked.pop(device_id, None)
        if len(self._asked) >= ASKED_MAX:
            del self._asked[next(iter(self._asked))]
        self._asked[device_id] = request_id, address, now_ms

    def answered(
        self, device_id: str, request_id: str, said: Text, address: str, now_ms: int
    ) -> Outcome | None:
        """What a device said, from which address; None for what it was not asked, or too late."""
        request, before, asked_ms = self._asked.get(device_id, ("", "", 0))
        if not request_id or request_id != request or now_ms - asked_ms > ROTATION_MAX_MS:
            return None
        del self._asked[device_id]
        done = said.payload.get("success") is True
        changed = address != before if before else None
        state = RotationState.DONE if done else RotationState.REFUSED
        return Outcome(state, now_ms, "" if done else said.text("error"), changed)


class RotationTeller:
    """Tells what devices said; waits while Redis is away, and forgets what is too much."""

    def __init__(self, redis: AsyncRedis) -> None:
        self._redis = redis
        self._waiting: asyncio.Queue[tuple[str, str, Outcome]] = asyncio.Queue(UNTOLD_MAX)

    def rotated(self, device_id: str, request_id: str, outcome: Outcome) -> None:
        """Tell this soon."""
        if self._waiting.full():
            log.warning("rotation not told", extra={"device": device_id})
            return
        self._waiting.put_nowait((device_id, request_id, outcome))

    async def run(self) -> None:
        """Tell, until cancelled."""
        while True:
            device_id, request_id, outcome = await self._waiting.get()
            try:
                await self._redis.run(tell_rotated(DeviceId(device_id), request_id, outcome))
            except StoreUnavailable:
                self.rotated(device_id, request_id, outcome)
                await asyncio.sleep(RETRY_S)
