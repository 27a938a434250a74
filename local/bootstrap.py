"""What a new network needs in its tables: the house account, an admin, a reseller, a supplier, prices and rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from shared.access import table as access
from shared.access.model import Account, AccountKind, ApiKey, Scope
from shared.access.secrets import new_api_key, token_hash
from shared.guard.table import write_setting
from shared.kernel.ids import AccountId
from shared.runtime.dynamo import RunsDynamo

HOUSE: Final = AccountId("psx_x402pool")
ADMIN: Final = AccountId("psx_admin")
RESELLER: Final = AccountId("psx_reseller1")
SUPPLIER: Final = AccountId("psx_supplier1")
PRICES: Final[dict[str, Any]] = {
    "default_tier": "mbl",
    "tiers": {
        "mbl": {
            "price_micro_per_gb": 4_000_000,
            "min_bytes": 100_000_000,
            "max_bytes": 1_000_000_000_000,
            "quality": "production modems of mobile carriers",
        }
    },
    "ports": {
        tier: {
            "price_micro_per_gb": price,
            "min_bytes": 100_000_000,
            "max_bytes": 1_000_000_000_000,
            "quality": quality,
        }
        for tier, price, quality in (
            ("shared", 4_000_000, "one production modem, shared with few others"),
            ("private", 8_000_000, "one production modem, yours alone"),
        )
    },
    "duration_default_s": 30 * 86_400,
    "duration_max_s": 90 * 86_400,
    "tolerance_bp": 200,
    "socks": False,
}
RATES: Final[dict[str, Any]] = {
    "mobile": 1_200_000,
    "residential": 500_000,
    "datacenter": 100_000,
    "unknown": 100_000,
    "overrides": {},
}
CONFIRMATIONS: Final[dict[str, Any]] = {
    "base": [
        {"up_to_micro": 20_000_000, "confirmations": 1},
        {"up_to_micro": 1_000_000_000, "confirmations": 5},
        {"confirmations": 30},
    ],
    "solana": [{"up_to_micro": 100_000_000, "commitment": "confirmed"}, {"commitment": "finalized"}],
}


PURCHASES: Final = {"each_micro": 1_000_000, "day_micro": 5_000_000, "every_s": 300}


@dataclass(frozen=True, slots=True)
class Keys:
    """API keys of the first accounts, shown once."""

    admin: str
    reseller: str
    supplier: str


def bootstrap(dynamo: RunsDynamo, prefix: str, now_ms: int) -> Keys:
    """Create what is missing, with fresh keys."""
    for account_id, kind in (
        (HOUSE, AccountKind.HOUSE),
        (ADMIN, AccountKind.ADMIN),
        (RESELLER, AccountKind.RESELLER),
        (SUPPLIER, AccountKind.SUPPLIER),
    ):
        dynamo.run(access.put_account(f"{prefix}access", Account(account_id, kind, now_ms)))
    dynamo.run(write_setting(f"{prefix}guard", "prices", PRICES, now_ms))
    dynamo.run(write_setting(f"{prefix}guard", "rates", RATES, now_ms))
    dynamo.run(write_setting(f"{prefix}guard", "confirmations", CONFIRMATIONS, now_ms))
    dynamo.run(write_setting(f"{prefix}guard", "purchases", PURCHASES, now_ms))
    keys = []
    for account_id, scope in ((ADMIN, Scope.ADMIN), (RESELLER, Scope.RESELL), (SUPPLIER, Scope.SUPPLY)):
        text = new_api_key()
        key = ApiKey(token_hash(text), account_id, frozenset({scope}), now_ms)
        dynamo.run(access.put_api_key(f"{prefix}access", key))
        keys.append(text)
    return Keys(*keys)
