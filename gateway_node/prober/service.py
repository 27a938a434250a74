"""Takes due devices from the shared queue, probes them, writes grades, and says when each is due again.

A device that fails its first re-probe is paused in Redis at once; three failures in a row take it off sale by the next
listing run. Several probers share one queue: each entry is leased, so one that dies is taken over.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from prometheus_client import Counter

from shared.access.secrets import SealBroken, SecretBox
from shared.grading.dialer import Seen, Target, probe
from shared.grading.live import enqueue_probe, forget_probe, take_due
from shared.grading.model import Failure, Grade, ProbeResult
from shared.grading.rules import FAILURES_TO_DELIST, PASSES_TO_LIST, add_result
from shared.grading.table import get_grade, put_result
from shared.guard.table import read_setting
from shared.kernel.ids import DeviceId, EndpointId
from shared.pool.live import pause, read_presence, unpause
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable
from shared.runtime.redis import AsyncRedis
from shared.supply.model import Device, Origin
from shared.supply.rules import override_for
from shared.supply.table import get_device
from shared.wire.http1 import basic_header, connect_head

LEASE_MS: Final = 60_000
IDLE_POLL_S: Final = 0.25
RETRY_S: Final = 1.0
WRITE_ATTEMPTS_MAX: Final = 5
PAUSE_AFTER_FAILURE_S: Final = 120
OVERRIDES_KEPT_MS: Final = 10_000

PROBES = Counter("psx_probes", "Probes by outcome", ["outcome"])
log = logging.getLogger("psx.prober")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often exits are probed: settled ones seldom, new and failing ones soon."""

    interval_s: float
    retry_s: float
    concurrency: int


class Prober:
    """One prober of those that share the queue."""

    def __init__(
        self,
        dynamo: AsyncDynamo,
        redis: AsyncRedis,
        table: Callable[[str], str],
        box: SecretBox,
        mesh_token: str,
        origin: Callable[[str], Origin],
        target: Target,
        tls: ssl.SSLContext,
        pace: Pace,
        now_ms: Callable[[], int],
    ) -> None:
        self._dynamo = dynamo
        self._redis = redis
        self._table = table
        self._box = box
        self._mesh_token = mesh_token
        self._origin = origin
        self._target = target
        self._tls = tls
        self._pace = pace
        self._now_ms = now_ms
        self._running: set[asyncio.Task[None]] = set()
        self._overrides: Mapping[str, Any] = {}
        self._overrides_at_ms = 0

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            try:
                room = self._pace.concurrency - len(self._running)
                due = await self._redis.run(take_due(self._now_ms(), LEASE_MS, room)) if room > 0 else ()
            except StoreUnavailable as error:
                log.warning("queue away", extra={"reason": str(error)})
                await asyncio.sleep(RETRY_S)
                continue
            for device_id in due:
                task = asyncio.get_running_loop().create_task(self._one(device_id))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            await asyncio.sleep(0 if due else IDLE_POLL_S)

    async def _one(self, device_id: DeviceId) -> None:
        try:
            device = await self._dynamo.run(get_device(self._table("devices"), device_id))
            if device is None:
                await self._redis.run(forget_probe(device_id))
                return
            seen = await self._probe(device)
            await self._read_overrides()
            grade = await self._record(device_id, self._classified(seen))
            await self._act(device, grade)
        except StoreUnavailable as error:
            log.warning("probe not recorded", extra={"device": device_id, "reason": str(error)})

    async def _probe(self, device: Device) -> Seen:
        """Through the relay that holds the peer now, or through the modem's own port."""
        now, target, nonce = self._now_ms(), self._target, secrets.token_hex(8)
        if device.modem is not None:
            try:
                opened = self._box.open(device.modem.credentials_sealed, f"modem#{device.device_id}")
            except SealBroken:
                return Seen(ProbeResult(now, Failure.MODEM_UNREACHABLE), "")
            username, _, password = opened.partition(":")
            headers = [("Proxy-Authorization", basic_header(username, password))]
            request = connect_head(target.address, target.port, headers)
            host, port, unreachable = device.modem.host, device.modem.port, Failure.MODEM_UNREACHABLE
        else:
            presence = await self._redis.run(read_presence(device.device_id))
            if presence is None:
                return Seen(ProbeResult(now, Failure.PEER_OFFLINE), "")
            headers = [("X-PSX-Mesh-Token", self._mesh_token), ("X-PSX-Device", device.device_id)]
            request = connect_head(target.address, target.port, headers)
            host, port, unreachable = presence.mesh_host, presence.mesh_port, Failure.RELAY_UNREACHABLE
        return await probe(host, port, request, target, nonce, self._tls, now, unreachable)

    async def _read_overrides(self) -> None:
        """What operators said of networks, a few seconds old at most."""
        now = self._now_ms()
        if now - self._overrides_at_ms >= OVERRIDES_KEPT_MS:
            found = await self._dynamo.run(read_setting(self._table("guard"), "ip_classes"))
            self._overrides = found or {}
            self._overrides_at_ms = now

    def _classified(self, seen: Seen) -> ProbeResult:
        """The result with what the exit's address says of it, or what an operator said of that address."""
        if not seen.exit_ip:
            return seen.result
        origin = self._origin(seen.exit_ip)
        said = override_for(self._overrides, seen.exit_ip, origin.asn)
        return replace(
            seen.result,
            exit_country=origin.country,
            exit_ip_type=said or origin.ip_type,
            exit_asn=origin.asn,
            exit_isp=origin.isp,
        )

    async def _record(self, device_id: DeviceId, result: ProbeResult) -> Grade:
        """Add a result to the grade, whoever else writes it at the same time."""
        table = self._table("grades")
        for _ in range(WRITE_ATTEMPTS_MAX):
            before = await self._dynamo.run(get_grade(table, device_id)) or Grade(device_id)
            grade = add_result(before, result)
            if await self._dynamo.run(put_result(table, grade)):
                return grade
        raise StoreUnavailable("grade: contended")

    async def _act(self, device: Device, grade: Grade) -> None:
        """Pause what fails, let back what passes, and set the next time."""
        passed = grade.latest is not None and grade.latest.passed
        PROBES.labels("passed" if passed or grade.latest is None else str(grade.latest.failure)).inc()
        failure = None if grade.latest is None or grade.latest.failure is None else grade.latest.failure.value
        log.info("probed", extra={"device": device.device_id, "failure": failure, "tier": grade.tier.value})
        endpoint_id = EndpointId(device.device_id)
        if passed:
            await self._redis.run(unpause(device.pool, endpoint_id))
        else:
            await self._redis.run(pause(device.pool, endpoint_id, PAUSE_AFTER_FAILURE_S))
        settled = grade.passes >= PASSES_TO_LIST or grade.failures >= FAILURES_TO_DELIST
        wait_s = self._pace.interval_s if settled and passed else self._pace.retry_s
        await self._redis.run(enqueue_probe(device.device_id, self._now_ms() + int(wait_s * 1000)))
