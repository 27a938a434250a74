"""Pure decisions of enrolment: regions, names, consent, listing wishes, wallets, caps, and what identities are shared."""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from shared.kernel.codes import IpType
from shared.kernel.money import MicroUsdc, parse_usdc
from shared.supply.model import EVERY_OTHER_COUNTRY, Device, Family, Kind, Origin, Owner, Region
from shared.supply.places import COUNTRIES, distance_km

_UUID: Final = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
_LONG_HEX: Final = re.compile(r"[0-9a-f]{16,}", re.IGNORECASE)
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.:@-]{0,127}")
WALLET: Final = re.compile(r"0x[0-9a-fA-F]{40}|[1-9A-HJ-NP-Za-km-z]{32,44}")
"""An EVM address, or a Solana one in base58."""

DEVICES_MAX: Final = 200_000
UNPROVEN_MAX: Final = 20_000
COUNT_SHARDS: Final = 16
"""An account's devices are counted in this many rows, so that a fleet that starts at once does not wait for one of them."""
GHOST_AFTER_MS: Final = 14 * 86_400_000
FAMILIES_MAX: Final = 8
REFRESH_REPEAT_MAX_MS: Final = 120_000
"""How long a device that lost the answer to a refresh may ask again with the same token: a few tries of every SDK."""
TWINS_TOLD_MS: Final = 24 * 3600_000
WALLET_COOLING_MS: Final = 7 * 86_400_000
WITHDRAWAL_MIN: Final = {
    Kind.AGENT: parse_usdc("5"),
    Kind.SDK: parse_usdc("10"),
    Kind.MODEM: parse_usdc("5"),
}
TERMS: Final[Mapping[str, Any]] = {"current": "2026-11", "accepted": ["2026-11"]}
"""The setting `terms` until somebody writes it."""
CROWD_MAX: Final = 100
"""More devices than this in one home network (/24, or /48 of IPv6) is no neighbourhood."""


def assign_region(country: str, regions: Iterable[Region]) -> Region:
    """The region that names a country, else the nearest one, else the one that serves every other country."""
    place = COUNTRIES.get(country)
    nearest: tuple[float, Region] | None = None
    rest: Region | None = None
    for region in regions:
        if country in region.countries:
            return region
        if EVERY_OTHER_COUNTRY in region.countries:
            rest = region
        if place is not None and region.place is not None:
            far = distance_km(place, region.place)
            if nearest is None or far < nearest[0]:
                nearest = far, region
    if nearest is not None:
        return nearest[1]
    if rest is None:
        raise ValueError("no region serves the rest")
    return rest


def looks_random(name: str) -> bool:
    """Whether a device name will probably differ at the next start, which makes a new device each time."""
    return bool(_UUID.search(name) or _LONG_HEX.search(name))


def slug(text: str) -> str:
    """A name as a username token can carry it: lower case, letters and digits, at most 64."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:64]


# Addresses and their classes


def network_of(address: str) -> str:
    """The /24 (IPv6: /48) of an address, as text; empty for what is no address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return str(ipaddress.ip_network(f"{ip}/{24 if ip.version == 4 else 48}", strict=False))


def class_subject(text: str) -> str | None:
    """What an override is for, in one spelling: `AS64500` or a network of at most /8 (IPv6: /16); else None."""
    number = re.fullmatch(r"(?:AS)?([1-9][0-9]{0,9})", text, re.IGNORECASE)
    if number:
        return f"AS{number.group(1)}"
    try:
        network = ipaddress.ip_network(text, strict=True)
    except ValueError:
        return None
    least = 8 if network.version == 4 else 16
    return str(network) if least <= network.prefixlen else None


def override_for(overrides: Mapping[str, Any], address: str, asn: int) -> IpType | None:
    """What an operator said of an address: the narrowest network that holds it first, then its ASN."""
    if not overrides:
        return None
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        ip = None
    best: tuple[int, IpType] | None = None
    for subject, entry in overrides.items():
        if ip is None or subject.startswith("AS"):
            continue
        network = ipaddress.ip_network(subject)
        if network.version == ip.version and ip in network and (best is None or network.prefixlen > best[0]):
            best = network.prefixlen, IpType(entry["class"])
    if best is not None:
        return best[1]
    entry = overrides.get(f"AS{asn}")
    return IpType(entry["class"]) if entry else None


def crowded_networks(homes: Mapping[str, int]) -> frozenset[str]:
    """Networks (`network_of`) in which more devices pass for homes than one neighbourhood has; `homes` counts them."""
    return frozenset(network for network, count in homes.items() if network and count > CROWD_MAX)


