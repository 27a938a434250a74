"""Terms of a purchase, the payment that claims it, and what a claim minted."""

from dataclasses import dataclass
from enum import StrEnum

from shared.kernel.ids import Country, PakId

Network = str
"""`base` or `solana`, as outside clients write it."""


class Product(StrEnum):
    """What a payment may be for."""

    POOL = "pool"
    TOP_UP = "topup"


@dataclass(frozen=True, slots=True)
class Prices:
    """The catalogue of one tier, read live from settings."""

    tier: str
    price_micro_per_gb: int
    min_bytes: int
    max_bytes: int
    duration_default_s: int
    duration_max_s: int
    tolerance_bp: int
    socks: bool
    quality: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What a buyer asks for."""

    tier: str
    country: Country | None
    traffic_bytes: int
    duration_s: int
    session_id: str | None
    rotation: str


@dataclass(frozen=True, slots=True)
class FieldFault:
    """A query or body field that cannot be used, and what is allowed instead."""

    field: str
    allowed: str


@dataclass(frozen=True, slots=True)
class Payment:
    """What a buyer shows as paid: a hash on a network, and perhaps the payer's signature over it."""

    network: Network
    tx_hash: str
    proof: str = ""


@dataclass(frozen=True, slots=True)
class Rail:
    """One way to pay: where, in what, to whom."""

    network: Network
    chain_id: int | None
    caip2: str
    asset: str
    recipient: str


@dataclass(frozen=True, slots=True)
class Claim:
    """One payment that was accepted, and what it bought. `sealed` holds secret and session token."""

    network: Network
    tx_hash: str
    product: Product
    payer: str
    requester: str
    pak_id: PakId
    amount_micro: int
    traffic_bytes: int
    username: str
    sealed: str
    claimed_at_ms: int


@dataclass(frozen=True, slots=True)
class Session:
    """A session token's row: which key it manages."""

    session_id: str
    pak_id: PakId
    username: str
    sealed: str
    network: Network
    tx_hash: str
    amount_micro: int
    wallet: str
    created_at_ms: int
    expires_at_ms: int


class Problem(StrEnum):
    """Why no credential is given. Never a reason to pay again unless it says so."""

    NOT_ON_SALE = "SALE_NOT_VALIDATED"
    PAYMENT_REQUIRED = "PAYMENT_REQUIRED"
    PAYMENT_UNKNOWN = "PAYMENT_UNKNOWN"
    PAYMENT_INVALID = "PAYMENT_INVALID"
    PAYMENT_TOO_SMALL = "PAYMENT_TOO_SMALL"
    PAYMENT_TOO_OLD = "PAYMENT_TOO_OLD"
    NOT_YOURS = "PAYMENT_NOT_PROVEN_YOURS"
    OTHER_PRODUCT = "PAYMENT_USED_FOR_ANOTHER_PURCHASE"
    BAD_PAYMENT = "PAYMENT_MALFORMED"
    RETRY = "TEMPORARILY_UNAVAILABLE"
