"""The prober: takes due devices from the shared queue, probes them as a customer would reach them, writes their grades.

It takes nothing off sale for good and lists nothing: it pauses what fails, marks what changed, and leaves the rest to the
listing run. While the kill switch is on it takes nothing. Several probers share one queue: each entry is leased, so one
that dies is taken over. What fails is held against the target first, so that a target that is away costs no exit its place.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from prometheus_client import Counter, Histogram

from gateway_node.prober.targets import TargetWatch
from shared.access.secrets import SealBroken, SecretBox
from shared.grading.dialer import PATIENT, URGENT, URGENT_LONG, Exit, Seen, Trust, probe
from shared.grading.live import device_mark, excuse_conduct, finish_probe, mark_changed, spent_bytes, take_due
from shared.grading.model import Cause, Failure, Grade, ProbeResult, Target, Thresholds
from shared.grading.proof import mark_of
from shared.grading.rules import (
    DEFAULTS,
    PROBE_OVERHEAD_BYTES,
    add_result,
    choose_plan,
    is_light,
    is_verified,
    is_worth_writing,
    next_probe_ms,
    stored_thresholds,
    wants_attention,
)
from shared.grading.table import get_grade, put_result
from shared.guard.model import Switch
from shared.guard.table import read_setting, read_switch
from shared.kernel.codes import IpType
from shared.kernel.ids import UNKNOWN_COUNTRY, DeviceId, EndpointId
from shared.pool.live import pause, unpause
from shared.pool.presence import read_presence
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable
from shared.runtime.redis import AsyncRedis
from shared.supply.model import Device, Origin
from shared.supply.rules import network_of, override_for
from shared.supply.table import get_device
from shared.wire.http1 import basic_header, connect_head

LEASE_MS: Final = 60_000
IDLE_POLL_S: Final = 0.25
RETRY_S: Final = 1.0
TARGET_AWAY_RETRY_MS: Final = 5_000
WRITE_ATTEMPTS_MAX: Final = 5
PAUSE_AFTER_FAILURE_S: Final = 120
SETTINGS_KEPT_MS: Final = 10_000

PROBES = Counter("psx_probes", "Probes by outcome", ["outcome"])
PROBE_BYTES = Counter("psx_probe_bytes", "Bytes that probes cost owners")
PROBE_S = Histogram("psx_probe_seconds", "How long a probe took", buckets=(0.1, 0.3, 1, 3, 6, 12, 30))
log = logging.getLogger("psx.prober")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a prober works with."""

    dynamo: AsyncDynamo
    redis: AsyncRedis
    table: Callable[[str], str]
    box: SecretBox
    mesh_token: str
    origin: Callable[[str], Origin]
    targets: Sequence[Target]
    trust: Trust
    concurrency: int
    now_ms: Callable[[], int]


