"""Rows of what owners decide: one row per account, receipts of consent, and requests to be paid."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shared.kernel.ids import AccountId, DeviceId
from shared.kernel.money import MicroUsdc
from shared.runtime.dynamo import (
    DynamoRequest,
    Item,
    Page,
    TransactItem,
    get_item,
    query,
    transact,
    transact_put,
    transact_update,
    update,
)
from shared.supply.hours import read_hours
from shared.supply.model import Device, Owner, OwnerConsent, Receipt


def owner_key(account_id: AccountId) -> tuple[str, str]:
    """Where an account's decisions stand."""
    return f"owner#{account_id}", "-"


def read_owner(row: Item) -> Owner:
    """A row as an owner."""
    consent = row.get("consent")
    return Owner(
        AccountId(row["pk"].removeprefix("owner#")),
        generation=row.get("generation", 0),
        auto_list=row.get("auto_list", True),
        listing_all=row.get("listing_all"),
        listing_all_at_ms=row.get("listing_all_ms", 0),
        consent=OwnerConsent(**consent) if consent else None,
        withdrawn_at_ms=row.get("withdrawn_ms", 0),
        hours=read_hours(row["hours"]) if row.get("hours") else None,
    )


def get_owner(table: str, account_id: AccountId) -> DynamoRequest[Owner]:
    """What an account decided; the defaults when it never decided anything."""
    asked = get_item(table, f"owner#{account_id}", parse=read_owner)
    return DynamoRequest(asked.operation, asked.params, lambda a: asked.parse(a) or Owner(account_id))


def change_owner(
    table: str, account_id: AccountId, fields: Mapping[str, object], remove: tuple[str, ...] = ()
) -> DynamoRequest[Owner]:
    """Set and remove fields of an account's row."""
    return _change(table, account_id, fields, remove, "")


def revoke_owner(
    table: str, account_id: AccountId, fields: Mapping[str, object], remove: tuple[str, ...] = ()
) -> DynamoRequest[Owner]:
    """End every token of every device of an account; `fields` are set with it."""
    return _change(table, account_id, fields, remove, " ADD generation :one")


def _change(
    table: str, account_id: AccountId, fields: Mapping[str, object], remove: tuple[str, ...], add: str
) -> DynamoRequest[Owner]:
    expression = "SET " + ", ".join(f"#{k} = :{k}" for k in fields) if fields else ""
    if remove:
        expression += " REMOVE " + ", ".join(f"#{k}" for k in remove)
    values = {f":{k}": v for k, v in fields.items()} | ({":one": 1} if add else {})
    names = {f"#{k}": k for k in (*fields, *remove)}
    asked = update(
        table,
        f"owner#{account_id}",
        "-",
        (expression + add).strip(),
        values,
        parse=read_owner,
        names=names or None,
    )
    return DynamoRequest(asked.operation, asked.params, lambda a: asked.parse(a) or Owner(account_id))


def owner_consent_row(consent: OwnerConsent) -> dict[str, Any]:
    """An owner's consent as it stands in their row."""
    return asdict(consent)


# Receipts


def receipt_item(table: str, receipt: Receipt, receipt_id: str) -> TransactItem:
    """An act of consent or withdrawal, for the transaction that carries it out. Receipts are only ever added."""
    place = f"{receipt.at_ms:013d}#{receipt_id}"
    return transact_put(table, {"pk": f"receipt#{receipt.subject}", "sk": place, **asdict(receipt)})


def receipts(table: str, subject: str, limit: int) -> DynamoRequest[Page[Receipt]]:
    """Receipts of `dev#<device>` or `acct#<account>`, newest first."""

    def parse(row: Item) -> Receipt:
        return Receipt(**{k: v for k, v in row.items() if k not in {"pk", "sk"}})

    return query(table, "pk = :pk", {":pk": f"receipt#{subject}"}, parse=parse, limit=limit, forward=False)


# Requests to be paid


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A request to be paid what a device earned, to the wallet that was registered when it was made."""

    withdrawal_id: str
    account_id: AccountId
    device_id: DeviceId
    amount_micro: MicroUsdc
    wallet: str
    at_ms: int
    state: str = "requested"


def request_withdrawal(table: str, device: Device, asked: Withdrawal) -> DynamoRequest[bool]:
    """Record a request, once per amount that the device had requested before; False when that changed meanwhile."""
    row = {"pk": f"withdraw#{asked.account_id}", "sk": f"{asked.at_ms:013d}#{asked.withdrawal_id}"}
    drawn = transact_update(
        table,
        f"dev#{device.device_id}",
        "-",
        "ADD requested_micro :amount",
        {":amount": asked.amount_micro, ":before": device.requested_micro},
        condition="requested_micro = :before",
    )
    both = transact([transact_put(table, {**row, **asdict(asked)}), drawn])
    return DynamoRequest(both.operation, both.params, lambda _: True, lambda _: False)


def withdrawals(table: str, account_id: AccountId, limit: int) -> DynamoRequest[Page[Withdrawal]]:
    """Requests of an account, newest first."""

    def parse(row: Item) -> Withdrawal:
        return Withdrawal(**{k: v for k, v in row.items() if k not in {"pk", "sk"}})

    return query(
        table, "pk = :pk", {":pk": f"withdraw#{account_id}"}, parse=parse, limit=limit, forward=False
    )
