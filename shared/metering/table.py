"""Usage in DynamoDB: flush batches as they came, and per-day totals that applying them once adds up to."""

import json
from collections.abc import Mapping
from typing import Any, Final

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, GatewayId, PakId
from shared.metering.model import MAX_LINES_PER_BATCH, FlushBatch, LineKey, SpoiledBatch, UsageLine
from shared.metering.rules import batch_fault, day_of
from shared.runtime.dynamo import (
    DynamoRequest,
    Item,
    Page,
    TransactItem,
    get_item,
    put_new,
    query,
    transact_update,
    update,
)

BATCH_KEPT_S: Final = 90 * 86_400
BRACKETS_MAX: Final = MAX_LINES_PER_BATCH + 1
_PENDING: Final = "1"


def _batch_key(gateway_id: str, sequence: int) -> tuple[str, str]:
    return f"batch#{gateway_id}", f"{sequence:012d}"


def put_batch(table: str, batch: FlushBatch) -> DynamoRequest[bool]:
    """Record a batch; False when it stands there already.

    Its lines are one string: as attributes they cost a gateway more than all else it does for a tunnel's count.
    """
    pk, sk = _batch_key(batch.gateway_id, batch.sequence)
    row = {
        "pk": pk,
        "sk": sk,
        "pending": _PENDING,
        "at_ms": batch.at_ms,
        "ttl": batch.at_ms // 1000 + BATCH_KEPT_S,
        "lines": json.dumps(
            [
                (k.pak_id, k.account_id, k.device_id, k.supplier_id, k.country, k.pool, k.ip_type, up, down)
                for k, up, down in ((line.key, line.up_bytes, line.down_bytes) for line in batch.lines)
            ],
            separators=(",", ":"),
        ),
    }
    return put_new(table, row)


def read_batch(row: Item) -> FlushBatch:
    """A row as a batch."""
    lines = tuple(
        UsageLine(
            LineKey(
                PakId(pak),
                AccountId(account),
                DeviceId(device),
                AccountId(supplier),
                Country(country),
                Pool(pool),
                IpType(ip_type),
            ),
            up,
            down,
        )
        for pak, account, device, supplier, country, pool, ip_type, up, down in json.loads(row["lines"])
    )
    return FlushBatch(GatewayId(row["pk"].removeprefix("batch#")), int(row["sk"]), row["at_ms"], lines)


def pending_batches(table: str, limit: int) -> DynamoRequest[Page[FlushBatch]]:
    """Batches that are not applied yet, as the index shows them (it may lag, and may still show applied ones)."""
    return query(table, "pending = :p", {":p": _PENDING}, parse=read_batch, limit=limit, index="pending")


def batches_to_apply(
    table: str, limit: int, start: Any = None, waiting_for: IpType | None = None
) -> DynamoRequest[Page[FlushBatch | SpoiledBatch]]:
    """The same for whoever applies them: what cannot be a batch is told apart and keeps nobody from the others.

    `waiting_for`: instead those that were put off until this class has a rate.
    """

    def parse(row: Item) -> FlushBatch | SpoiledBatch:
        try:
            if sum(map(row["lines"].count, "[{")) > BRACKETS_MAX:  # before parsing: nesting costs stack
                raise ValueError("too many lines")
            batch = read_batch(row)
            fault = batch_fault(batch)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            fault = f"{type(error).__name__} in what should be lines"
        return batch if fault is None else SpoiledBatch(row["pk"], row["sk"], fault)

    keys = {":p": _PENDING if waiting_for is None else _waiting(waiting_for)}
    return query(table, "pending = :p", keys, parse=parse, limit=limit, start=start, index="pending")


def _waiting(ip_type: str) -> str:
    return f"rate#{ip_type}"


def put_off(table: str, batch: FlushBatch, ip_type: str) -> DynamoRequest[object]:
    """Let a batch wait for the rate of a class, out of the way of all others."""
    pk, sk = _batch_key(batch.gateway_id, batch.sequence)
    return update(
        table,
        pk,
        sk,
        "SET pending = :waiting",
        {":waiting": _waiting(ip_type)},
        parse=lambda row: row["pending"],
        condition="attribute_exists(pending)",
    )


