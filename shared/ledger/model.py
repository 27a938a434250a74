"""Transfers and balances."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shared.kernel.ids import AccountId
from shared.kernel.money import FemtoUsdc

NOTHING: Final = FemtoUsdc(0)


class Posted(StrEnum):
    """What became of a transfer."""

    CREATED = "created"
    EXISTS = "exists"


@dataclass(frozen=True, slots=True)
class Transfer:
    """Moves an amount from the debited to the credited account. Never changed; a correction is another transfer."""

    transfer_id: str
    debit: str
    credit: str
    amount: FemtoUsdc
    code: str
    at_ms: int
    memo: str = ""

    def __post_init__(self) -> None:
        if self.amount <= 0 or self.debit == self.credit:
            raise ValueError("a transfer moves a positive amount between two accounts")


@dataclass(frozen=True, slots=True)
class Balance:
    """All that was ever debited and credited to one account."""

    account: str
    debits: FemtoUsdc = NOTHING
    credits: FemtoUsdc = NOTHING

    @property
    def owed(self) -> FemtoUsdc:
        """Credits minus debits: what is owed to a supplier."""
        return FemtoUsdc(self.credits - self.debits)


BANDWIDTH = "expense:bandwidth"


def supplier(account_id: AccountId) -> str:
    """The ledger account of what is owed to a supplier."""
    return f"supplier:{account_id}"
