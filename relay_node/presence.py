"""Tells Redis which devices are here, without ever blocking the byte path: the latest wish per device is written.

Bounded by the number of devices; when Redis is away the wishes wait and the sweep renews them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Final

from relay_node.registry import Device, Registry
from shared.grading.live import ask_probes, device_mark, mark_changed, mark_left
from shared.kernel.ids import AccountId, DeviceId, RelayId
from shared.pool.model import Presence
from shared.pool.presence import (
    MOVE_PEERS,
    RELAY_BEAT_S,
    REVOKE_ACCOUNT,
    REVOKE_DEVICE,
    Arrival,
    beat_relay,
    drop_presences,
    put_presences,
    renew_presence,
)
from shared.pool.rotation import ROTATE_DEVICE
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis

RETRY_S: Final = 1.0
REFRESH_S: Final = 30.0
SWEEP_S: Final = 5.0
BATCH: Final = 100
GATHER_S: Final = 0.03
"""Who comes or goes within this time is told of in one call: a crowd that dials again comes by the thousand a second."""

log = logging.getLogger("psx.relay")


class PresenceWriter:
    """Writes arrivals, departures and refreshes of devices to Redis, in order per device."""

    def __init__(
        self,
        redis: AsyncRedis,
        relay_id: str,
        mesh: tuple[str, int],
    ) -> None:
        self._redis = redis
        self._relay_id = RelayId(relay_id)
        self._life = secrets.token_hex(8)
        self._mesh = mesh
        self.revoke: Callable[[str, int, int], None] = lambda device_id, generation, account_generation: None
        self._wishes: dict[str, Device | None] = {}
        self._new: set[str] = set()
        self._wake = asyncio.Event()
        self._faults: dict[str, str] = {}

    @property
    def fault(self) -> str | None:
        """What does not work now: each duty tells its own, and takes it back when it succeeds."""
        return next(iter(self._faults.values()), None)

    def _well(self, duty: str) -> None:
        self._faults.pop(duty, None)

    def _fails(self, duty: str, error: StoreUnavailable) -> None:
        if not self._faults:
            log.warning("redis away", extra={"reason": str(error)})
        self._faults[duty] = str(error)

    def arrived(self, device: Device) -> None:
        """A device has its first ready socket: it is present, and due for a probe."""
        self._new.add(device.device_id)
        self._wish(device.device_id, device)

    def left(self, device: Device) -> None:
        """A device lost its last socket."""
        self._new.discard(device.device_id)
        self._wish(device.device_id, None)

    def refresh(self, registry: Registry) -> None:
        """Renew every device that is here; also what heals a Redis that lost everything."""
        for device in registry.devices.values():
            if device.least_loaded() is not None and not device.leaving:
                self._wish(device.device_id, device)

    def _wish(self, device_id: str, device: Device | None) -> None:
        self._wishes[device_id] = device
        self._wake.set()

    async def run(self) -> None:
        """Write wishes until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            self._wake.clear()
            await self.drain()

    async def drain(self) -> None:
        """Write all wishes that stand now, a hundred devices a call; retries while Redis is away."""
        while self._wishes:
            batch = [self._wishes.popitem() for _ in range(min(len(self._wishes), BATCH))]
            try:
                await self._put([device for _, device in batch if device is not None])
                await self._drop([DeviceId(device_id) for device_id, device in batch if device is None])
                self._well("write")
            except StoreUnavailable as error:
                for device_id, device in batch:
                    self._wishes.setdefault(device_id, device)
                self._fails("write", error)
                await asyncio.sleep(RETRY_S)

    async def renew(self, registry: Registry, now_s: float) -> None:
        """Keep the presence of devices that were written a while ago; each has its own time, so the work is spread."""
        due = [
            d
            for d in registry.devices.values()
            if now_s - d.renewed_s >= REFRESH_S and not d.leaving and d.least_loaded() is not None
        ]
        for start in range(0, len(due), BATCH):
            part = due[start : start + BATCH]
            ids = [DeviceId(device.device_id) for device in part]
            try:
                kept = await self._redis.run(renew_presence(ids, self._relay_id))
            except StoreUnavailable as error:
                self._fails("renew", error)
                return
            for device, is_kept in zip(part, kept, strict=True):
                device.renewed_s = now_s
                if not is_kept:
                    self._wish(device.device_id, device)
        self._well("renew")

    async def _put(self, devices: Sequence[Device]) -> None:
        if not devices:
            return
        arrivals = [Arrival(self._presence(d), d.generation, d.account_generation, d.owned) for d in devices]
        new: list[DeviceId] = []
        revocations = await self._redis.run(put_presences(self._relay_id, arrivals))
        for device, revoked in zip(devices, revocations, strict=True):
            if revoked.device > device.generation or revoked.account > device.account_generation:
                self.revoke(device.device_id, revoked.device, revoked.account)
            elif device.device_id in self._new:
                new.append(DeviceId(device.device_id))
        if new:
            marks = [device_mark(device_id) for device_id in new]
            await asyncio.gather(self._redis.run(ask_probes(new)), self._redis.run(mark_changed(marks)))
            self._new.difference_update(new)

    async def _drop(self, device_ids: Sequence[DeviceId]) -> None:
        if not device_ids:
            return
        dropped = await self._redis.run(drop_presences(device_ids, self._relay_id))
        left = [device_id for device_id, was_here in zip(device_ids, dropped, strict=True) if was_here]
        if left:
            await self._redis.run(mark_left(left))

    def _presence(self, device: Device) -> Presence:
        return Presence(
            device_id=DeviceId(device.device_id),
            account_id=AccountId(device.account_id),
            relay_id=self._relay_id,
            mesh_host=self._mesh[0],
            mesh_port=self._mesh[1],
            ip=device.address,
            country=device.origin.country,
            ip_type=device.origin.ip_type,
            asn=device.origin.asn,
            isp=device.origin.isp,
            connected_at_ms=device.connected_ms,
            protocol=device.protocol,
            relay_life=self._life,
        )

    async def beat_for_ever(self, registry: Registry) -> None:
        """Say that this relay lives: without it for `RELAY_ALIVE_TTL_MS` none of its devices is routed to.

        A Redis that has forgotten it has forgotten its devices too, and is told of all of them again.
        """
        stood = False
        while True:
            try:
                stands = await self._redis.run(beat_relay(self._relay_id, self._life))
                if stood and not stands:
                    log.warning("presence was lost", extra={"devices": len(registry.devices)})
                    self.refresh(registry)
                stood = True
                self._well("beat")
            except StoreUnavailable as error:
                self._fails("beat", error)
            await asyncio.sleep(RELAY_BEAT_S)


