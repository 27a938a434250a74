"""A payment's verdict: VALID, INVALID(reason) or UNKNOWN(retry). An unreachable or lagging node is only ever UNKNOWN."""

from dataclasses import dataclass
from enum import StrEnum


class Network(StrEnum):
    """Chains that are paid on."""

    BASE = "base"
    SOLANA = "solana"


class InvalidReason(StrEnum):
    """Why a transaction is not a payment to us. Facts of the chain that will not change."""

    FAILED = "transaction_failed"
    NO_TRANSFER = "no_transfer_of_usdc_to_us"
    SEVERAL_PAYERS = "several_payers"


class UnknownReason(StrEnum):
    """Why nothing can be said yet. The answer to all of them is: ask again, do not pay again."""

    NOT_FOUND = "transaction_not_seen_yet"
    NOT_CONFIRMED = "not_confirmed_yet"
    NOT_CANONICAL = "block_is_not_in_the_chain"
    NODE_UNREACHABLE = "chain_node_unreachable"
    NODE_MALFORMED = "chain_node_answer_malformed"


@dataclass(frozen=True, slots=True)
class Valid:
    """The sum that one payer moved to us, and when the chain says so."""

    payer: str
    amount_micro: int
    paid_at_s: int


@dataclass(frozen=True, slots=True)
class Invalid:
    """Not a payment to us."""

    reason: InvalidReason


@dataclass(frozen=True, slots=True)
class Unknown:
    """Ask again."""

    reason: UnknownReason


Verdict = Valid | Invalid | Unknown


class ReadFailed(Exception):
    """A node did not answer, or answered nonsense; the message names no URL."""

    def __init__(self, reason: UnknownReason) -> None:
        super().__init__(reason.value)
        self.reason = reason
