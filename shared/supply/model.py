"""What is known of a device. Nothing here is taken from the device's own word except its name."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import UNKNOWN_COUNTRY, AccountId, Country, DeviceId

EVERY_OTHER_COUNTRY: Final = "*"


class Kind(StrEnum):
    """How a device is attached."""

    AGENT = "agent"
    SDK = "sdk"
    MODEM = "modem"


@dataclass(frozen=True, slots=True)
class Origin:
    """What an address says of where and what it is."""

    country: Country = UNKNOWN_COUNTRY
    ip_type: IpType = IpType.UNKNOWN
    asn: int = 0
    isp: str = ""


@dataclass(frozen=True, slots=True)
class Consent:
    """The owner's recorded agreement to share the device's connection."""

    terms_version: str
    method: str
    accepted_at_ms: int


@dataclass(frozen=True, slots=True)
class Modem:
    """Where a farm's modem listens, and its sealed credentials."""

    host: str
    port: int
    credentials_sealed: str


@dataclass(frozen=True, slots=True)
class Device:
    """One enrolled device. `generation` rises when its tokens are revoked."""

    device_id: DeviceId
    account_id: AccountId
    name: str
    kind: Kind
    origin: Origin
    carrier: str
    region: str
    created_at_ms: int
    listing_wanted: bool = True
    generation: int = 0
    consent: Consent | None = None
    wallet: str | None = None
    modem: Modem | None = None
    refresh_hash: str = ""
    spent_refresh_hash: str = ""

    @property
    def pool(self) -> Pool:
        """Modems are the production pool; everything that enrolled by itself is the community pool."""
        return Pool.MBL if self.kind is Kind.MODEM else Pool.PEER


@dataclass(frozen=True, slots=True)
class Region:
    """A relay region: its public URL and the countries it serves; `*` takes every other."""

    name: str
    url: str
    countries: frozenset[str]


def parse_regions(value: Mapping[str, Any]) -> tuple[Region, ...]:
    """The `PSX_RELAYS` object. Raises ValueError naming what is wrong."""
    regions = tuple(
        Region(name, str(entry["url"]), frozenset(str(c).lower() for c in entry["countries"]))
        for name, entry in value.items()
    )
    if sum(EVERY_OTHER_COUNTRY in r.countries for r in regions) != 1:
        raise ValueError('exactly one region must serve "*"')
    if not all(r.url.startswith(("ws://", "wss://")) for r in regions):
        raise ValueError("a region's url must begin with ws:// or wss://")
    return regions
