"""What is known of a device. Nothing here is taken from the device's own word except its name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import UNKNOWN_COUNTRY, AccountId, Country, DeviceId
from shared.supply.places import Place, parse_place

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
class Family:
    """The chain of refresh tokens that one registration began: the hash of its newest one. One machine has one chain.

    `owned`: whoever began it showed that the device is theirs, by the account's key or by being the first of its name.
    `previous_hash`: of the token that the newest one was first given for, and `spent_at_ms` when that was. `apart`: tokens
    that its relays see decide nothing; it asks for others when its owner does.
    """

    refresh_hash: str
    begun_at_ms: int
    used_at_ms: int
    account_generation: int
    owned: bool
    previous_hash: str = ""
    spent_at_ms: int = 0
    apart: bool = False


@dataclass(frozen=True, slots=True)
class PendingWallet:
    """A wallet that replaces the registered one when its cooling time is over."""

    wallet: str
    from_ms: int


@dataclass(frozen=True, slots=True)
class Device:
    """One enrolled device.

    `shard` is where it is counted, `proven_at_ms` when it first served or was verified. `claimed_country` is what it says
    where its address says otherwise. `twins_at_ms`: two machines were seen using this one identity. `released_at_ms`: its
    place in the counts was given back, because it was withdrawn and never served. `begun_with`: hash of what named its
    first registration, where no API key showed whose it is.
    """

    device_id: DeviceId
    account_id: AccountId
    name: str
    kind: Kind
    origin: Origin
    carrier: str
    region: str
    created_at_ms: int
    listing_wanted: bool = True
    listing_set_at_ms: int = 0
    generation: int = 0
    shard: int = 0
    proven_at_ms: int | None = None
    consent: Consent | None = None
    withdrawn_at_ms: int | None = None
    released_at_ms: int | None = None
    wallet: str | None = None
    pending_wallet: PendingWallet | None = None
    requested_micro: int = 0
    claimed_country: str = ""
    begun_with: str = ""
    twins_at_ms: int | None = None
    modem: Modem | None = None
    families: Mapping[str, Family] = field(default_factory=dict)

    @property
    def pool(self) -> Pool:
        """Modems are the production pool; everything that enrolled by itself is the community pool."""
        return Pool.MBL if self.kind is Kind.MODEM else Pool.PEER


@dataclass(frozen=True, slots=True)
class OwnerConsent:
    """An owner's agreement for all their devices: who gave it, when, to what, and how many devices there were."""

    terms_version: str
    accepted_at_ms: int
    accepted_by: str
    devices: int


@dataclass(frozen=True, slots=True)
class Hours:
    """When an owner shares: minutes of the day, by the clock of an IANA time zone."""

    begins: int
    ends: int
    zone: str


@dataclass(frozen=True, slots=True)
class Owner:
    """What an account decides for all its devices. `listing_all` is its newest word on all of them, if it ever gave one."""

    account_id: AccountId
    generation: int = 0
    auto_list: bool = True
    listing_all: bool | None = None
    listing_all_at_ms: int = 0
    consent: OwnerConsent | None = None
    withdrawn_at_ms: int = 0
    hours: Hours | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """One act of consent or its withdrawal, kept for ever. `claimed_at_ms` is when the device says that it was asked."""

    subject: str
    action: str
    terms_version: str
    method: str
    by: str
    at_ms: int
    claimed_at_ms: int = 0
    devices: int = 1


@dataclass(frozen=True, slots=True)
class Region:
    """A relay region: its public URL, where it stands, and the countries it serves however far they are.

    `*` takes every country whose place nobody knows, and all of them while no region says where it stands.
    """

    name: str
    url: str
    countries: frozenset[str]
    place: Place | None = None


def _region(name: str, entry: Mapping[str, Any]) -> Region:
    countries = frozenset(str(c).lower() for c in entry["countries"])
    at = entry.get("at")
    try:
        place = None if at is None else parse_place(at)
    except (AttributeError, ValueError):
        raise ValueError(f'{name}: "at" is a text like "50.1,8.7": degrees north and east') from None
    return Region(name, str(entry["url"]), countries, place)


def parse_regions(value: Mapping[str, Any]) -> tuple[Region, ...]:
    """The setting `relays`. Raises ValueError naming what is wrong."""
    try:
        regions = tuple(_region(name, entry) for name, entry in value.items())
    except (AttributeError, KeyError, TypeError):
        raise ValueError("every region has a url and a list of countries") from None
    if sum(EVERY_OTHER_COUNTRY in r.countries for r in regions) != 1:
        raise ValueError('exactly one region must serve "*"')
    if not all(r.url.startswith(("ws://", "wss://")) for r in regions):
        raise ValueError("a region's url must begin with ws:// or wss://")
    return regions