def set_aside(table: str, spoiled: SpoiledBatch) -> DynamoRequest[object]:
    """Take what is no batch out of those to apply; its row stays, with what is wrong with it, for a human."""
    return update(
        table,
        spoiled.pk,
        spoiled.sk,
        "REMOVE pending, #ttl SET fault = :fault",
        {":fault": spoiled.fault},
        parse=lambda row: row["fault"],
        condition="attribute_exists(pending)",
        names={"#ttl": "ttl"},
    )


def is_set_aside(table: str, pk: str, sk: str) -> DynamoRequest[bool | None]:
    """Whether a row that was set aside still waits for a human; None when it is gone."""
    return get_item(table, pk, sk, parse=lambda row: "fault" in row and not row.get("applied"))


def newest_sequence(table: str, gateway_id: GatewayId) -> DynamoRequest[int]:
    """The highest sequence that a gateway ever recorded, or -1; a restarted gateway goes on from there."""
    asked = query(
        table,
        "pk = :pk",
        {":pk": f"batch#{gateway_id}"},
        parse=lambda r: int(r["sk"]),
        limit=1,
        forward=False,
    )
    return DynamoRequest(asked.operation, asked.params, lambda a: (asked.parse(a).rows or (-1,))[0])


def apply_items(
    table: str, batch: FlushBatch, earned: Mapping[DeviceId, int] | None = None
) -> list[TransactItem]:
    """Mark a batch as applied and add it to the day rows. Fails as a whole when it was applied before.

    `earned` is what each device made of it, in femto-USDC, which its own day row keeps.
    """
    pk, sk = _batch_key(batch.gateway_id, batch.sequence)
    done = transact_update(
        table,
        pk,
        sk,
        "REMOVE pending SET applied = :yes",
        {":yes": True},
        condition="attribute_exists(pending)",
    )
    day = f"day#{day_of(batch.at_ms)}"
    sums: dict[str, list[int]] = {}
    for line in batch.lines:
        for owner in (f"pak#{line.key.pak_id}", f"dev#{line.key.device_id}", f"acct#{line.key.account_id}"):
            pair = sums.setdefault(owner, [0, 0])
            pair[0] += line.up_bytes
            pair[1] += line.down_bytes
    made = {f"dev#{device_id}": femto for device_id, femto in (earned or {}).items()}
    rows = [
        transact_update(
            table,
            owner,
            day,
            "ADD up_bytes :up, down_bytes :down" + (", earned_femto :earned" if owner in made else ""),
            {":up": up, ":down": down} | ({":earned": made[owner]} if owner in made else {}),
        )
        for owner, (up, down) in sums.items()
    ]
    return [done, *rows]


def earned_days(table: str, device_id: DeviceId, limit: int) -> DynamoRequest[Page[tuple[str, int, int]]]:
    """(day, bytes, femto-USDC earned) of a device, newest first."""
    return query(
        table,
        "pk = :pk AND begins_with(sk, :day)",
        {":pk": f"dev#{device_id}", ":day": "day#"},
        parse=lambda r: (
            r["sk"].removeprefix("day#"),
            r["up_bytes"] + r["down_bytes"],
            r.get("earned_femto", 0),
        ),
        limit=limit,
        forward=False,
    )


def usage_days(
    table: str, owner: str, from_day: str, limit: int
) -> DynamoRequest[Page[tuple[str, int, int]]]:
    """(day, up, down) of `pak#<id>`, `dev#<id>` or `acct#<id>` since a day."""
    return query(
        table,
        "pk = :pk AND sk >= :day",
        {":pk": owner, ":day": f"day#{from_day}"},
        parse=lambda r: (r["sk"].removeprefix("day#"), r["up_bytes"], r["down_bytes"]),
        limit=limit,
    )
