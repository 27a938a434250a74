"""What a buyer reads: the price sheet, the 402 in every client family's form, and credentials. Pure.

Source: the v1 contract of `/v1/x402`, and x402 v2 for the `PAYMENT-REQUIRED` header (base64 JSON, under 2 KB).
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared.access.model import Pak
from shared.kernel.ids import Country
from shared.kernel.money import MICRO_PER_USDC, MicroUsdc, format_usdc, gb_number
from shared.sale.model import Claim, Prices, Rail
from shared.sale.rules import QUOTE_TTL_S

PAYMENT_HEADER_MAX_BYTES: Final = 2048
CAVEATS: Final = (
    "A GB is 1,000,000,000 bytes, both directions together.",
    "sticky pins the device, not its IP address: carriers change addresses on their own schedule.",
    "Stickiness needs a -sid- token; without one every connection is a fresh pick.",
    "The key suspends itself at its cap within seconds; unused traffic is not refunded.",
    "A payment is honoured for whoever asked for the price before paying, from the same address; "
    "or for whoever signs it with the paying wallet (X-Payment-Proof), which is safer behind a shared address.",
)
_USERNAME_DSL: Final = (
    "psx_<account>-<pool>-<country>[-sid-<1-64 a-z0-9_>][-rot-<mode>][-carrier-..][-city-..]"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Public addresses that answers name."""

    api_base_url: str
    gateway_host: str
    http_port: int
    socks_port: int

    @property
    def stock_url(self) -> str:
        """Live stock, counts only."""
        return f"{self.api_base_url}/v1/gateway/pool/stock"


def price_sheet(prices: Prices, rails: Sequence[Rail], place: Place) -> dict[str, Any]:
    """`GET /v1/x402/pool/pricing`."""
    return {
        "product": "pool",
        "tiers": [
            {
                "tier": prices.tier,
                "pricePerGB": _usdc(prices.price_micro_per_gb),
                "currency": "USDC",
                "minPurchaseGB": gb_number(prices.min_bytes),
                "maxPurchaseGB": gb_number(prices.max_bytes),
                "quality": prices.quality,
            }
        ],
        "defaultTier": prices.tier,
        "durationFree": True,
        "defaultDurationSeconds": prices.duration_default_s,
        "maxDurationSeconds": prices.duration_max_s,
        "bytesPerGB": 1_000_000_000,
        "stockUrl": place.stock_url,
        "usernameDsl": _USERNAME_DSL,
        "networks": [
            {
                "network": rail.network,
                "chainId": rail.chain_id,
                "asset": rail.asset,
                "recipientAddress": rail.recipient,
                "decimals": 6,
            }
            for rail in rails
        ],
        "caveats": list(CAVEATS),
    }


def payment_required(
    resource: str,
    description: str,
    due: int,
    quote: str,
    rails: Sequence[Rail],
    stock: Mapping[Country, int],
    error: str | None,
) -> dict[str, Any]:
    """The body of a 402."""
    accepts = [
        {
            "scheme": "txhash",
            "network": rail.network,
            "chainId": rail.chain_id,
            "maxAmountRequired": str(due),
            "resource": resource,
            "description": description,
            "mimeType": "application/json",
            "payTo": rail.recipient,
            "maxTimeoutSeconds": QUOTE_TTL_S,
            "asset": rail.asset,
        }
        for rail in rails
    ]
    return {
        "x402Version": 1,
        "error": error or "payment required",
        "amountUSDC": format_usdc(MicroUsdc(due)),
        "paymentRequirement": {
            "x402Version": 1,
            "accepts": accepts,
            "extra": {"quoteId": quote, "quoteExpiresInSeconds": QUOTE_TTL_S},
        },
        "countries": {country.upper(): count for country, count in sorted(stock.items())},
        "howToPay": [
            "transfer exactly maxAmountRequired micro-USDC of asset to payTo on one of the networks",
            "repeat this request with the header Payment-Signature: <transaction hash>",
            "if the answer says that the payment is not known yet, repeat it again; do not pay again",
        ],
        "caveats": list(CAVEATS),
    }


def payment_required_header(resource: str, description: str, due: int, rails: Sequence[Rail]) -> str:
    """The x402 v2 header of the same answer."""
    value = {
        "x402Version": 2,
        "error": "payment required",
        "resource": {"url": resource, "description": description, "mimeType": "application/json"},
        "accepts": [
            {
                "scheme": "txhash",
                "network": rail.caip2,
                "amount": str(due),
                "asset": rail.asset,
                "payTo": rail.recipient,
                "maxTimeoutSeconds": QUOTE_TTL_S,
            }
            for rail in rails
        ],
    }
    encoded = base64.b64encode(json.dumps(value, separators=(",", ":")).encode()).decode()
    if len(encoded) >= PAYMENT_HEADER_MAX_BYTES:
        raise ValueError("PAYMENT-REQUIRED would be too long")
    return encoded


def credentials(
    pak: Pak,
    username: str,
    secret: str,
    token: str,
    claim: Claim,
    prices: Prices,
    place: Place,
    used_bytes: int,
    countries: Sequence[str],
) -> dict[str, Any]:
    """Bought, topped up, regenerated or recovered: always the same shape."""
    at = f"{username}:{secret}@{place.gateway_host}"
    socks = f"socks5://{at}:{place.socks_port}" if pak.socks_allowed else None
    manage = f"{place.api_base_url}/v1/x402/manage/pool"
    return {
        "product": "pool",
        "proxy": {
            "host": place.gateway_host,
            "httpPort": place.http_port,
            "username": username,
            "password": secret,
            "http": f"http://{at}:{place.http_port}",
            "socks5": socks,
            "usernameTemplate": f"{pak.account_id}-{prices.tier}-{{country}}-sid-{{session}}-rot-{{rotation}}",
            "allowed": {"tier": prices.tier, "ipTypes": ["mobile"], "countries": list(countries)},
        },
        "credit": credit(pak, prices, used_bytes),
        "sessionToken": token,
        "manage": {
            name: f"{manage}/{name}" for name in ("credit", "usage", "topup", "regenerate", "connection")
        },
        "stockUrl": place.stock_url,
        "quality": prices.quality,
        "caveats": list(CAVEATS),
        "payment": {
            "network": claim.network,
            "txHash": claim.tx_hash,
            "amountUSDC": _usdc(claim.amount_micro),
        },
    }


def credit(pak: Pak, prices: Prices, used_bytes: int) -> dict[str, Any]:
    """What a key has left."""
    cap = pak.cap_bytes or 0
    return {
        "tier": prices.tier,
        "allocatedGB": gb_number(cap),
        "usedGB": gb_number(used_bytes),
        "remainingGB": gb_number(max(cap - used_bytes, 0)),
        "allocatedBytes": cap,
        "usedBytes": used_bytes,
        "enabled": pak.enabled,
        "disabledReason": pak.disabled_reason.value if pak.disabled_reason else None,
        "expiresAt": pak.expires_at_ms,
    }


def _usdc(micro: int) -> float | int:
    """Micro-USDC as the JSON number that outside clients read; never computed with."""
    return micro // MICRO_PER_USDC if micro % MICRO_PER_USDC == 0 else micro / MICRO_PER_USDC
