"""Rows of the `exact` rail: one per signed transfer that we took on, and one per nonce of the gas wallet.

A transfer is RESERVED (by one instance, for a few seconds), SENT (its transaction is stored, and may be sent again by
anybody) or FAILED. A gas nonce does one thing for ever, at a fee that may be raised; `next` only grows.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from shared.chain.model import Authorization, InvalidReason
from shared.runtime.dynamo import (
    Conflict,
    DynamoRequest,
    Item,
    TransactItem,
    get_item,
    put_new,
    transact,
    transact_put,
    transact_update,
    update,
)

LEASE_MS: Final = 5_000
REVERTED_KEPT_S: Final = 30 * 86_400
UNDER_WAY_KEPT_S: Final = 7 * 86_400
"""How long a payer's sum is kept after their last transfer was taken on: what is under way longer is forgotten."""
CLOSED_S: Final = 7 * 86_400
"""So long nothing is taken on of a payer whose transfer reverted and paid nothing: they pay by transaction hash."""


class Stage(StrEnum):
    """Life of a transfer that we took on."""

    RESERVED = "reserved"
    SENT = "sent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Transfer:
    """A signed transfer, who brought it for what, and the transaction that carries it."""

    authorization: Authorization
    requester: str
    subject: str
    stage: Stage
    reserved_at_ms: int
    lease_until_ms: int
    from_block: int
    tx_hash: str = ""
    raw: str = ""
    gas_nonce: int = -1
    fee_wei: int = 0
    reason: str = ""
    counted: bool = False
    """Whether its amount stands in what its payer has under way."""


class Payer(NamedTuple):
    """What a payer has under way, and until when nothing more is taken on of them."""

    under_way_micro: int = 0
    transfers: int = 0
    closed_until_s: int = 0


def _pk(key: str) -> str:
    return f"settle#base#{key}"


def _payer_pk(payer: str) -> str:
    return f"payer#base#{payer}"


def _read(row: Item) -> Transfer:
    fields = {k: v for k, v in row.items() if k not in {"pk", "sk"}}
    authorization = Authorization(**{**row["authorization"], **_numbers(row["authorization"])})
    return Transfer(**{**fields, "authorization": authorization, "stage": Stage(row["stage"])})


def _numbers(stored: Item) -> dict[str, int]:
    """256-bit numbers are kept as text: the store's own have 38 digits."""
    return {k: int(stored[k]) for k in ("amount_micro", "valid_after_s", "valid_before_s")}


def reserve_item(table: str, transfer: Transfer) -> TransactItem:
    """Take a transfer on, unless somebody did before."""
    authorization = {k: str(v) for k, v in asdict(transfer.authorization).items()}
    row = {**asdict(transfer), "authorization": authorization, "stage": transfer.stage.value}
    return transact_put(table, {**row, "pk": _pk(transfer.authorization.key), "sk": "-"})


def get_payer(table: str, payer: str) -> DynamoRequest[Payer | None]:
    """A payer's transfers that were taken on and are not final; None before the first one."""

    def read(row: Item) -> Payer:
        return Payer(
            int(row["under_way_micro"]), int(row.get("transfers", 0)), int(row.get("closed_until_s", 0))
        )

    return get_item(table, _payer_pk(payer), parse=read)


def count_item(table: str, transfer: Transfer, before: Payer | None) -> TransactItem:
    """Add a transfer to what its payer has under way; fails when that is not what was read `before` any more."""
    found = transfer.authorization
    return transact_update(
        table,
        _payer_pk(found.payer),
        "-",
        "SET under_way_micro = :after, #ttl = :ttl ADD transfers :one",
        {
            ":after": (before or Payer()).under_way_micro + found.amount_micro,
            ":ttl": transfer.reserved_at_ms // 1000 + UNDER_WAY_KEPT_S,
            ":one": 1,
        }
        | ({} if before is None else {":before": before.under_way_micro}),
        condition="attribute_not_exists(pk)" if before is None else "under_way_micro = :before",
        names={"#ttl": "ttl"},
    )


def uncount(
    table: str, transfer: Transfer, reverted: TransactItem | None = None, closed_until_s: int = 0
) -> DynamoRequest[Conflict | None]:
    """A transfer is final: its payer has it under way no more, and what it burned is counted. Once, whoever comes first.

    `closed_until_s`: nothing more is taken on of its payer until then.
    """
    found = transfer.authorization
    once = transact_update(
        table,
        _pk(found.key),
        "-",
        "SET counted = :no",
        {":no": False, ":yes": True},
        condition="counted = :yes",
    )
    less = transact_update(
        table,
        _payer_pk(found.payer),
        "-",
        ("SET closed_until_s = :until, #ttl = :until " if closed_until_s else "")
        + "ADD under_way_micro :less, transfers :one_less",
        {":less": -found.amount_micro, ":one_less": -1}
        | ({":until": closed_until_s} if closed_until_s else {}),
        condition="attribute_exists(pk)",
        names={"#ttl": "ttl"} if closed_until_s else None,
    )
    return transact([once, less] if reverted is None else [once, less, reverted])


