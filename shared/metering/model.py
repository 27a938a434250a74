"""Counted bytes and what a flush answers."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, GatewayId, PakId

FLUSH_INTERVAL_S: Final = 5.0
LEASE_LEAST_BYTES: Final = 256 * 1024
LEASE_LIFE_MS: Final = 30_000
"""How long the lease of a gateway that has died keeps bytes from the others."""
OVERDRAFT_MAX_BYTES: Final = 448 * 1024
"""What a gateway may carry beyond its lease while it asks for the next one. With what is under way (512 KiB at
most) a key's overshoot stays within 1 MiB per gateway."""
MAX_LINES_PER_BATCH: Final = 20
"""So that applying a batch (up to four rows a line and the batch itself) fits one DynamoDB transaction of 100."""
LINE_MAX_BYTES: Final = 10**15
"""Of one direction: a thousand times what a gateway could carry between two flushes."""
ID_MAX_CHARS: Final = 256
TIME_MAX_MS: Final = 253_402_300_799_999
"""The end of the year 9999."""


class LineKey(NamedTuple):
    """What bytes are counted by. A tuple, because every tunnel looks its line up."""

    pak_id: PakId
    account_id: AccountId
    device_id: DeviceId
    supplier_id: AccountId
    country: Country
    pool: Pool
    ip_type: IpType


@dataclass(frozen=True, slots=True)
class UsageLine:
    """Bytes of one key through one device; `up` is towards the target."""

    key: LineKey
    up_bytes: int
    down_bytes: int

    @property
    def total_bytes(self) -> int:
        """Both directions: what is billed and what is earned."""
        return self.up_bytes + self.down_bytes


@dataclass(frozen=True, slots=True)
class FlushBatch:
    """What one gateway counted since its last flush. (gateway, sequence) names it for ever."""

    gateway_id: GatewayId
    sequence: int
    at_ms: int
    lines: tuple[UsageLine, ...]


@dataclass(frozen=True, slots=True)
class SpoiledBatch:
    """A row among the batches that is none; no gateway of ours writes such."""

    pk: str
    sk: str
    fault: str


@dataclass(frozen=True, slots=True)
class Ask:
    """What a gateway tells of a key when it asks for a lease: bytes not added yet, and bytes wanted beyond them."""

    unreported_bytes: int
    want_bytes: int


@dataclass(frozen=True, slots=True)
class Meter:
    """The live count of a key, over all gateways; no cap means a partner's key.

    `lease_bytes` is what this gateway alone may carry before it asks again; negative when others' leases, or its own
    bytes, are past the cap already.
    """

    used_bytes: int
    cap_bytes: int | None
    lease_bytes: int = 0

    @property
    def left_bytes(self) -> int | None:
        """What may still be carried, never below zero; None without a cap."""
        return None if self.cap_bytes is None else max(self.cap_bytes - self.used_bytes, 0)
