"""Ledger rows. A transfer, both balances and both postings are written in one transaction, or none of them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from shared.kernel.money import FemtoUsdc
from shared.ledger.model import Balance, Posted, Transfer
from shared.runtime.dynamo import (
    DynamoRequest,
    Item,
    Page,
    get_item,
    query,
    scan,
    transact,
    transact_put,
    transact_update,
)


def post(table: str, transfer: Transfer) -> DynamoRequest[Posted]:
    """Post a transfer; a repeat of its id answers EXISTS and moves nothing, whatever else it says."""
    row = {"pk": f"transfer#{transfer.transfer_id}", "sk": "-", **asdict(transfer)}
    place = f"{transfer.at_ms:013d}#{transfer.transfer_id}"
    items = [transact_put(table, row)]
    for side, account in (("debits", transfer.debit), ("credits", transfer.credit)):
        add = transact_update(
            table, f"balance#{account}", "-", f"ADD {side} :amount", {":amount": transfer.amount}
        )
        posting = {"pk": f"posting#{account}", "sk": place, "side": side, "amount": transfer.amount}
        items += [add, transact_put(table, posting, new=False)]
    asked = transact(items)
    return DynamoRequest(asked.operation, asked.params, lambda _: Posted.CREATED, lambda _: Posted.EXISTS)


def get_transfer(table: str, transfer_id: str) -> DynamoRequest[Transfer | None]:
    """A transfer as it was posted."""

    def parse(row: Item) -> Transfer:
        return Transfer(**{k: v for k, v in row.items() if k not in {"pk", "sk"}})

    return get_item(table, f"transfer#{transfer_id}", parse=parse)


def _read_balance(row: Item) -> Balance:
    return Balance(
        row["pk"].removeprefix("balance#"), FemtoUsdc(row.get("debits", 0)), FemtoUsdc(row.get("credits", 0))
    )


def get_balance(table: str, account: str) -> DynamoRequest[Balance]:
    """The balance of an account; zero when nothing was ever posted to it."""
    asked = get_item(table, f"balance#{account}", parse=_read_balance)
    return DynamoRequest(asked.operation, asked.params, lambda a: asked.parse(a) or Balance(account))


def balances(table: str, limit: int, start: Mapping[str, Any] | None = None) -> DynamoRequest[Page[Balance]]:
    """One page of all balances, for the trial balance."""
    return scan(table, "balance#", parse=_read_balance, limit=limit, start=start)


def postings(table: str, account: str, limit: int) -> DynamoRequest[Page[tuple[str, str, int]]]:
    """(place, side, amount) of an account's postings, newest first."""
    return query(
        table,
        "pk = :pk",
        {":pk": f"posting#{account}"},
        parse=lambda r: (r["sk"], r["side"], r["amount"]),
        limit=limit,
        forward=False,
    )
