"""Leases of reserved devices: what one is, what it may become, and how its username reads. Pure.

A lease belongs to one pool access key, which is its private pool. It points at a device, and may be moved to another one;
the credential holds the lease's id alone. Source: the v1 contract, section 8; decision 0072.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, EndpointId, PakId
from shared.pool.model import ROTATION_WINDOW_MS, Failover, Rotation
from shared.pool.ports import Hold, Idle, PortWish

LEASE_ID: Final = re.compile(r"l[a-z0-9]{8,12}")
IDLE_MIN_S: Final = 120
"""Twice as long as the job takes to look at a lease again: what is in use is never released."""
IDLE_DEFAULT_S: Final = 30 * 60
IDLE_MAX_S: Final = 12 * 3600
KEPT_MS: Final = 5 * 60_000
"""How long Redis knows a hold that is over, so that the job sees which way it ended."""
MOVE_AFTER_MS: Final = 10 * 60_000
"""A device that was away for so long loses its lease to another one, where the lease's failover lets it."""
TOLD_STEP_MS: Final = 30_000
"""Uses are written to the row in steps: what a lost Redis may shorten a lease by, beside the minute between two looks."""
COOLDOWN_MS: Final = 10_000
ROTATION_MAX_MS: Final = 90_000
"""A device that did not say within this time whether it changed its address will not."""
PER_ACCOUNT_DEFAULT: Final = 20
PER_HOUR_DEFAULT: Final = 12
SHARE_PERCENT_DEFAULT: Final = 50
"""Leases of an account, rotations of a lease, and how much of a country's devices leases and private ports may hold alone:
where the live setting `leases` says nothing else."""
MODES: Final = {
    **{mode.value: mode for mode in Rotation if mode is not Rotation.STICKY},
    "sticky": Rotation.ON_DEMAND,
    "hard": Rotation.ON_DEMAND,
    "manual": Rotation.ON_DEMAND,
}
"""What a rotation mode may be called. `ondemand`: when its holder asks, and never by itself."""
_MOVES: Final = frozenset({Failover.ANY, Failover.SAME_COUNTRY, Failover.SAME_CARRIER})


@dataclass(frozen=True, slots=True)
class Lease:
    """One reserved device of one key. `expires_at_ms` moves on with every use, `released_at_ms` is final.

    `country`, `ip_type` and `carrier` are what was asked for; `rotation_id` names the rotation that was asked for last.
    """

    lease_id: str
    pak_id: PakId
    account_id: AccountId
    pool: Pool
    country: Country | None
    ip_type: IpType | None
    carrier: str
    failover: Failover
    idle_s: int
    endpoint_id: EndpointId
    created_at_ms: int
    expires_at_ms: int
    rotation: Rotation = Rotation.ON_DEMAND
    rotated_at_ms: int = 0
    rotation_id: str = ""
    used_at_ms: int = 0
    released_at_ms: int = 0

    @property
    def idle(self) -> Idle:
        """For how long a use holds it."""
        return Idle(self.idle_s * 1000, KEPT_MS)

    def wish(self, *, best: bool = False) -> PortWish:
        """What its device must be; `best`: what it should be, which counts a carrier that is only wished for."""
        carrier = self.carrier if best or self.failover in _CARRIER_IS_HARD else ""
        return PortWish(self.pool, self.country, carrier, "", True, self.ip_type)

    def username(self) -> str:
        """The proxy username that uses it; whoever stands in for its device is what was asked for."""
        parts = [self.account_id, self.pool.value, self.country or "any"]
        parts += ["iptype", self.ip_type.value] if self.ip_type else []
        parts += ["carrier", self.carrier] if self.carrier else []
        return "-".join([*parts, "failover", self.failover.value, "pin", "lease", self.lease_id])


_CARRIER_IS_HARD: Final = frozenset({Failover.SAME_CARRIER, Failover.STRICT})


class Fate(StrEnum):
    """What the job does with a lease."""

    STAYS = "stays"
    LOST = "lost"
    IDLE = "idle"
    AWAY = "away"


def fate_of(lease: Lease, hold: Hold | None, now_ms: int) -> Fate:
    """Whether a lease stays, is put back into Redis, is released because nothing used it, or moves to another device."""
    ends = max(lease.expires_at_ms, hold.expires_at_ms if hold else 0)
    if ends <= now_ms:
        return Fate.IDLE
    if hold is None:
        return Fate.LOST
    away_ms = now_ms - hold.away_since_ms if hold.away_since_ms else 0
    return Fate.AWAY if away_ms >= MOVE_AFTER_MS and lease.failover in _MOVES else Fate.STAYS


def is_due_to_rotate(lease: Lease, now_ms: int) -> bool:
    """Whether a lease that rotates by itself has had its address for long enough. Modems never do."""
    every_ms = ROTATION_WINDOW_MS[lease.rotation]
    since = max(lease.rotated_at_ms, lease.created_at_ms)
    return lease.pool is Pool.PEER and every_ms > 0 and now_ms - since >= every_ms


def share_percent_of(setting: Mapping[str, Any]) -> int:
    """How much of a country's devices may be held alone, by the live setting `leases`."""
    return int(setting.get("share_percent", SHARE_PERCENT_DEFAULT))


def lease_percent_of(setting: Mapping[str, Any]) -> int:
    """How much leases, which cost nothing, may hold alone: half of that, so that what is sold finds devices too."""
    share = share_percent_of(setting)
    return share if share >= 100 else share // 2


def idle_of(asked_s: int | None) -> int:
    """The idle time that a lease gets: what was asked for, within bounds."""
    return IDLE_DEFAULT_S if asked_s is None else min(max(asked_s, IDLE_MIN_S), IDLE_MAX_S)


def locked_to(
    asked: IpType | None, key_ip_type: str, *, modems_only: bool
) -> tuple[tuple[Pool, ...], IpType | None]:
    """The pools that a key may reserve from, and the IP type; no pool when its lock and the wish exclude each other."""
    if key_ip_type:
        locked = IpType(key_ip_type)
        return ((Pool.PEER,) if asked in {None, locked} else ()), locked
    return ((Pool.MBL,) if modems_only else (Pool.MBL, Pool.PEER)), asked
