"""Pure rules of the sale: reading terms and payments, what is due, who may claim a payment, what a username looks like."""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from shared.chain.eip3009 import read_authorization
from shared.chain.model import SHALLOW, Depth
from shared.guard.settings import PROMISE_S
from shared.kernel.codes import Pool
from shared.kernel.countries import COUNTRIES
from shared.kernel.ids import AccountId, Country
from shared.kernel.money import BYTES_PER_GB, MicroUsdc, NotADecimal, format_gb, parse_gb, price
from shared.pool.model import Rotation
from shared.sale.model import (
    Echo,
    FieldFault,
    Offer,
    Order,
    Payment,
    Prices,
    Problem,
    Product,
    Statement,
    Terms,
)

QUOTE_TTL_S: Final = PROMISE_S
BLOCK_TIME_ERROR_MS: Final = {"base": 0, "solana": 2_000}
"""How much earlier than it happened a block's time may say it was. A watcher needs less time than an honest clock error of
seconds, so this is as small as the chain allows: Base's blocks carry the time at which they are complete.
"""
REEMIT_WINDOW_MS: Final = 600_000
HEADER_MAX_CHARS: Final = 8192
MAX_BRACKETS: Final = 64
_BASIS_POINTS: Final = 10_000
_EVM_HASH: Final = re.compile(r"(?:0[xX])?([0-9a-fA-F]{64})")
_SOLANA_SIGNATURE: Final = re.compile(r"[1-9A-HJ-NP-Za-km-z]{86,88}")
_SECRET: Final = re.compile(r"[0-9a-f]{64}")
_SECRET_NONCE_BYTES: Final = 16
_SECRET_DUE_BYTES: Final = 6
_SEAL_CHARS: Final = 16
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{8,128}")
_SLUG: Final = re.compile(r"[a-z0-9_]{1,64}")
_SID: Final = re.compile(r"[a-z0-9_]{1,64}")
_PIN: Final = ("pin", "lease")
_LEASE_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
_LEASE_CHARS: Final = 12
_BASE_NAMES: Final = frozenset({"base", "eip155:8453"})
_ROUTES: Final = {
    Product.POOL: "/v1/x402/pool",
    Product.PORT: "/v1/x402/proxy",
    Product.TOP_UP: "/v1/x402/manage/pool/topup",
    Product.BALANCE: "/v1/x402/balance",
}
_TIME_KNOWN_FROM_S: Final = 1_500_000_000


def read_prices(setting: Mapping[str, Any], tier: str = "") -> Prices | None:
    """The catalogue of a tier (of the pool, its default one, or a kind of port); None while nobody has set prices."""
    try:
        tier = tier or setting["default_tier"]
        row = {**setting["tiers"], **setting.get("ports", {})}[tier]
        return Prices(
            tier=tier,
            price_micro_per_gb=row["price_micro_per_gb"],
            min_bytes=row["min_bytes"],
            max_bytes=row["max_bytes"],
            duration_default_s=setting["duration_default_s"],
            duration_max_s=setting["duration_max_s"],
            tolerance_bp=setting["tolerance_bp"],
            socks=bool(setting.get("socks", False)),
            quality=row["quality"],
            ip_type=row.get("ip_type", ""),
        )
    except KeyError:
        return None


def types_on_sale(flag: Mapping[str, Any]) -> frozenset[str]:
    """IP types that may be sold: modems ("") always, and of peers what the flag is on for, and was tested."""
    return frozenset({"", *(flag.get("tested", ()) if flag.get("on") is True else ())})


def peer_tiers(setting: Mapping[str, Any], types: Collection[str]) -> dict[str, str]:
    """Tiers of peers of these IP types, and which one each is of."""
    tiers = setting.get("tiers", {})
    return {
        name: row["ip_type"] for name, row in tiers.items() if row.get("ip_type") and row["ip_type"] in types
    }


def told_tier(versions: Sequence[Mapping[str, Any]], ip_type: str) -> str:
    """What peers of this type are sold as, or were told to be; "" when they are not."""
    named = (name for setting in versions for name in peer_tiers(setting, {ip_type}))
    return next(named, "")


