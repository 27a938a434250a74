"""A reseller's prepaid GB: bought wholesale, and handed to keys as their caps.

An account without a balance row is on invoice and not limited here. With one, a cap is drawn from the balance in the
transaction that gives it to the key, so a balance is never promised twice; a key that ends gives its unused rest back.
What a purchase costs is `rules.wholesale_price`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from shared.kernel.ids import AccountId
from shared.runtime.dynamo import (
    DynamoRequest,
    Item,
    RunsDynamo,
    TransactItem,
    get_item,
    transact,
    transact_put,
    transact_update,
)


class Purchased(Enum):
    """What a credit came to."""

    CREDITED = "credited"
    REPEATED = "repeated"


@dataclass(frozen=True, slots=True)
class Prepaid:
    """What was ever credited, and what no key has been given yet."""

    account_id: AccountId
    credited_bytes: int
    available_bytes: int


def _pk(account_id: AccountId) -> str:
    return f"prepaid#{account_id}"


def get_prepaid(table: str, account_id: AccountId) -> DynamoRequest[Prepaid | None]:
    """An account's balance; None for an account that is not prepaid."""

    def parse(row: Item) -> Prepaid:
        return Prepaid(account_id, row["credited_bytes"], row["available_bytes"])

    return get_item(table, _pk(account_id), parse=parse)


def credit_items(
    table: str, account_id: AccountId, credit_id: str, byte_count: int, facts: Mapping[str, object]
) -> list[TransactItem]:
    """Credit a purchase, once: the first item fails when this credit was posted before."""
    mark = {"pk": f"credit#{credit_id}", "sk": "-", "account": account_id, "bytes": byte_count, **facts}
    add = "ADD credited_bytes :bytes, available_bytes :bytes"
    return [
        transact_put(table, mark),
        transact_update(table, _pk(account_id), "-", add, {":bytes": byte_count}),
    ]


def credit(
    dynamo: RunsDynamo,
    table: str,
    account_id: AccountId,
    credit_id: str,
    byte_count: int,
    facts: Mapping[str, object],
) -> Purchased:
    """Credit a purchase under an id that names it for ever (an approval, a payment's claim): once, whatever is repeated.

    For whoever writes more in the same transaction there is `credit_items`. Raises StoreUnavailable: say it again.
    """
    conflict = dynamo.run(transact(credit_items(table, account_id, credit_id, byte_count, facts)))
    return Purchased.CREDITED if conflict is None else Purchased.REPEATED


def move_items(table: str, prepaid: Prepaid | None, byte_count: int) -> list[TransactItem]:
    """Draw bytes for a key (positive), or give them back (negative); nothing for an account on invoice."""
    if prepaid is None or byte_count == 0:
        return []
    values: dict[str, object] = {":change": -byte_count}
    condition = "attribute_exists(pk)"
    if byte_count > 0:
        condition = "available_bytes >= :needed"
        values[":needed"] = byte_count
    pk, add = _pk(prepaid.account_id), "ADD available_bytes :change"
    return [transact_update(table, pk, "-", add, values, condition=condition)]