def reverted_item(table: str, wallet: str, day: str, wei: int, now_ms: int) -> TransactItem:
    """Add to what transactions that did nothing have burned on a UTC day."""
    return transact_update(
        table,
        f"gas#{wallet}",
        f"reverted#{day}",
        "SET #ttl = :ttl ADD wei :wei",
        {":wei": wei, ":ttl": now_ms // 1000 + REVERTED_KEPT_S},
        names={"#ttl": "ttl"},
    )


def reverted_wei(table: str, wallet: str, day: str) -> DynamoRequest[int | None]:
    """What they burned on a UTC day; None for nothing."""
    return get_item(table, f"gas#{wallet}", f"reverted#{day}", parse=lambda row: int(row["wei"]))


def get_transfer(table: str, key: str) -> DynamoRequest[Transfer | None]:
    """A transfer that was taken on."""
    return get_item(table, _pk(key), parse=_read)


def take_over(table: str, transfer: Transfer, now_ms: int) -> DynamoRequest[Transfer | None]:
    """Go on where an instance died before it stored a transaction; None when somebody else did."""
    return update(
        table,
        _pk(transfer.authorization.key),
        "-",
        "SET lease_until_ms = :until",
        {":until": now_ms + LEASE_MS, ":before": transfer.lease_until_ms, ":reserved": Stage.RESERVED.value},
        parse=_read,
        condition="lease_until_ms = :before AND stage = :reserved",
    )


def store_sent(
    table: str, wallet: str, transfer: Transfer, raw: str, tx_hash: str, gas_nonce: int, fee_wei: int
) -> DynamoRequest[Conflict | None]:
    """Bind a transaction to its transfer and to its gas nonce, in one step and for ever."""
    bound = transact_update(
        table,
        _pk(transfer.authorization.key),
        "-",
        "SET stage = :sent, #raw = :raw, tx_hash = :hash, gas_nonce = :nonce, fee_wei = :fee",
        {
            ":sent": Stage.SENT.value,
            ":raw": raw,
            ":hash": tx_hash,
            ":nonce": gas_nonce,
            ":fee": fee_wei,
            ":reserved": Stage.RESERVED.value,
            ":lease": transfer.lease_until_ms,
        },
        condition="stage = :reserved AND lease_until_ms = :lease",
        names={"#raw": "raw"},
    )
    nonce = {"pk": f"gas#{wallet}", "sk": f"{gas_nonce:012d}", "raw": raw, "tx_hash": tx_hash}
    return transact([transact_put(table, nonce), bound])


def replace_sent(
    table: str, transfer: Transfer, raw: str, tx_hash: str, fee_wei: int
) -> DynamoRequest[object]:
    """The same transfer and nonce at a higher fee, unless somebody raised it meanwhile."""
    return update(
        table,
        _pk(transfer.authorization.key),
        "-",
        "SET #raw = :raw, tx_hash = :hash, fee_wei = :fee",
        {":raw": raw, ":hash": tx_hash, ":fee": fee_wei, ":before": transfer.fee_wei},
        parse=lambda row: row["fee_wei"],
        condition="fee_wei = :before",
        names={"#raw": "raw"},
    )


def fail(table: str, key: str, reason: InvalidReason) -> DynamoRequest[object]:
    """It can never be settled any more."""
    return update(
        table,
        _pk(key),
        "-",
        "SET stage = :failed, reason = :reason",
        {":failed": Stage.FAILED.value, ":reason": reason.value},
        parse=lambda row: row["stage"],
        condition="attribute_exists(pk)",
    )


# The gas wallet's nonces


def start_nonces(table: str, wallet: str, first: int) -> DynamoRequest[bool]:
    """Begin where the chain stands; False when that was done before."""
    return put_new(table, {"pk": f"gas#{wallet}", "sk": "-", "next": first})


def next_nonce(table: str, wallet: str) -> DynamoRequest[int | None]:
    """A nonce that no other instance gets; None before `start_nonces`."""
    return update(
        table,
        f"gas#{wallet}",
        "-",
        "ADD #next :one",
        {":one": 1},
        parse=lambda row: int(row["next"]) - 1,
        condition="attribute_exists(pk)",
        names={"#next": "next"},
    )


def skip_to(table: str, wallet: str, nonce: int) -> DynamoRequest[object]:
    """The wallet was used by somebody else: nonces below this one are gone."""
    return update(
        table,
        f"gas#{wallet}",
        "-",
        "SET #next = :nonce",
        {":nonce": nonce},
        parse=lambda row: row["next"],
        condition="#next < :nonce",
        names={"#next": "next"},
    )


def nonce_raw(table: str, wallet: str, nonce: int) -> DynamoRequest[str | None]:
    """The transaction that a nonce is bound to."""
    return get_item(table, f"gas#{wallet}", f"{nonce:012d}", parse=lambda row: str(row["raw"]))


def bind_nonce(table: str, wallet: str, nonce: int, raw: str, tx_hash: str) -> DynamoRequest[bool]:
    """Bind a nonce that nobody used to a transaction that does nothing; False when it is bound."""
    return put_new(table, {"pk": f"gas#{wallet}", "sk": f"{nonce:012d}", "raw": raw, "tx_hash": tx_hash})


def replace_nonce(
    table: str, wallet: str, nonce: int, before: str, raw: str, tx_hash: str
) -> DynamoRequest[object]:
    """The same transaction of a nonce at a higher fee, unless somebody raised it meanwhile."""
    return update(
        table,
        f"gas#{wallet}",
        f"{nonce:012d}",
        "SET #raw = :raw, tx_hash = :hash",
        {":raw": raw, ":hash": tx_hash, ":before": before},
        parse=lambda row: row["tx_hash"],
        condition="#raw = :before",
        names={"#raw": "raw"},
    )