def read_terms(query: Mapping[str, str], prices: Prices) -> Terms | FieldFault:
    """Terms from query parameters, or the first one that cannot be used."""
    tier = query.get("tier", prices.tier)
    if tier != prices.tier:
        return FieldFault("tier", prices.tier)
    country = query.get("country", "any").lower()
    if country != "any" and country not in COUNTRIES:
        return FieldFault("country", "an ISO 3166-1 alpha-2 code, or any")
    traffic = read_traffic(query.get("traffic"), prices)
    if isinstance(traffic, FieldFault):
        return traffic
    duration = read_duration(query.get("duration"), prices)
    if isinstance(duration, FieldFault):
        return duration
    sid = query.get("sid")
    if sid is not None and not _SID.fullmatch(sid):
        return FieldFault("sid", "1 to 64 of a-z, 0-9 and _")
    rotation = query.get("rot", Rotation.AUTO10.value)
    if rotation not in {*Rotation, "hard"}:
        return FieldFault("rot", ", ".join(Rotation))
    where = None if country == "any" else Country(country)
    return Terms(tier, where, traffic, duration, sid, rotation, ip_type=prices.ip_type)


def read_port_terms(query: Mapping[str, str], prices: Prices) -> Terms | FieldFault:
    """Terms of a dedicated port; its tier was read with its prices."""
    for name in ("carrier", "city"):
        if name in query and not _SLUG.fullmatch(query[name]):
            return FieldFault(name, "1 to 64 of a-z, 0-9 and _")
    kept = {k: v for k, v in query.items() if k not in {"sid", "rot"}}
    terms = read_terms(kept, prices)
    if isinstance(terms, FieldFault):
        return terms
    return replace(
        terms,
        rotation=Rotation.STICKY.value,
        carrier=query.get("carrier", ""),
        city=query.get("city", ""),
    )


def read_traffic(text: str | None, prices: Prices) -> int | FieldFault:
    """GB text as bytes within the catalogue's bounds; the minimum when nothing is said."""
    allowed = f"{format_gb(prices.min_bytes)} to {format_gb(prices.max_bytes)} GB"
    if text is None:
        return prices.min_bytes
    try:
        traffic = parse_gb(text)
    except NotADecimal:
        return FieldFault("traffic", allowed)
    return traffic if prices.min_bytes <= traffic <= prices.max_bytes else FieldFault("traffic", allowed)


def read_duration(text: str | None, prices: Prices) -> int | FieldFault:
    """Seconds, at most what the catalogue allows."""
    if text is None:
        return prices.duration_default_s
    good = text.isascii() and text.isdecimal() and len(text) <= 9 and 0 < int(text) <= prices.duration_max_s
    return int(text) if good else FieldFault("duration", f"1 to {prices.duration_max_s} seconds")


def due_micro(traffic_bytes: int, prices: Prices) -> MicroUsdc:
    """What traffic costs."""
    return price(traffic_bytes, MicroUsdc(prices.price_micro_per_gb))


def is_enough(paid_micro: int, due: int, tolerance_bp: int) -> bool:
    """Whether a payment covers what is due, less the tolerance. Integers only."""
    return paid_micro * _BASIS_POINTS >= due * (_BASIS_POINTS - tolerance_bp)


def is_as_quoted(paid_micro: int, due: int, tolerance_bp: int) -> bool:
    """Whether a payment is for no more than a quote was, give or take the tolerance: the smallest quote claims no large
    payment that nobody proved.
    """
    return paid_micro * _BASIS_POINTS <= due * (_BASIS_POINTS + tolerance_bp)


