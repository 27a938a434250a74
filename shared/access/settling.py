"""What a deleted key did not use returns to its account's prepaid balance, once its last bytes were counted; then its live
counter is dropped, as is that of a key on invoice.

Gateways hear of the end within a second and flush within five; the roll-up follows in three. Until then nobody knows what
the key used, so nothing is given back before `SETTLE_AFTER_MS`. See decision 0010.
"""

from typing import Final

from shared.access.model import DisabledReason, Pak
from shared.access.prepaid import Prepaid, move_items
from shared.kernel.ids import PakId
from shared.runtime.dynamo import (
    DynamoRequest,
    Page,
    TransactItem,
    key,
    query,
    transact_put,
    transact_update,
)

SETTLE_AFTER_MS: Final = 60_000
_QUEUE: Final = "settle"


def settle_later_item(table: str, pak: Pak, now_ms: int) -> TransactItem:
    """For the transaction that deletes a key: look at it again when its last bytes are counted."""
    return transact_put(table, {"pk": _QUEUE, "sk": _place(now_ms + SETTLE_AFTER_MS, pak.pak_id)}, new=False)


def _place(due_ms: int, pak_id: str) -> str:
    return f"{due_ms:013d}#{pak_id}"


def due_keys(table: str, now_ms: int, limit: int) -> DynamoRequest[Page[tuple[str, PakId]]]:
    """(place in the queue, key) of deleted keys that may be settled, the longest waiting first."""
    return query(
        table,
        "pk = :pk AND sk < :now",
        {":pk": _QUEUE, ":now": _place(now_ms, "")},
        parse=lambda row: (str(row["sk"]), PakId(str(row["sk"]).partition("#")[2])),
        limit=limit,
    )


def unused_bytes(pak: Pak, used_bytes: int) -> int:
    """What goes back: no more than was drawn for the key, and nothing that it used."""
    return max(pak.drawn_bytes - used_bytes, 0)


def settled(table: str, place: str) -> DynamoRequest[None]:
    """Nothing is left to do for a deleted key."""
    return DynamoRequest("delete_item", {"TableName": table, "Key": key(_QUEUE, place)}, lambda _: None)


def settle_items(
    table: str, place: str, pak: Pak, prepaid: Prepaid | None, used_bytes: int, now_ms: int
) -> list[TransactItem]:
    """Give the unused rest back, once: the first item fails when that was done, the second when the key changed."""
    gone: TransactItem = {
        "Delete": {
            "TableName": table,
            "Key": key(_QUEUE, place),
            "ConditionExpression": "attribute_exists(pk)",
        }
    }
    back = unused_bytes(pak, used_bytes)
    changed = transact_update(
        table,
        f"pak#{pak.pak_id}",
        "-",
        "SET drawn_bytes = :left, updated_at_ms = :now",
        {
            ":left": pak.drawn_bytes - back,
            ":now": now_ms,
            ":before": pak.drawn_bytes,
            ":deleted": DisabledReason.DELETED.value,
        },
        condition="disabled_reason = :deleted AND drawn_bytes = :before",
    )
    return [gone, changed, *move_items(table, prepaid, -back)]
