"""A reseller's prepaid GB: bought wholesale, and handed to keys as their caps.

An account without a balance row is on invoice and not limited here. With one, a cap is drawn from the balance in the
transaction that gives it to the key, so a balance is never promised twice; a key that ends gives its unused rest back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared.kernel.ids import AccountId
from shared.kernel.money import BYTES_PER_GB, MicroUsdc, price
from shared.runtime.dynamo import (
    DynamoRequest,
    Item,
    TransactItem,
    get_item,
    transact_put,
    transact_update,
)

DISCOUNTS: Final = (
    (250, 2_400_000),
    (100, 2_800_000),
    (50, 3_200_000),
    (10, 3_600_000),
    (0, 4_000_000),
)
"""(GB of one purchase from which on, micro-USDC per GB), the largest first; the setting `wholesale` overrides it."""
PURCHASE_MAX_BYTES: Final = 100_000 * BYTES_PER_GB


@dataclass(frozen=True, slots=True)
class Prepaid:
    """What was ever credited, and what no key has been given yet."""

    account_id: AccountId
    credited_bytes: int
    available_bytes: int


def wholesale_price(byte_count: int, setting: Mapping[str, Any]) -> tuple[MicroUsdc, MicroUsdc]:
    """(per GB, whole price rounded up) of one purchase. The whole purchase has the price of its size."""
    steps: Sequence[Sequence[int]] = setting.get("steps") or DISCOUNTS
    ordered = sorted(((int(gb), int(micro)) for gb, micro in steps), reverse=True)
    per_gb = next((micro for gb, micro in ordered if byte_count >= gb * BYTES_PER_GB), ordered[-1][1])
    return MicroUsdc(per_gb), price(byte_count, MicroUsdc(per_gb))


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
