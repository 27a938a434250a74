"""What a key is locked to, whatever its username says; what a customer is told when there is no exit for it."""

from dataclasses import replace
from typing import Any, cast

import pytest

from gateway_node.attempts import Attempts
from gateway_node.buyer import lock_quality
from shared.access.model import Pak, Quality
from shared.kernel.codes import IpType, Pool, Refusal
from shared.kernel.ids import AccountId, PakId
from shared.pool.live import SESSIONS_MAX
from shared.pool.model import NoStockReason
from shared.pool.username import parse_username

PAK = Pak(PakId("k"), AccountId("a"), "", "h", "", None, 0, True, None, None, Quality.STANDARD, True, 0, 0)
USERNAMES = [
    f"psx_a-{pool}-us{tail}"
    for pool in ("mbl", "peer", "any", "best", "residential", "nonsense")
    for tail in ("", "-iptype-residential", "-pin-device-d1", "-failover-any", "-rot-sticky-sid-s")
]


@pytest.mark.parametrize("username", USERNAMES)
def test_a_safe_key_leaves_modems_for_no_username(username: str) -> None:
    route = parse_username(username)
    locked = lock_quality(route, replace(PAK, quality=Quality.SAFE))
    assert locked == replace(route, pools=(Pool.MBL,))
    assert lock_quality(route, PAK) == route


@pytest.mark.parametrize("username", USERNAMES)
def test_a_key_of_a_peer_tier_leaves_its_class_for_no_username(username: str) -> None:
    locked = lock_quality(parse_username(username), replace(PAK, ip_type=IpType.MOBILE.value))
    assert (locked.pools, locked.ip_type) == ((Pool.PEER,), IpType.MOBILE)


@pytest.mark.parametrize(
    ("reason", "code", "says"),
    [
        (NoStockReason.SESSIONS, Refusal.SESSION_LIMIT, f"more than {SESSIONS_MAX} sessions"),
        (NoStockReason.LEASE, Refusal.NO_STOCK, "lease"),
        (NoStockReason.UNUSABLE, Refusal.NO_STOCK, "unusable value for asn"),
    ],
)
async def test_a_customer_is_told_why_it_gets_no_exit(
    reason: NoStockReason, code: Refusal, says: str
) -> None:
    nothing = cast(Any, None)
    attempts = Attempts(nothing, nothing, nothing, nothing, nothing, lambda: 0)
    refused = await attempts.no_stock(parse_username("psx_a-peer-us-asn-none"), reason)
    assert refused.code is code
    assert says in refused.message
