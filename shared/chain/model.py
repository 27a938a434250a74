"""A payment's verdict: VALID, INVALID(reason) or UNKNOWN(retry). An unreachable or lagging node is only ever UNKNOWN."""

from dataclasses import dataclass
from enum import StrEnum


class Network(StrEnum):
    """Chains that are paid on."""

    BASE = "base"
    SOLANA = "solana"


class InvalidReason(StrEnum):
    """Why a transaction or an authorization is no payment to us. Facts that asking again will not change."""

    FAILED = "transaction_failed"
    NO_TRANSFER = "no_transfer_of_usdc_to_us"
    SEVERAL_PAYERS = "several_payers"
    AUTH_SIGNATURE = "authorization_signature_invalid"
    AUTH_RECIPIENT = "authorization_pays_somebody_else"
    AUTH_TERMS = "authorization_is_for_other_terms"
    AUTH_AMOUNT = "authorization_is_for_less_than_the_price"
    AUTH_NOT_YET = "authorization_is_not_valid_yet"
    AUTH_EXPIRED = "authorization_expired_or_about_to"
    AUTH_TOO_LONG = "authorization_valid_before_is_over_an_hour_away"
    AUTH_CANCELED = "authorization_was_canceled"
    AUTH_USED_OTHERWISE = "authorization_nonce_was_used_for_something_else"
    AUTH_PAYER_REVERTED = "an_earlier_signed_transfer_of_this_payer_reverted_pay_by_transaction_hash"
    AUTH_BALANCE = "balance_of_payer_is_too_small"
    AUTH_REVERTED = "transfer_was_reverted"


class UnknownReason(StrEnum):
    """Why nothing can be said yet. The answer to all of them is: ask again, do not pay again."""

    NOT_FOUND = "transaction_not_seen_yet"
    NOT_CONFIRMED = "not_confirmed_yet"
    NOT_CANONICAL = "block_is_not_in_the_chain"
    NODE_UNREACHABLE = "chain_node_unreachable"
    NODE_MALFORMED = "chain_node_answer_malformed"
    NODES_DISAGREE = "chain_nodes_disagree"
    NOT_SETTLED = "transfer_is_under_way"
    PAYER_BUSY = "payer_or_balance_is_busy_with_transfers_under_way"
    RAIL_CLOSED = "signed_transfers_are_not_taken_now"


@dataclass(frozen=True, slots=True)
class Depth:
    """How sure we want to be of a payment up to an amount (None: of any): depth in blocks on Base, commitment on Solana,
    and how many nodes must say the same.
    """

    up_to_micro: int | None
    confirmations: int = 1
    commitment: str = "confirmed"
    quorum: int = 1


SHALLOW = (Depth(None),)
"""One confirmation by one node, whatever the amount."""


@dataclass(frozen=True, slots=True)
class Valid:
    """The sum that one payer moved to us, and when the chain says so.

    `tx_hash` is the transaction that moved it. `authorizations` are the keys of this payer's signed transfers (EIP-3009)
    in that transaction: each is one payment, whichever way it is shown to us. `tagged`: this payer put the tag that was
    asked for into the transaction. `has_tag`: this payer put there something of a tag's shape, whether or not it was
    asked for.
    """

    payer: str
    amount_micro: int
    paid_at_s: int
    tx_hash: str = ""
    authorizations: tuple[str, ...] = ()
    tagged: bool = False
    has_tag: bool = False


@dataclass(frozen=True, slots=True)
class Several:
    """One transaction in which several payers paid us. Which of them asks must be proven."""

    payments: tuple[Valid, ...]

    @property
    def amount_micro(self) -> int:
        """All of it."""
        return sum(p.amount_micro for p in self.payments)

    def of(self, payer: str) -> "Valid | Invalid":
        """What one of them paid."""
        found = (p for p in self.payments if p.payer == payer)
        return next(found, Invalid(InvalidReason.NO_TRANSFER))


@dataclass(frozen=True, slots=True)
class Invalid:
    """Not a payment to us. `amount_micro`: what came in all the same, where nobody can tell whose it is."""

    reason: InvalidReason
    amount_micro: int = 0


@dataclass(frozen=True, slots=True)
class Unknown:
    """Ask again."""

    reason: UnknownReason


Verdict = Valid | Invalid | Unknown
Reading = Verdict | Several
"""What a transaction hash stands for, before it is known who asks."""


@dataclass(frozen=True, slots=True)
class Authorization:
    """A signed transfer (EIP-3009 `transferWithAuthorization`); addresses and nonce in lower-case hex with 0x.

    `signature` is 65 bytes in hex. Whoever holds one can only make the payer pay the recipient, once.
    """

    payer: str
    recipient: str
    amount_micro: int
    valid_after_s: int
    valid_before_s: int
    nonce: str
    signature: str

    @property
    def key(self) -> str:
        """What names this payment: the contract lets a payer use a nonce once."""
        return f"auth:{self.payer}:{self.nonce}"


class ReadFailed(Exception):
    """A node did not answer, or answered nonsense; the message names no URL."""

    def __init__(self, reason: UnknownReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Rejected(Exception):
    """A node answered, and said no; `message` is its own words, for deciding and never for outsiders."""

    def __init__(self, message: str) -> None:
        super().__init__("rejected")
        self.message = message