async def follow_orders(
    redis: AsyncRedis, registry: Registry, presence: PresenceWriter, relay_id: str
) -> None:
    """Close devices as they are revoked, move peers as operators say, and ask devices for another address. A subscription
    that was lost and stands again is followed by a refresh of every device, which tells what was revoked meanwhile.
    """
    while True:
        try:
            async for channel, text in redis.messages(
                REVOKE_DEVICE, REVOKE_ACCOUNT, MOVE_PEERS, ROTATE_DEVICE
            ):
                name, _, rest = text.partition(" ")
                if channel == REVOKE_DEVICE and rest.isdecimal():
                    registry.revoke(name, int(rest))
                elif channel == REVOKE_ACCOUNT and rest.isdecimal():
                    registry.revoke_account(name, int(rest))
                elif channel == ROTATE_DEVICE and rest:
                    registry.ask_rotation(name, rest)
                elif channel == MOVE_PEERS and name == relay_id:
                    for socket in list(registry.sockets):
                        socket.redirect(rest, "operator")
                elif not channel:
                    presence.refresh(registry)
        except StoreUnavailable as error:
            log.warning("orders not heard", extra={"reason": str(error)})
        await asyncio.sleep(RETRY_S)


async def sweep_for_ever(registry: Registry, presence: PresenceWriter) -> None:
    """The one timer of the relay: idle sockets, late handshakes, stalled tunnels, presence."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_S)
        registry.sweep(loop.time())
        await presence.renew(registry, loop.time())
