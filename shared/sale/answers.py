"""What a buyer reads: the price sheet, the 402 in every client family's form, and credentials. Pure.

Source: the v1 contract of `/v1/x402`, and x402 v2 for the `PAYMENT-REQUIRED` header (base64 JSON, under 2 KB).
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared.access.model import Pak
from shared.chain.eip3009 import DOMAIN_NAME, DOMAIN_VERSION
from shared.kernel.ids import Country
from shared.kernel.money import BYTES_PER_GB, MICRO_PER_USDC, MicroUsdc, format_usdc, gb_number
from shared.kernel.traffic import traffic_unit
from shared.sale.model import Bought, Claim, Held, Prices, Quote, Rail
from shared.sale.ports import DEVICE_WAIT_MS, REPLACEMENTS_MAX, PortLease
from shared.sale.rules import QUOTE_TTL_S

PAYMENT_HEADER_MAX_BYTES: Final = 2048
CAVEATS: Final = (
    "A GB is 1,000,000,000 bytes, both directions together.",
    "sticky pins the device, not its IP address: carriers change addresses on their own schedule.",
    "Stickiness needs a -sid- token; without one every connection is a fresh pick.",
    "The key suspends itself at its cap within seconds; unused traffic is not refunded.",
    "A bare transaction hash is honoured for whoever asked for the price before paying, from the same address: behind a "
    "shared address others may claim it too. Safer is the quote's tag in the transaction with its secret (X-Quote-Secret), "
    "and safest the paying wallet's signature (X-Payment-Proof).",
)
_PORT_CAVEATS: Final = (
    "A private port has its device alone. At most {share} % of a country's devices are held so at once (of two one may be, "
    "the last one never), so that pool access stays possible.",
    "The device is held when the payment is seen. When the last free one is taken between this answer and your payment, "
    "it is kept and served as soon as one is free within {wait_min} minutes, and is listed for a refund after that: "
    "repeat the request, do not pay again. A signed transfer (exact) is not sent while none is free, and its device "
    "is held before it is sent.",
)
EXACT_TTL_S: Final = 300
"""How long a signed transfer may wait for us; short, because it is money in a header."""
_DOMAIN: Final = {"name": DOMAIN_NAME, "version": DOMAIN_VERSION}
_POOL_ROUTES: Final = {
    name: f"pool/{name}" for name in ("credit", "usage", "topup", "regenerate", "connection")
}
_PORT_ROUTES: Final = {
    "session": "session",
    "topup": "session/topup",
    "calculate": "session/topup/calculate",
    "replace": "ports/replace",
    "usage": "pool/usage",
    "regenerate": "pool/regenerate",
    "connection": "pool/connection",
}
_IDENTIFIER_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "required": {"type": "boolean"},
        "id": {"type": "string", "minLength": 16, "maxLength": 128, "pattern": "^[a-zA-Z0-9_-]+$"},
    },
    "required": ["required"],
}
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


def port_caveats(share_percent: int) -> tuple[str, ...]:
    """What is true of all that is sold, and of dedicated ports: `share_percent` of a country may be held alone."""
    waits = DEVICE_WAIT_MS // 60_000
    return CAVEATS + tuple(text.format(share=share_percent, wait_min=waits) for text in _PORT_CAVEATS)


def tier_row(prices: Prices) -> dict[str, Any]:
    """One tier of a price sheet."""
    return {
        "tier": prices.tier,
        "pricePerGB": usdc(prices.price_micro_per_gb),
        "currency": "USDC",
        "minPurchaseGB": gb_number(prices.min_bytes),
        "maxPurchaseGB": gb_number(prices.max_bytes),
        "quality": prices.quality,
    }


def price_sheet(
    prices: Prices, rails: Sequence[Rail], place: Place, peers: Sequence[Prices] = ()
) -> dict[str, Any]:
    """`GET /v1/x402/pool/pricing`."""
    return {
        "product": "pool",
        "tiers": [
            *map(tier_row, (prices, *peers)),
        ],
        "defaultTier": prices.tier,
        "durationFree": True,
        "defaultDurationSeconds": prices.duration_default_s,
        "maxDurationSeconds": prices.duration_max_s,
        "bytesPerGB": BYTES_PER_GB,
        "trafficUnit": traffic_unit(),
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


@dataclass(frozen=True, slots=True)
class Asked:
    """One priced request: what for, how much, under which quote."""

    resource: str
    description: str
    due: int
    quote: Quote
    error: str | None = None
    caveats: Sequence[str] = CAVEATS


def payment_required(
    asked: Asked, rails: Sequence[Rail], exact: Rail | None, stock: Mapping[Country, int]
) -> dict[str, Any]:
    """The body of a 402. `accepts` on top is for v1 clients, which read nothing but `exact` there."""
    signed = [] if exact is None else [_accept_v1("exact", asked, exact)]
    accepts = [*(_accept_v1("txhash", asked, rail) for rail in rails), *signed]
    body = {
        "x402Version": 1,
        "error": asked.error or "payment required",
        "amountUSDC": format_usdc(MicroUsdc(asked.due)),
        "paymentRequirement": {
            "x402Version": 1,
            "accepts": accepts,
            "extra": _binding(asked.quote),
        },
        "countries": {country.upper(): count for country, count in sorted(stock.items())},
        "howToPay": [
            "transfer exactly maxAmountRequired micro-USDC of asset to payTo on one of the networks",
            "repeat this request with the header Payment-Signature: <transaction hash>",
            "if the answer says that the payment is not known yet, repeat it again; do not pay again",
            "safer: put quoteTag (never quoteSecret) into the transaction - on base the 32 bytes behind the calldata of "
            "transfer, on solana a memo, or the tag as a reference key - and send X-Quote-Secret: <quoteSecret> as well",
            "safest: sign textToSign, its first line to its last, with <network> (base or solana) and <transaction hash> "
            "filled in, by the paying wallet (EIP-191, EIP-712, ERC-1271, or signMessage on solana), and send the "
            "signature as X-Payment-Proof",
            *(["or let any x402 client sign a transfer (scheme exact): it needs no gas"] if signed else []),
        ],
        "trafficUnit": traffic_unit(),
        "caveats": list(asked.caveats),
    }
    return body | ({"accepts": signed} if signed else {})


def _binding(quote: Quote) -> dict[str, Any]:
    """How a payment is tied to whoever asked."""
    return {
        "quoteId": quote.quote_id,
        "quoteExpiresInSeconds": QUOTE_TTL_S,
        "quoteSecret": quote.secret,
        "quoteTag": quote.tag,
        "textToSign": quote.text,
    }


def _accept_v1(scheme: str, asked: Asked, rail: Rail) -> dict[str, Any]:
    entry = {
        "scheme": scheme,
        "network": rail.network,
        "chainId": rail.chain_id,
        "maxAmountRequired": str(asked.due),
        "resource": asked.resource,
        "description": asked.description,
        "mimeType": "application/json",
        "payTo": rail.recipient,
        "maxTimeoutSeconds": EXACT_TTL_S if scheme == "exact" else QUOTE_TTL_S,
        "asset": rail.asset,
    }
    return entry | ({"extra": _DOMAIN} if scheme == "exact" else {})


def payment_required_header(asked: Asked, rails: Sequence[Rail], exact: Rail | None) -> str:
    """The x402 v2 header of the same answer."""
    signed = [] if exact is None else [_accept_v2("exact", asked, exact) | {"extra": _DOMAIN}]
    value = {
        "x402Version": 2,
        "error": "payment required",
        "resource": {
            "url": asked.resource,
            "description": asked.description,
            "mimeType": "application/json",
        },
        "extensions": {
            "payment-identifier": {"info": {"required": False}, "schema": _IDENTIFIER_SCHEMA},
            "psx-quote": {"info": {"secret": asked.quote.secret, "tag": asked.quote.tag}},
        },
        "accepts": [*signed, *(_accept_v2("txhash", asked, rail) for rail in rails)],
    }
    encoded = _base64_json(value)
    if len(encoded) >= PAYMENT_HEADER_MAX_BYTES:
        raise ValueError("PAYMENT-REQUIRED would be too long")
    return encoded


def _accept_v2(scheme: str, asked: Asked, rail: Rail) -> dict[str, Any]:
    return {
        "scheme": scheme,
        "network": rail.caip2,
        "amount": str(asked.due),
        "asset": rail.asset,
        "payTo": rail.recipient,
        "maxTimeoutSeconds": EXACT_TTL_S if scheme == "exact" else QUOTE_TTL_S,
    }


def payment_response_headers(claim: Claim, caip2: str) -> dict[str, str]:
    """What was settled, for v2 clients and under the older name for v1 clients."""
    told = {
        "success": True,
        "transaction": claim.tx_hash,
        "payer": claim.payer,
        "amount": str(claim.amount_micro),
    }
    return {
        "PAYMENT-RESPONSE": _base64_json({**told, "network": caip2}),
        "X-PAYMENT-RESPONSE": _base64_json({**told, "network": claim.network}),
    }


def _base64_json(value: Mapping[str, Any]) -> str:
    return base64.b64encode(json.dumps(value, separators=(",", ":")).encode()).decode()


def credentials(
    bought: Bought,
    prices: Prices | Held,
    place: Place,
    used_bytes: int,
    countries: Sequence[str],
    port: PortLease | None = None,
) -> dict[str, Any]:
    """Bought, topped up, regenerated or recovered: always the same shape; a dedicated port says more about itself."""
    pak, username, secret, claim = bought.pak, bought.username, bought.secret, bought.claim
    at = f"{username}:{secret}@{place.gateway_host}"
    socks = f"socks5://{at}:{place.socks_port}" if pak.socks_allowed else None
    manage = f"{place.api_base_url}/v1/x402/manage"
    routes = _POOL_ROUTES if port is None else _PORT_ROUTES
    pool = f"peer-{{country}}-iptype-{prices.ip_type}" if prices.ip_type else f"{prices.tier}-{{country}}"
    template = f"{pak.account_id}-{pool}-sid-{{session}}-rot-{{rotation}}"
    dedicated = {} if port is None else {"port": port_facts(port)}
    return {
        "product": "pool" if port is None else "proxy",
        "proxy": {
            "host": place.gateway_host,
            "httpPort": place.http_port,
            "username": username,
            "password": secret,
            "http": f"http://{at}:{place.http_port}",
            "socks5": socks,
            "usernameTemplate": template if port is None else username,
            "allowed": {
                "tier": prices.tier,
                "ipTypes": [prices.ip_type or "mobile"],
                "countries": list(countries),
            },
        },
        "credit": credit(pak, prices, used_bytes),
        "sessionToken": bought.session_token,
        "manage": {name: f"{manage}/{path}" for name, path in routes.items()},
        **dedicated,
        "stockUrl": place.stock_url,
        "quality": prices.quality,
        "caveats": list(CAVEATS),
        "payment": payment_facts(claim),
    }


def payment_facts(claim: Claim) -> dict[str, Any]:
    """What was paid."""
    return {"network": claim.network, "txHash": claim.tx_hash, "amountUSDC": usdc(claim.amount_micro)}


def port_facts(port: PortLease) -> dict[str, Any]:
    """A dedicated port, without anything that works as a credential."""
    return {
        "tier": port.tier,
        "country": (port.country or "any").upper(),
        "replacementsLeft": max(REPLACEMENTS_MAX - port.replaced, 0),
    }


def credit(pak: Pak, prices: Prices | Held, used_bytes: int) -> dict[str, Any]:
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
        "bytesPerGB": BYTES_PER_GB,
    }


def usdc(micro: int) -> float | int:
    """Micro-USDC as the JSON number that outside clients read; never computed with."""
    return micro // MICRO_PER_USDC if micro % MICRO_PER_USDC == 0 else micro / MICRO_PER_USDC
