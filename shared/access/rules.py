"""Pure decisions of access: may this key carry traffic now, what a change to a key may be, what a purchase costs."""

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from shared.access.model import AccountKind, DisabledReason, Pak
from shared.kernel.codes import Refusal
from shared.kernel.ids import AccountId
from shared.kernel.money import BYTES_PER_GB, MicroUsdc, price

CAP_MAX_BYTES = 1000 * BYTES_PER_GB
LABEL_MAX_CHARS = 128


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """Whom limits count: an IPv4 address, or the /64 that one customer has of IPv6; what is no address stays itself."""
    if ":" not in address:
        return address
    try:
        ip = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((ip, 64), strict=False))


def authenticate(pak: Pak | None, account_id: AccountId, now_ms: int) -> Refusal | None:
    """Why a key may not carry traffic; None when it may. A capped key is told so, everything else is one answer."""
    if pak is None or pak.account_id != account_id:
        return Refusal.AUTH_INVALID
    return standing(pak, now_ms)


def standing(pak: Pak, now_ms: int) -> Refusal | None:
    """Why a known key may not carry traffic now."""
    if pak.disabled_reason is DisabledReason.CAP or is_spent(pak):
        return Refusal.CAP_EXCEEDED
    if not pak.enabled or is_expired(pak, now_ms):
        return Refusal.AUTH_INVALID
    return None


def is_expired(pak: Pak, now_ms: int) -> bool:
    """Whether a key's time is over."""
    return pak.expires_at_ms is not None and pak.expires_at_ms <= now_ms


def is_spent(pak: Pak) -> bool:
    """Whether a key has used all that it may."""
    return pak.cap_bytes is not None and pak.used_bytes >= pak.cap_bytes


def cap_fault(cap_bytes: int | None, kind: AccountKind) -> str | None:
    """What is wrong with a cap, or None."""
    if cap_bytes is None:
        return None if kind is AccountKind.PARTNER else "trafficCapGB: null is for partner accounts only"
    return None if 0 < cap_bytes <= CAP_MAX_BYTES else "trafficCapGB: must be more than 0 and at most 1000"


def cap_draw(pak: Pak, cap_bytes: int, used_bytes: int) -> int:
    """Bytes that another cap draws from a prepaid balance (positive) or gives back to it (negative).

    What was used is never given back, and no more than was drawn: a cap that was given on invoice is nobody's balance.
    """
    before = used_bytes if pak.cap_bytes is None else pak.cap_bytes
    moved = max(cap_bytes, used_bytes) - max(before, pak.drawn_bytes)
    return max(moved, 0) if cap_bytes > before else max(min(moved, 0), -pak.drawn_bytes)


DISCOUNTS: Final = (
    (250, 2_400_000),
    (100, 2_800_000),
    (50, 3_200_000),
    (10, 3_600_000),
    (0, 4_000_000),
)
"""(GB of one purchase from which on, micro-USDC per GB), the largest first; the setting `wholesale` overrides it."""
PURCHASE_MAX_BYTES: Final = 100_000 * BYTES_PER_GB


def wholesale_price(byte_count: int, setting: Mapping[str, Any]) -> tuple[MicroUsdc, MicroUsdc]:
    """(per GB, whole price rounded up) of one purchase. The whole purchase has the price of its size.

    Raises TypeError or ValueError for a setting that is no list of whole numbers.
    """
    steps: Sequence[Sequence[int]] = setting.get("steps") or DISCOUNTS
    ordered = sorted(((int(gb), int(micro)) for gb, micro in steps), reverse=True)
    per_gb = next((micro for gb, micro in ordered if byte_count >= gb * BYTES_PER_GB), ordered[-1][1])
    return MicroUsdc(per_gb), price(byte_count, MicroUsdc(per_gb))