class Prober:
    """One prober of those that share the queue."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._dynamo, self._redis, self._now_ms = parts.dynamo, parts.redis, parts.now_ms
        self._targets = TargetWatch(parts.dynamo, parts.table("guard"), parts.trust, parts.now_ms)
        self._running: set[asyncio.Task[None]] = set()
        self._overrides: Mapping[str, Any] = {}
        self._thresholds: Thresholds = DEFAULTS
        self._switch = Switch()
        self._settings_at_ms = 0

    async def run(self) -> None:
        """Probe until cancelled; what is under way then is dropped, and taken over when its leases end."""
        try:
            while True:
                taken = await self._take()
                await asyncio.sleep(0 if taken else IDLE_POLL_S)
        finally:
            for task in self._running:
                task.cancel()

    async def _take(self) -> int:
        room = self._parts.concurrency - len(self._running)
        if room <= 0:
            return 0
        try:
            await self._read_settings()
            if self._switch.stopped:
                return 0
            budget = self._thresholds.bytes_per_day
            leased = await self._redis.run(take_due(LEASE_MS, room, _day(self._now_ms()), budget))
        except StoreUnavailable as error:
            log.warning("nothing to probe is known", extra={"reason": str(error)})
            await asyncio.sleep(RETRY_S)
            return 0
        for number, device_id in enumerate(leased.device_ids):
            probing = self._one(device_id, leased.ends_ms, urgent=number < leased.urgent)
            task = asyncio.get_running_loop().create_task(probing)
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return len(leased.device_ids)

    async def _one(self, device_id: DeviceId, lease_ends_ms: int, *, urgent: bool) -> None:
        try:
            day = _day(self._now_ms())
            device = await self._dynamo.run(get_device(self._parts.table("devices"), device_id))
            if device is None:
                await self._redis.run(finish_probe(device_id, lease_ends_ms, None, day, 0))
                return
            spent = await self._redis.run(spent_bytes(device_id, day))
            before = await self._dynamo.run(get_grade(self._parts.table("grades"), device_id))
            seen = await self._probe(device, before, spent, urgent=urgent)
            cost = _cost(seen)
            next_ms: int | None = TARGET_AWAY_RETRY_MS
            if seen.result.failure is not Failure.TARGET_DOWN:
                grade = await self._record(device_id, self._classified(device, seen))
                await self._act(device, grade)
                next_ms = next_probe_ms(grade, spent + cost, self._thresholds, random.random())  # noqa: S311
            PROBE_BYTES.inc(cost)
            await self._redis.run(finish_probe(device_id, lease_ends_ms, next_ms, day, cost))
        except StoreUnavailable as error:
            log.warning("probe not recorded", extra={"device": device_id, "reason": str(error)})

    async def _probe(self, device: Device, grade: Grade | None, spent: int, *, urgent: bool) -> Seen:
        """Through the relay that holds the peer now, or through the modem's own port."""
        now = self._now_ms()
        exit_ = await self._exit_of(device)
        if isinstance(exit_, Failure):
            return Seen(ProbeResult(now, exit_), "")
        plan = choose_plan(grade, spent, now, self._thresholds, random.random(), urgent=urgent)  # noqa: S311
        target = self._choose_target(grade)
        timeouts = PATIENT
        if urgent:
            timeouts = URGENT if is_light(plan) else URGENT_LONG
        with PROBE_S.time():
            seen = await probe(exit_, target, plan, secrets.token_hex(8), self._parts.trust, now, timeouts)
        failure = seen.result.failure
        if failure is not None and failure.cause is Cause.EXIT and not await self._targets.stands(target):
            return replace(seen, result=replace(seen.result, failure=Failure.TARGET_DOWN))
        return seen

    async def _exit_of(self, device: Device) -> Exit | Failure:
        if device.modem is not None:
            try:
                opened = self._parts.box.open(device.modem.credentials_sealed, f"modem#{device.device_id}")
            except SealBroken:
                return Failure.MODEM_CREDENTIALS
            username, _, password = opened.partition(":")
            headers = [("Proxy-Authorization", basic_header(username, password))]
            host, port, unreachable = device.modem.host, device.modem.port, Failure.MODEM_UNREACHABLE
        else:
            presence = await self._redis.run(read_presence(device.device_id))
            if presence is None:
                return Failure.PEER_OFFLINE
            token = self._parts.mesh_token
            headers = [("X-PSX-Mesh-Token", token), ("X-PSX-Device", device.device_id)]
            host, port, unreachable = presence.mesh_host, presence.mesh_port, Failure.RELAY_UNREACHABLE
        return Exit(host, port, lambda address, at: connect_head(address, at, headers), unreachable)

    def _choose_target(self, grade: Grade | None) -> Target:
        """One that stands as far as is known; for an exit that has yet to prove itself, one that has not seen it."""
        standing = [t for t in self._parts.targets if self._targets.is_thought_up(t)]
        choice = standing or list(self._parts.targets)
        if grade is not None and not is_verified(grade, self._thresholds):
            fresh = [t for t in choice if t.place not in grade.vantages]
            choice = fresh or choice
        return random.choice(choice)  # noqa: S311

    async def _read_settings(self) -> None:
        """The kill switch, and what operators said of networks and thresholds: a few seconds old at most."""
        now = self._now_ms()
        if abs(now - self._settings_at_ms) < SETTINGS_KEPT_MS:
            return
        guard = self._parts.table("guard")
        switch = await self._dynamo.run(read_switch(guard))
        if switch.stopped != self._switch.stopped:
            log.warning("probing stops" if switch.stopped else "probing goes on", extra={"by": switch.by})
        self._switch = switch
        overrides = await self._dynamo.run(read_setting(guard, "ip_classes"))
        grading = await self._dynamo.run(read_setting(guard, "grading"))
        self._overrides = overrides or {}
        self._thresholds, fault = stored_thresholds(grading or {})
        if fault:
            log.error("the setting grading is not used as it stands", extra={"reason": fault})
        self._settings_at_ms = now

    def _classified(self, device: Device, seen: Seen) -> ProbeResult:
        """The result with what the exit's address says of it, or what an operator said of that address."""
        if not seen.exit_ip:
            return seen.result
        origin = self._parts.origin(seen.exit_ip)
        said = override_for(self._overrides, seen.exit_ip, origin.asn)
        exit_type = said or origin.ip_type
        registered = device.origin
        differs = [
            name
            for name, told, found, unknown in (
                ("country", registered.country, origin.country, UNKNOWN_COUNTRY),
                ("class", registered.ip_type, exit_type, IpType.UNKNOWN),
            )
            if unknown not in {told, found} and told != found
        ]
        return replace(
            seen.result,
            exit_country=origin.country,
            exit_ip_type=exit_type,
            exit_asn=origin.asn,
            exit_isp=origin.isp,
            exit_network="" if said else mark_of(network_of(seen.exit_ip)),
            differs=",".join(differs),
        )

    async def _record(self, device_id: DeviceId, result: ProbeResult) -> Grade:
        """Add a result to the grade, whoever else writes it at the same time; tell the listing run what concerns it."""
        table = self._parts.table("grades")
        for _ in range(WRITE_ATTEMPTS_MAX):
            before = await self._dynamo.run(get_grade(table, device_id)) or Grade(device_id)
            grade = add_result(before, result, self._thresholds)
            if not is_worth_writing(before, grade):
                return grade
            if await self._dynamo.run(put_result(table, grade)):
                if wants_attention(before, grade, self._thresholds):
                    await self._redis.run(mark_changed([device_mark(device_id)]))
                return grade
        raise StoreUnavailable("grade: contended")

    async def _act(self, device: Device, grade: Grade) -> None:
        """Pause what fails, let back what passes. What customers met on an exit whose probe fails is explained by that."""
        latest = grade.latest
        assert latest is not None  # noqa: S101 - a result was added
        failure = latest.failure
        PROBES.labels("passed" if failure is None else failure.value).inc()
        log.info(
            "probed",
            extra={
                "device": device.device_id,
                "failure": failure.value if failure else None,
                "tier": grade.tier.value,
                "place": latest.vantage,
            },
        )
        endpoint_id = EndpointId(device.device_id)
        if failure is None:
            if not grade.cut_short:
                await self._redis.run(unpause(device.pool, endpoint_id))
            return
        await self._redis.run(excuse_conduct(device.device_id))
        if failure.cause is Cause.EXIT:
            await self._redis.run(pause(device.pool, endpoint_id, PAUSE_AFTER_FAILURE_S))


def _day(now_ms: int) -> str:
    return datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y-%m-%d")


def _cost(seen: Seen) -> int:
    """What a probe cost the owner's line: next to nothing when it ended before the tunnel stood."""
    if seen.result.connect_ms is None:
        return 0
    pages = 2 if seen.result.plain else 1
    return seen.body_bytes + pages * PROBE_OVERHEAD_BYTES