def granted_bytes(paid_micro: int, order: Order) -> int:
    """What a sufficient payment buys: what was asked for, and the excess as traffic at the price of its quote."""
    return max(order.traffic_bytes, paid_micro * BYTES_PER_GB // order.price_micro_per_gb)


def meant(offers: Sequence[Offer], paid_micro: int) -> Offer:
    """Which of the terms that were told a payment is for: the dearest that it covers, or else the cheapest."""
    covered = [o for o in offers if is_enough(paid_micro, o.order.due_micro, o.prices.tolerance_bp)]
    if covered:
        return max(covered, key=lambda offer: offer.order.due_micro)
    return min(offers, key=lambda offer: offer.order.due_micro)


def quote_id(secret: bytes, requester: str, order: Order) -> str:
    """The stateless name of a quote: the same requester and terms give the same quote."""
    text = "\n".join((requester, order.subject, str(order.due_micro), str(order.tolerance_bp)))
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()[:32]


def hide_requester(secret: bytes, address: str) -> str:
    """A requester as it is stored: not an address."""
    return hmac.new(secret, b"requester\n" + address.encode(), hashlib.sha256).hexdigest()[:32]


def read_depths(setting: Mapping[str, Any], network: str) -> tuple[Depth, ...]:
    """How sure we want to be, by amount, from the setting `confirmations`; without one, one confirmation by one node."""
    rows = setting.get(network) or []
    return (
        tuple(
            Depth(
                row.get("up_to_micro"),
                row.get("confirmations", 1),
                row.get("commitment", "confirmed"),
                row.get("quorum", 1),
            )
            for row in rows
        )
        or SHALLOW
    )


def claim_fault(*, quoted_at_ms: int | None, paid_at_s: int, now_ms: int, slack_ms: int) -> Problem | None:
    """Why a valid payment may not be claimed by whoever shows its bare hash.

    It may when this requester had asked for these terms before it was paid: who only watches the chain asks later. A
    payment that is older than the quote's life is refused.
    """
    known = paid_at_s >= _TIME_KNOWN_FROM_S
    if quoted_at_ms is None:
        return Problem.NOT_YOURS
    if known and paid_at_s * 1000 + slack_ms < quoted_at_ms:
        return Problem.NOT_YOURS
    if known and now_ms // 1000 - paid_at_s > QUOTE_TTL_S:
        return Problem.PAYMENT_TOO_OLD
    return None


def proof_text(statement: Statement) -> str:
    """What a payer signs to prove that a payment is theirs, and what it is for."""
    s = statement
    lines = (f"network: {s.network}", f"transaction: {s.tx_hash}", f"quote: {s.quote}", f"url: {s.url}")
    return "\n".join(("psx: this payment is mine", *lines))


def proof_typed_data(statement: Statement, chain_id: int) -> dict[str, Any]:
    """The same as EIP-712 typed data."""
    fields = ("network", "transaction", "quote", "url")
    return {
        "types": {
            "EIP712Domain": [{"name": "name", "type": "string"}, {"name": "chainId", "type": "uint256"}],
            "PaymentProof": [{"name": name, "type": "string"} for name in fields],
        },
        "primaryType": "PaymentProof",
        "domain": {"name": "psx", "chainId": chain_id},
        "message": {
            "network": statement.network,
            "transaction": statement.tx_hash,
            "quote": statement.quote,
            "url": statement.url,
        },
    }


def statement_of(key: bytes, order: Order, network: str, tx_hash: str, api_base_url: str) -> Statement:
    """What the payer of an order signs. It names no requester, so that it holds wherever the payer is.

    The seal shows that we told these terms to somebody, so that nobody signs terms of their own making.
    """
    terms = f"{order.subject} for {order.due_micro} micro-USDC"
    seal = hmac.new(key, b"told\n" + terms.encode(), hashlib.sha256).hexdigest()[:_SEAL_CHARS]
    return Statement(network, tx_hash, f"{terms}, {seal}", api_base_url + _ROUTES[order.product])


def secret_nonce(due: int, random: bytes) -> bytes:
    """The first half of a quote's secret: what is due, so that the secret names its terms, and randomness."""
    named = min(due, (1 << 8 * _SECRET_DUE_BYTES) - 1)
    return named.to_bytes(_SECRET_DUE_BYTES, "big") + random[: _SECRET_NONCE_BYTES - _SECRET_DUE_BYTES]


def due_of_secret(secret: str) -> int:
    """What was due by the quote of a secret that `tag_for` accepted."""
    return int.from_bytes(bytes.fromhex(secret)[:_SECRET_DUE_BYTES], "big")


def quote_secret(key: bytes, nonce: bytes, subject: str) -> str:
    """A secret that buys this subject: a nonce and its seal. Nothing is stored, and every asking gets one of its own."""
    seal = hmac.new(key, b"secret\n" + nonce + subject.encode(), hashlib.sha256).digest()
    return (nonce + seal[:_SECRET_NONCE_BYTES]).hex()


def quote_tag(secret: str) -> str:
    """What is put on the chain: SHA-256 of the secret's bytes, in hex."""
    return hashlib.sha256(bytes.fromhex(secret)).hexdigest()


def tag_for(key: bytes, secret: str, subject: str) -> str:
    """The tag to look for when a secret is shown; empty when it is none of ours for this subject."""
    if not _SECRET.fullmatch(secret):
        return ""
    nonce = bytes.fromhex(secret)[:_SECRET_NONCE_BYTES]
    return quote_tag(secret) if hmac.compare_digest(secret, quote_secret(key, nonce, subject)) else ""


def read_payment(headers: Mapping[str, str]) -> Payment | Problem | None:
    """The payment that a request shows: `Payment-Signature` (raw hash or base64 JSON), or `X-Payment` JSON.

    Its name is the `Idempotency-Key`, or else what an x402 v2 client put into the extension `payment-identifier`.
    """
    raw, old = headers.get("payment-signature", "").strip(), headers.get("x-payment", "").strip()
    proof, name = headers.get("x-payment-proof", "").strip(), headers.get("idempotency-key", "").strip()
    named = "idempotency-key" in headers
    if not raw and not old:
        return None
    if max(len(raw), len(old), len(proof)) > HEADER_MAX_CHARS:
        return Problem.BAD_PAYMENT
    found = _payment(raw, "", proof) if raw else _payment_json(old, proof)
    found = found or _payment_json(_decoded(raw or old), proof)
    secret = headers.get("x-quote-secret", "").strip().lower()
    if found is None or (named and not _NAME.fullmatch(name)) or (secret and not _SECRET.fullmatch(secret)):
        return Problem.BAD_PAYMENT
    return replace(found, name=name or found.name, secret=secret)


def payment_fingerprint(payment: Payment, order: Order) -> str:
    """What a payment's name is bound to: the payment and everything it buys, at whatever price."""
    text = repr(
        (payment.network, payment.key, replace(order, due_micro=0, price_micro_per_gb=0, tolerance_bp=0))
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _payment(text: str, network: str, proof: str) -> Payment | None:
    evm = _EVM_HASH.fullmatch(text)
    if evm and network in {"", "base"}:
        return Payment("base", "0x" + evm.group(1).lower(), proof)
    if _SOLANA_SIGNATURE.fullmatch(text) and network in {"", "solana"}:
        return Payment("solana", text, proof)
    return None


def _payment_json(text: str, proof: str) -> Payment | None:
    if text.count("[") + text.count("{") > MAX_BRACKETS:  # before parsing: nesting costs stack
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    inner = value.get("payload", value)
    if isinstance(inner, dict) and "authorization" in inner:
        return _exact(value, inner, proof)
    found = inner.get("transactionHash", inner.get("txHash")) if isinstance(inner, dict) else None
    network = value.get("network", "")
    if not isinstance(found, str) or not isinstance(network, str):
        return None
    return _payment(found, network, proof)


def _exact(value: Mapping[str, Any], payload: dict[str, Any], proof: str) -> Payment | None:
    """A signed transfer: x402 v2 says what it accepted, v1 names scheme and network beside the payload."""
    accepted = value.get("accepted", value)
    if not isinstance(accepted, dict) or accepted.get("scheme") != "exact":
        return None
    if str(accepted.get("network")) not in _BASE_NAMES:
        return None
    authorization = read_authorization(payload)
    if authorization is None:
        return None
    echo = None
    if "accepted" in value:
        echo = Echo(*(str(accepted.get(name, "")).lower() for name in ("asset", "payTo", "amount")))
    return Payment("base", "", proof, authorization, echo, _identifier(value))


def _identifier(value: Mapping[str, Any]) -> str:
    """The id of the extension `payment-identifier`; empty when there is none that can be used."""
    found: Any = value
    for part in ("extensions", "payment-identifier", "info", "id"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) and _NAME.fullmatch(found) else ""


def echo_fault(echo: Echo | None, asset: str, recipients: Sequence[str], due: int) -> bool:
    """Whether a client accepted other terms than ours; any of our addresses may have been the one that it was told."""
    ours = {Echo(asset.lower(), recipient.lower(), str(due)) for recipient in recipients}
    return echo is not None and echo not in ours


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except ValueError:
        return ""


def username_of(account_id: AccountId, terms: Terms) -> str:
    """The username that a purchase is used with first; its tokens may be edited freely, but a port's pin is what it is."""
    if terms.lease_id:
        parts = [account_id, Pool.MBL.value, terms.country or "any", "rot", "sticky", "failover", "strict"]
        return "-".join([*parts, *_PIN, terms.lease_id])
    pool = Pool.PEER.value if terms.ip_type else terms.tier
    parts = [account_id, pool, terms.country or "any"]
    if terms.ip_type:
        parts += ["iptype", terms.ip_type]
    if terms.session_id is not None:
        parts += ["sid", terms.session_id]
    return "-".join([*parts, "rot", terms.rotation])


def lease_of(username: str) -> str:
    """The lease that a port's username pins; empty for pool access."""
    parts = username.split("-")
    return parts[-1] if tuple(parts[-3:-1]) == _PIN else ""


def lease_id_of(secret: bytes, payment_key: str) -> str:
    """The lease of a payment: the same payment names the same lease, and nobody else can guess it."""
    digest = hmac.new(secret, b"lease\n" + payment_key.encode(), hashlib.sha256).digest()
    number = int.from_bytes(digest, "big")
    letters = []
    for _ in range(_LEASE_CHARS):
        number, index = divmod(number, len(_LEASE_ALPHABET))
        letters.append(_LEASE_ALPHABET[index])
    return "l" + "".join(letters)


def key_id_of(lease_id: str) -> str:
    """The id of a port's key; it does not tell the lease."""
    return hashlib.sha256(b"key\n" + lease_id.encode()).hexdigest()[:24]
