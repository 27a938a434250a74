"""The trial balance: what the whole ledger adds up to."""

from collections.abc import Mapping
from typing import Any, Final

from shared.ledger import table as rows
from shared.runtime.dynamo import RunsDynamo

SCAN_PAGE: Final = 1000


def trial_balance(dynamo: RunsDynamo, ledger_table: str) -> tuple[int, int]:
    """(all debits, all credits) in femto-USDC; a ledger that is right has them equal."""
    debits = credits = 0
    start: Mapping[str, Any] | None = None
    while True:
        page = dynamo.run(rows.balances(ledger_table, SCAN_PAGE, start))
        debits += sum(b.debits for b in page.rows)
        credits += sum(b.credits for b in page.rows)
        start = page.next_key
        if start is None:
            return debits, credits
