"""Rows of the sale. A claim is written once, in the same transaction as what it mints."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from shared.kernel.ids import PakId
from shared.runtime.dynamo import (
    DynamoRequest,
    Item,
    Page,
    TransactItem,
    get_item,
    query,
    transact_put,
)
from shared.sale.model import Claim, Product, Session


def _claim_pk(network: str, key: str) -> str:
    return f"claim#{network}#{key}"


def claim_items(table: str, claim: Claim, aliases: Sequence[str] = ()) -> list[TransactItem]:
    """The claim, unless the payment was claimed before, under each name that the payment could be shown by."""
    row = {**asdict(claim), "product": claim.product.value, "sk": "-"}
    keys = dict.fromkeys((claim.key, *aliases))
    return [transact_put(table, {**row, "pk": _claim_pk(claim.network, key)}) for key in keys]


def get_claim(table: str, network: str, key: str) -> DynamoRequest[Claim | None]:
    """What a payment bought, if it was claimed."""

    def parse(row: Item) -> Claim:
        fields = {k: v for k, v in row.items() if k not in {"pk", "sk"}}
        return Claim(**{**fields, "product": Product(row["product"]), "pak_id": PakId(row["pak_id"])})

    return get_item(table, _claim_pk(network, key), parse=parse)


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


def get_session(table: str, token_hash: str) -> DynamoRequest[Session | None]:
    """The session of a token."""
    return get_item(table, f"session#{token_hash}", parse=_read_session)


def get_session_by_id(table: str, session_id: str) -> DynamoRequest[Session | None]:
    """The public part of a session."""
    return get_item(table, f"sessionid#{session_id}", parse=_read_session)


def sessions_of_wallet(table: str, wallet: str, limit: int) -> DynamoRequest[Page[Session]]:
    """The public part of a wallet's sessions."""
    return query(table, "pk = :pk", {":pk": f"wallet#{wallet}"}, parse=_read_session, limit=limit)