def claimed_country(claimed: str, origin: Origin) -> str:
    """What a device says of its country where its address says otherwise; empty when they agree or nothing is claimed."""
    said = claimed.strip().lower()
    return said if re.fullmatch(r"[a-z]{2}", said) and said != origin.country else ""


# Consent and wishes


def is_withdrawn(device: Device, owner: Owner) -> bool:
    """Whether consent was withdrawn and not given again: by the device itself, or by the owner for all there were."""
    if device.withdrawn_at_ms is not None:
        return True
    given = [device.created_at_ms]
    given += [device.consent.accepted_at_ms] if device.consent else []
    given += [owner.consent.accepted_at_ms] if owner.consent else []
    return owner.withdrawn_at_ms >= max(given)


def has_consent(device: Device, owner: Owner, terms: Mapping[str, Any]) -> bool:
    """Whether a device may serve: its own receipt or its owner's, for terms that still hold, and no withdrawal since."""
    if is_withdrawn(device, owner):
        return False
    accepted = terms.get("accepted", ())
    own = device.consent is not None and (
        device.kind is Kind.MODEM or device.consent.terms_version in accepted
    )
    return own or (owner.consent is not None and owner.consent.terms_version in accepted)


def wants_listing(device: Device, owner: Owner) -> bool:
    """The owner's newest word: on this device, or on all of them."""
    if owner.listing_all is not None and owner.listing_all_at_ms > device.listing_set_at_ms:
        return owner.listing_all
    return device.listing_wanted


# Identities


def replaced_families(
    families: Mapping[str, Family], room_for: int = 1, most: int = FAMILIES_MAX
) -> tuple[str, ...]:
    """The refresh families that make room for new ones: an owner's last, and among equals those unused for longest."""
    excess = len(families) + room_for - most
    by_age = sorted(families, key=lambda f: (families[f].owned, families[f].used_at_ms))
    return tuple(by_age[: max(excess, 0)])


def rotated(family: Family, shown_hash: str, fresh_hash: str, now_ms: int) -> Family | None:
    """The family after one of its tokens was shown; None when that one was copied.

    The token before the newest is shown again by whoever lost the answer, until the newest is used or the time is over. The
    answer that was lost, or stolen, is worth nothing then: whoever shows its token gives the copy away.
    """
    if shown_hash == family.refresh_hash:
        return replace(
            family, refresh_hash=fresh_hash, used_at_ms=now_ms, previous_hash=shown_hash, spent_at_ms=now_ms
        )
    if shown_hash == family.previous_hash and now_ms - family.spent_at_ms <= REFRESH_REPEAT_MAX_MS:
        return replace(family, refresh_hash=fresh_hash, used_at_ms=now_ms)
    return None


def are_twins(families: Mapping[str, Family], used: str) -> bool:
    """Whether another machine goes on with this identity: an older family is used after a newer one has begun."""
    begun = families[used].begun_at_ms
    return any(other.begun_at_ms > begun for name, other in families.items() if name != used)


# Caps


def shard_cap(cap: int, shard: int) -> int:
    """The part of a cap that one count row may fill; the parts of all rows add up to it."""
    return cap // COUNT_SHARDS + (shard < cap % COUNT_SHARDS)


def is_ghost(device: Device, now_ms: int) -> bool:
    """Whether a device that is connected nowhere only takes up room: it never served and was not seen for long."""
    if device.kind is Kind.MODEM or device.proven_at_ms is not None:
        return False
    used = (family.used_at_ms for family in device.families.values())
    seen = max([device.created_at_ms, device.withdrawn_at_ms or 0, *used])
    return now_ms - seen > GHOST_AFTER_MS


# Money


def wallet_now(device: Device, now_ms: int) -> str | None:
    """The wallet that is paid to: the registered one, or a new one whose cooling time is over."""
    pending = device.pending_wallet
    return pending.wallet if pending is not None and pending.from_ms <= now_ms else device.wallet


def same_wallet(one: str | None, other: str | None) -> bool:
    """Whether two texts name one wallet; EVM addresses differ in letter case only by their checksum."""
    if one is None or other is None:
        return one is other
    return one.lower() == other.lower() if one.startswith("0x") else one == other


def withdrawal_fault(kind: Kind, amount: MicroUsdc, available_micro: int) -> str | None:
    """Why an amount cannot be withdrawn; None when it can."""
    least = WITHDRAWAL_MIN[kind]
    if amount < least:
        return f"amount: at least {least // 1_000_000} USDC"
    if amount > available_micro:
        return "amount: more than this device has earned and not yet withdrawn"
    return None
