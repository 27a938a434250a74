"""Endpoints, presence and what selection answers."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, RelayId

PRESENCE_TTL_S: Final = 90


@dataclass(frozen=True, slots=True)
class Caps:
    """How much an endpoint may carry at once."""

    connections: int
    customers: int


PEER_CAPS: Final = {
    SpeedTier.FAST: Caps(4, 2),
    SpeedTier.MEDIUM: Caps(3, 1),
    SpeedTier.SLOW: Caps(2, 1),
    SpeedTier.UNKNOWN: Caps(2, 1),
}
MODEM_CAPS: Final = Caps(6, 3)


def caps_of(pool: Pool, tier: SpeedTier) -> Caps:
    """The caps of an endpoint: modems have their own, peers by measured speed."""
    return MODEM_CAPS if pool is Pool.MBL else PEER_CAPS[tier]


@dataclass(frozen=True, slots=True)
class Presence:
    """A device that is connected to a relay now, and how its relay is reached on the mesh."""

    device_id: DeviceId
    account_id: AccountId
    relay_id: RelayId
    mesh_host: str
    mesh_port: int
    ip: str
    country: Country
    ip_type: IpType
    asn: int
    isp: str
    connected_at_ms: int
    protocol: str = "binary-v1"
    relay_life: str = ""
    """Which life of its relay told of it: it counts while that relay's heartbeat says the same. Empty: no heartbeat."""
    generation: int = 0
    account_generation: int = 0
    """Of the token it came with."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A listed exit. Modems carry where they listen and their sealed credentials; peers are reached by presence."""

    endpoint_id: EndpointId
    pool: Pool
    account_id: AccountId
    country: Country
    carrier: str
    asn: int
    isp: str
    ip_type: IpType
    tier: SpeedTier
    modem_host: str = ""
    modem_port: int = 0
    modem_credentials_sealed: str = ""
    city: str = ""
    stability: int | None = None
    """How rarely its address changes, 0 to 100; None while nobody knows."""


class Rotation(StrEnum):
    """What a session does over time; `hard` is an alias of sticky."""

    STICKY = "sticky"
    AUTO5 = "auto5"
    AUTO10 = "auto10"
    AUTO20 = "auto20"
    AUTO60 = "auto60"
    ON_DEMAND = "ondemand"


ROTATION_WINDOW_MS: Final = {
    Rotation.AUTO5: 5 * 60_000,
    Rotation.AUTO10: 10 * 60_000,
    Rotation.AUTO20: 20 * 60_000,
    Rotation.AUTO60: 60 * 60_000,
    Rotation.STICKY: 0,
    Rotation.ON_DEMAND: 0,
}
"""After how long something changes by itself; 0 is never."""


class Failover(StrEnum):
    """What may stand in when nothing matches."""

    ANY = "any"
    SAME_COUNTRY = "samecountry"
    SAME_CARRIER = "samecarrier"
    SAME_NODE = "samenode"
    STRICT = "strict"


@dataclass(frozen=True, slots=True)
class Route:
    """A parsed username: hard and soft wishes, and what the parser had to heal."""

    account_id: AccountId
    pools: tuple[Pool, ...]
    country: Country | None
    rotation: Rotation
    session_id: str | None
    ttl_s: int
    carrier: str | None
    city: str | None
    ip_type: IpType | None
    isp: str | None
    asn: int | None
    failover: Failover
    strict: bool
    pin: tuple[str, str] | None
    unusable: tuple[str, ...] = ()
    """Filters that must hold and whose values no exit can have: nothing is selected."""
    corrections: tuple[str, ...] = ()


class Selected(IntEnum):
    """How an endpoint came to be selected."""

    FRESH = 0
    SESSION = 1
    PIN = 2
    INSTEAD_OF_PIN = 3


class NoStockReason(StrEnum):
    """Why nothing was selected."""

    STOCK = "stock"
    ABSENT = "absent"
    UNUSABLE = "unusable"
    SESSIONS = "sessions"
    LEASE = "lease"


class Acquired(NamedTuple):
    """One connection on one endpoint, held until released. `mesh_*` is set for peers, `modem_*` for modems."""

    endpoint: Endpoint
    mesh_host: str
    mesh_port: int
    protocol: str
    exit_ip: str
    selected: Selected
    sessions: int = 0
    """How many named sessions its owner has in this pool, if this connection began one; else 0."""


@dataclass(frozen=True, slots=True)
class NoStock:
    """Nothing was selected; `listed` endpoints of that country have room, whether they match or not."""

    listed: int
    reason: NoStockReason
