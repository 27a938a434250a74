"""Whether a probe target stands, asked without any exit: what fails there as well is no exit's fault."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Final

from shared.grading.dialer import Timeouts, Trust, probe
from shared.grading.model import ProbePlan, Target
from shared.grading.rules import LIGHT_BYTES
from shared.guard.model import Incident
from shared.guard.table import close_incident, open_incident
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable

KEPT_MS: Final = 5_000
DIRECT: Final = Timeouts(connect_s=3.0, tls_s=3.0, overall_s=5.0)
KIND: Final = "probe_target_down"

log = logging.getLogger("psx.prober")


class TargetWatch:
    """What is known of each target; one question at a time to each."""

    def __init__(
        self, dynamo: AsyncDynamo, guard_table: str, trust: Trust, now_ms: Callable[[], int]
    ) -> None:
        self._dynamo = dynamo
        self._guard = guard_table
        self._trust = trust
        self._now_ms = now_ms
        self._found: dict[str, tuple[int, bool]] = {}
        self._asking: dict[str, asyncio.Lock] = {}
        self._told: dict[str, bool] = {}

    def is_thought_up(self, target: Target) -> bool:
        """What was found last, while that is fresh; a target that was not asked lately is worth a try."""
        at_ms, stood = self._found.get(target.place, (0, True))
        return stood or abs(self._now_ms() - at_ms) >= KEPT_MS

    async def stands(self, target: Target) -> bool:
        """Whether the target answers a probe of ours without any exit, as found within the last seconds."""
        async with self._asking.setdefault(target.place, asyncio.Lock()):
            at_ms, stood = self._found.get(target.place, (0, True))
            if abs(self._now_ms() - at_ms) < KEPT_MS:
                return stood
            plan = ProbePlan(LIGHT_BYTES, plain=True)
            seen = await probe(None, target, plan, secrets.token_hex(8), self._trust, self._now_ms(), DIRECT)
            stood = seen.result.passed
            self._found[target.place] = (self._now_ms(), stood)
            failure = seen.result.failure
            await self._tell(target, None if failure is None else failure.value)
            return stood

    async def _tell(self, target: Target, failure: str | None) -> None:
        """Open an incident for a target that is away, also after a human closed it; close it when the target is back,
        whichever prober's life opened it. It is public, so it names the place alone.
        """
        now, name, away = self._now_ms(), f"target#{target.place}", failure is not None
        if not away and self._told.get(target.place) is False:
            return
        try:
            if away:
                message = f"the probe target in {target.place} fails without any exit ({failure})"
                if await self._dynamo.run(open_incident(self._guard, Incident(name, KIND, message, now))):
                    log.warning("target away", extra={"place": target.place, "failure": failure})
            else:
                await self._dynamo.run(close_incident(self._guard, name, now))
            self._told[target.place] = away
        except StoreUnavailable as error:
            log.warning("incident not told", extra={"reason": str(error)})
