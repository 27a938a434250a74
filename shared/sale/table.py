"""Rows of the sale. A claim is written once, in the same transaction as what it mints."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from shared.kernel.ids import PakId
from shared.runtime.dynamo import (
    DynamoRequest,
    Item,
    Page,
    TransactItem,
    get_item,
    key,
    marshal,
    marshal_value,
    query,
    transact_put,
    update,
)
from shared.sale.model import Claim, Product, Proof, Session

NAME_KEPT_S: Final = 86_400


def _claim_pk(network: str, payment_key: str) -> str:
    return f"claim#{network}#{payment_key}"


def claim_items(table: str, claim: Claim, aliases: Sequence[str] = ()) -> list[TransactItem]:
    """The claim, unless the payment was claimed before, under each name that the payment could be shown by."""
    row = {**asdict(claim), "product": claim.product.value, "proof": claim.proof.value, "sk": "-"}
    names = dict.fromkeys((claim.key, *aliases))
    return [transact_put(table, {**row, "pk": _claim_pk(claim.network, name)}) for name in names]


def supersede_items(table: str, before: Claim, after: Claim, old_token: str) -> list[TransactItem]:
    """The payer proved a payment that somebody else had shown: the claim is theirs, and the old session is over."""
    row = {
        **asdict(after),
        "product": after.product.value,
        "proof": after.proof.value,
        "pk": _claim_pk(after.network, after.key),
        "sk": "-",
    }
    replaced = {
        "TableName": table,
        "Item": marshal(row),
        "ConditionExpression": "sealed = :before",
        "ExpressionAttributeValues": {":before": marshal_value(before.sealed)},
    }
    return [
        {"Put": replaced},
        {"Delete": {"TableName": table, "Key": key(f"session#{old_token}")}},
    ]


def get_claim(table: str, network: str, payment_key: str) -> DynamoRequest[Claim | None]:
    """What a payment bought, if it was claimed."""

    def parse(row: Item) -> Claim:
        fields = {k: v for k, v in row.items() if k not in {"pk", "sk"}}
        typed = {
            "product": Product(row["product"]),
            "proof": Proof(row["proof"]),
            "pak_id": PakId(row["pak_id"]),
        }
        return Claim(**{**fields, **typed})

    return get_item(table, _claim_pk(network, payment_key), parse=parse)


def session_items(table: str, session: Session, token_hash: str) -> list[TransactItem]:
    """A session by its token, and under the wallet that paid."""
    facts = asdict(session)
    public = {k: v for k, v in facts.items() if k not in {"sealed", "username"}}
    return [
        transact_put(table, {"pk": f"session#{token_hash}", "sk": "-", **facts}),
        transact_put(table, {"pk": f"wallet#{session.wallet}", "sk": session.session_id, **public}),
        transact_put(table, {"pk": f"sessionid#{session.session_id}", "sk": "-", **public}),
    ]


def _read_session(row: Item) -> Session:
    fields: dict[str, Any] = {"sealed": "", "username": "", **row}
    return Session(**{k: v for k, v in fields.items() if k not in {"pk", "sk"}})


# Names that buyers give their payments


def name_payment(table: str, name: str, fingerprint: str, now_ms: int) -> DynamoRequest[str | None]:
    """Bind a buyer's name to one payment for a day; the fingerprint that it is bound to already, if it is."""

    def parse(row: Item) -> str:
        return str(row["fingerprint"])

    return update(
        table,
        f"payname#{name}",
        "-",
        "SET fingerprint = if_not_exists(fingerprint, :f), #ttl = if_not_exists(#ttl, :ttl)",
        {":f": fingerprint, ":ttl": now_ms // 1000 + NAME_KEPT_S},
        parse=parse,
        names={"#ttl": "ttl"},
    )


def unname_payment(table: str, name: str, fingerprint: str) -> DynamoRequest[object]:
    """The payment bought nothing and moved nothing: its name is free again."""
    params = {
        "TableName": table,
        "Key": key(f"payname#{name}"),
        "ConditionExpression": "fingerprint = :f",
        "ExpressionAttributeValues": {":f": marshal_value(fingerprint)},
    }
    return DynamoRequest("delete_item", params, lambda _: None, lambda _: None)


def get_session(table: str, token_hash: str) -> DynamoRequest[Session | None]:
    """The session of a token."""
    return get_item(table, f"session#{token_hash}", parse=_read_session)


def get_session_by_id(table: str, session_id: str) -> DynamoRequest[Session | None]:
    """The public part of a session."""
    return get_item(table, f"sessionid#{session_id}", parse=_read_session)


def sessions_of_wallet(table: str, wallet: str, limit: int, after: str = "") -> DynamoRequest[Page[Session]]:
    """The public part of a wallet's sessions; `after` is the session to go on from."""
    condition, values = "pk = :pk", {":pk": f"wallet#{wallet}"}
    if after:
        condition, values = "pk = :pk AND sk > :after", {**values, ":after": after}
    return query(table, condition, values, parse=_read_session, limit=limit)
