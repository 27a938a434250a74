"""Payments that were accepted and not yet served, and those that a human must give back.

An owed row is written before minting and deleted by the transaction that mints, so what is left is what a crash left. A
payment is either served or refunded: minting deletes its refund row, which succeeds only while nobody acted on it.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from shared.kernel.ids import Country, PakId
from shared.runtime.dynamo import (
    Conflict,
    DynamoRequest,
    Item,
    Page,
    TransactItem,
    get_item,
    key,
    marshal_value,
    put_new,
    query,
    transact,
    transact_delete,
    transact_put,
    transact_update,
    update,
)
from shared.sale.model import Order, Product, Proof, Terms

OPEN: Final = "open"
DISMISSED: Final = "dismissed"
_OWED: Final = "owed"
_REFUND: Final = "refund"


@dataclass(frozen=True, slots=True)
class Owed:
    """A purchase that waits for its credentials. `key` names the payment as its claim will."""

    network: str
    key: str
    tx_hash: str
    requester: str
    order: Order
    seen_at_ms: int
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Refund:
    """Money that came and bought nothing, for a human to give back."""

    network: str
    key: str
    tx_hash: str
    payer: str
    amount_micro: int
    reason: str
    at_ms: int
    state: str = OPEN
    decided: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row of this list that another version wrote, or nobody of ours: a human looks at it, and it stops no other."""

    where: str
    fault: str


def _known(kind: type, row: Item) -> dict[str, Any]:
    """What this version knows of a row: one that is newer may have put more into it."""
    return {f.name: row[f.name] for f in fields(kind) if f.name in row}


def _sk(network: str, payment_key: str) -> str:
    return f"{network}#{payment_key}"


def _order_row(order: Order) -> dict[str, Any]:
    row = {k: v for k, v in asdict(order).items() if v is not None}
    if order.terms is not None:
        row["terms"] = {k: v for k, v in asdict(order.terms).items() if v is not None}
    return {**row, "product": order.product.value, "proof": order.proof.value}


def _read_order(row: Item) -> Order:
    terms = row.get("terms")
    if terms is not None:
        country = terms.get("country")
        optional = {"country": Country(country) if country else None, "session_id": terms.get("session_id")}
        terms = Terms(**{**_known(Terms, terms), **optional})
    pak_id = row.get("pak_id")
    fixed = {"product": Product(row["product"]), "terms": terms, "pak_id": PakId(pak_id) if pak_id else None}
    return Order(**{**_known(Order, row), **fixed, "proof": Proof(row["proof"])})


def _owed_row(owed: Owed) -> dict[str, Any]:
    facts = {
        "network": owed.network,
        "key": owed.key,
        "tx_hash": owed.tx_hash,
        "requester": owed.requester,
        "order": _order_row(owed.order),
        "seen_at_ms": owed.seen_at_ms,
        "tries": owed.tries,
    }
    return {"pk": _OWED, "sk": _sk(owed.network, owed.key), **facts}


def owe(table: str, owed: Owed) -> DynamoRequest[bool]:
    """Remember that a purchase is to be served; False when it was remembered before."""
    return put_new(table, _owed_row(owed))


def owe_item(table: str, owed: Owed) -> TransactItem:
    """The same inside a transaction, whatever stood there."""
    return transact_put(table, _owed_row(owed), new=False)


def served_items(table: str, network: str, payment_key: str, names: Iterable[str]) -> list[TransactItem]:
    """It is served: nothing is owed, and nothing may be refunded under any name of the payment.

    All but the first item fail when a refund was acted on.
    """
    gone: TransactItem = {"Delete": {"TableName": table, "Key": key(_OWED, _sk(network, payment_key))}}
    return [gone, *(_unrefunded(table, _sk(network, name)) for name in dict.fromkeys((payment_key, *names)))]


def _unrefunded(table: str, where: str) -> TransactItem:
    return {
        "Delete": {
            "TableName": table,
            "Key": key(_REFUND, where),
            "ConditionExpression": "attribute_not_exists(pk) OR #state IN (:open, :dismissed)",
            "ExpressionAttributeNames": {"#state": "state"},
            "ExpressionAttributeValues": {
                ":open": marshal_value(OPEN),
                ":dismissed": marshal_value(DISMISSED),
            },
        }
    }


def forget(table: str, network: str, payment_key: str) -> DynamoRequest[None]:
    """No money came after all, or a claim stands for it: nothing is owed."""
    params = {"TableName": table, "Key": key(_OWED, _sk(network, payment_key))}
    return DynamoRequest("delete_item", params, lambda _: None)


def tried(table: str, owed: Owed) -> DynamoRequest[object]:
    """Count a try that did not serve."""
    return update(
        table,
        _OWED,
        _sk(owed.network, owed.key),
        "ADD tries :one",
        {":one": 1},
        parse=lambda row: row["tries"],
        condition="attribute_exists(pk)",
    )


def all_owed(table: str, limit: int, start: Any = None) -> DynamoRequest[Page[Owed | Unreadable]]:
    """What waits to be served."""

    def parse(row: Item) -> Owed | Unreadable:
        try:
            return Owed(**{**_known(Owed, row), "order": _read_order(row["order"])})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return Unreadable(str(row["sk"]), type(error).__name__)

    return query(table, "pk = :pk", {":pk": _OWED}, parse=parse, limit=limit, start=start)


def refund(table: str, found: Refund) -> DynamoRequest[bool]:
    """Put a payment on the list; False when it is there."""
    return put_new(table, _refund_row(found))


def _refund_row(found: Refund) -> dict[str, Any]:
    return {"pk": _REFUND, "sk": _sk(found.network, found.key), **asdict(found)}


def decide_item(table: str, network: str, payment_key: str, state: str, words: str) -> TransactItem:
    """A human's word on a refund, once; fails when it is not open. A served payment has none."""
    return transact_update(
        table,
        _REFUND,
        _sk(network, payment_key),
        "SET #state = :state, decided = :words",
        {":state": state, ":words": words, ":open": OPEN},
        condition="#state = :open",
        names={"#state": "state"},
    )


def get_refund(table: str, network: str, payment_key: str) -> DynamoRequest[Refund | None]:
    """One row of the list."""
    return get_item(table, _REFUND, _sk(network, payment_key), parse=_read_refund)


def _read_refund(row: Item) -> Refund:
    return Refund(**_known(Refund, row))


def give_up(table: str, owed: Owed, found: Refund) -> DynamoRequest[Conflict | None]:
    """From owed to refundable, in one step; the first item fails when nothing is owed any more: it was served."""
    gone = transact_delete(table, _OWED, _sk(owed.network, owed.key), condition="attribute_exists(pk)")
    return transact([gone, transact_put(table, _refund_row(found))])


def refunds(table: str, limit: int, start: Any = None) -> DynamoRequest[Page[Refund]]:
    """The list."""
    return query(table, "pk = :pk", {":pk": _REFUND}, parse=_read_refund, limit=limit, start=start)
