"""Terms of a purchase, the payment that claims it, and what a claim minted."""

from dataclasses import dataclass
from enum import StrEnum

from shared.access.model import Pak
from shared.chain.model import Authorization
from shared.kernel.ids import Country, PakId

Network = str
"""`base` or `solana`, as outside clients write it."""


class Product(StrEnum):
    """What a payment may be for."""

    POOL = "pool"
    PORT = "proxy"
    TOP_UP = "topup"
    BALANCE = "balance"


class Proof(StrEnum):
    """How a payment was shown to be its claimer's. Whatever a bare hash bought is taken back by the payer's own proof."""

    HASH = "hash"
    EXACT = "exact"
    SECRET = "secret"  # noqa: S105 - the name of a kind of proof
    SIGNATURE = "signature"

    @property
    def is_payers(self) -> bool:
        """Whether only the payer can have given it, now as then."""
        return self in {Proof.SECRET, Proof.SIGNATURE}


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
    ip_type: str = ""
    """Peers of this IP type; empty for modems."""


@dataclass(frozen=True, slots=True)
class Held:
    """What answers tell of a key that was sold, whether or not its like is on sale now."""

    tier: str
    quality: str
    ip_type: str = ""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a buyer asks for."""

    tier: str
    country: Country | None
    traffic_bytes: int
    duration_s: int
    session_id: str | None
    rotation: str
    carrier: str = ""
    city: str = ""
    lease_id: str = ""
    ip_type: str = ""


@dataclass(frozen=True, slots=True)
class FieldFault:
    """A query or body field that cannot be used, and what is allowed instead."""

    field: str
    allowed: str


@dataclass(frozen=True, slots=True)
class Echo:
    """The terms that an x402 v2 client says it accepted. Nobody signed them, so they only ever refuse."""

    asset: str
    recipient: str
    amount: str


@dataclass(frozen=True, slots=True)
class Payment:
    """What a buyer shows as paid: a hash on a network and perhaps the payer's signature over it, or a signed transfer that
    we send ourselves (`exact`; then `tx_hash` is empty). `name` is the buyer's own (payment-identifier, Idempotency-Key),
    `secret` that of a quote. `payer` is set where several paid in one transaction, once it is known who asks.
    """

    network: Network
    tx_hash: str
    proof: str = ""
    authorization: Authorization | None = None
    echo: Echo | None = None
    name: str = ""
    secret: str = ""
    payer: str = ""

    @property
    def key(self) -> str:
        """What is claimed once."""
        if self.authorization:
            return self.authorization.key
        return f"{self.tx_hash}#{self.payer}" if self.payer else self.tx_hash


@dataclass(frozen=True, slots=True)
class Statement:
    """What a payer signs: this transaction is mine, and it is for this."""

    network: Network
    tx_hash: str
    quote: str
    url: str


@dataclass(frozen=True, slots=True)
class Quote:
    """The terms of a requester, and a secret that is told once. The tag goes into the transaction, the secret never."""

    quote_id: str
    secret: str
    tag: str
    text: str


@dataclass(frozen=True, slots=True)
class Order:
    """What is bought. `subject` names it in a quote: a payment for one subject buys no other. `proof`: how the payment
    was shown to be the buyer's, once that is verified. `price_micro_per_gb` is that of the quote: what exceeds `due_micro`
    is credited at it, whatever traffic costs by then; `tolerance_bp` belongs to the same terms.
    """

    product: Product
    subject: str
    traffic_bytes: int
    due_micro: int
    terms: Terms | None = None
    pak_id: PakId | None = None
    username: str = ""
    tier: str = ""
    proof: Proof = Proof.HASH
    account: str = ""
    price_micro_per_gb: int = 0
    tolerance_bp: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """An order at the terms of one version of the prices. What is no longer `current` is for who was quoted it."""

    order: Order
    prices: Prices
    current: bool = True


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
    """One payment that was accepted, and what it bought. `sealed` holds the session token.

    `key` is what was claimed: a transaction hash (with its payer where there were several), or an authorization whose
    transaction is `tx_hash`. `subject`: what was bought, tier and all, as the quote names it. A prepaid balance is an
    account's: then `username` is that account, and there is no key.
    """

    network: Network
    key: str
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
    proof: Proof = Proof.HASH
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """A session token's row: which key it manages."""

    session_id: str
    pak_id: PakId
    username: str
    sealed: str
    network: Network
    claim_key: str
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
    SHARES_UNKNOWN = "PAYMENT_OF_SEVERAL_PAYERS"
    TOO_MANY_PARTS = "PAYMENT_OF_TOO_MANY_TRANSFERS"
    OTHER_PAYLOAD = "PAYMENT_IDENTIFIER_REUSED"
    NO_STOCK = "NO_STOCK"
    NO_DEVICE = "NO_DEVICE_FREE"
    BAD_PAYMENT = "PAYMENT_MALFORMED"
    RETRY = "TEMPORARILY_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Bought:
    """Credentials of a purchase; `repeated` when the same payment had bought them before."""

    pak: Pak
    username: str
    secret: str
    session_token: str
    claim: Claim
    repeated: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """No credentials, and why. `nothing_moved`: no money was touched, so that a payment's name is free again."""

    problem: Problem
    detail: str
    nothing_moved: bool = False
