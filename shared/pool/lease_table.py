"""Rows of leases. All leases stand in sixteen partitions, so that the job that keeps them reads pages of whole rows.

A released lease stays as a row for a day, so that whoever released it may say so again and its hold is dropped for sure.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, EndpointId, PakId
from shared.pool.leases import Lease
from shared.pool.model import Failover, Rotation
from shared.runtime.dynamo import (
    DynamoRequest,
    Item,
    Page,
    TransactItem,
    get_item,
    query,
    transact_delete,
    transact_put,
    transact_update,
    update,
)

PARTS: Final = "0123456789abcdef"
RELEASED_KEPT_S: Final = 86_400
_STANDS: Final = "attribute_exists(pk) AND released_at_ms = :none"


def _pk(lease_id: str) -> str:
    return f"leases#{lease_id[-1:]}"


def _listed(lease: Lease) -> tuple[str, str]:
    return f"leasesof#{lease.pak_id}", f"{lease.created_at_ms:013d}#{lease.lease_id}"


def _read(row: Item) -> Lease:
    ip_type = row.get("ip_type")
    return Lease(
        lease_id=row["sk"],
        pak_id=PakId(row["pak_id"]),
        account_id=AccountId(row["account"]),
        pool=Pool(row["pool"]),
        country=Country(row["country"]) if row.get("country") else None,
        ip_type=IpType(ip_type) if ip_type else None,
        carrier=row["carrier"],
        failover=Failover(row["failover"]),
        idle_s=row["idle_s"],
        endpoint_id=EndpointId(row["endpoint_id"]),
        created_at_ms=row["created_at_ms"],
        expires_at_ms=row["expires_at_ms"],
        rotation=Rotation(row["rotation"]),
        rotated_at_ms=row["rotated_at_ms"],
        rotation_id=row["rotation_id"],
        used_at_ms=row["used_at_ms"],
        released_at_ms=row["released_at_ms"],
    )


def create_items(table: str, lease: Lease, most: int) -> list[TransactItem]:
    """A new lease: the first item fails when it stands already, the last one when the account has `most`."""
    row = asdict(lease) | {"pk": _pk(lease.lease_id), "sk": lease.lease_id, "account": lease.account_id}
    del row["lease_id"], row["account_id"]  # the index of keys by their account is not for leases
    pk, sk = _listed(lease)
    counted = transact_update(
        table,
        f"leasecount#{lease.account_id}",
        "-",
        "ADD live :one",
        {":one": 1, ":most": most},
        condition="attribute_not_exists(live) OR live < :most" if most else "live < :most",
    )
    return [transact_put(table, row), transact_put(table, {"pk": pk, "sk": sk}), counted]


def release_items(table: str, lease: Lease, now_ms: int, *, as_read: bool = False) -> list[TransactItem]:
    """The end of a lease; the first item fails when it ended already, or (`as_read`) was extended since it was read."""
    unchanged = {":read": lease.expires_at_ms} if as_read else {}
    ended = transact_update(
        table,
        _pk(lease.lease_id),
        lease.lease_id,
        "SET released_at_ms = :now, #ttl = :ttl",
        {":now": now_ms, ":ttl": now_ms // 1000 + RELEASED_KEPT_S, ":none": 0, **unchanged},
        condition=_STANDS + (" AND expires_at_ms = :read" if as_read else ""),
        names={"#ttl": "ttl"},
    )
    less = transact_update(table, f"leasecount#{lease.account_id}", "-", "ADD live :less", {":less": -1})
    return [ended, transact_delete(table, *_listed(lease)), less]


def get_lease(table: str, lease_id: str) -> DynamoRequest[Lease | None]:
    """A lease, released or not."""
    return get_item(table, _pk(lease_id), lease_id, parse=_read)


def leases_of(table: str, pak_id: PakId, limit: int, before: str = "") -> DynamoRequest[Page[str]]:
    """Places of a key's leases, the newest first, older than one of them if given."""
    values = {":pk": f"leasesof#{pak_id}"}
    older = " AND sk < :before" if before else ""
    return query(
        table,
        f"pk = :pk{older}",
        values | ({":before": before} if before else {}),
        parse=lambda row: str(row["sk"]),
        limit=limit,
        forward=False,
    )


def leases_in(
    table: str, part: str, limit: int, start: Mapping[str, object] | None = None
) -> DynamoRequest[Page[Lease]]:
    """One page of the leases of one part, released ones too."""
    return query(table, "pk = :pk", {":pk": f"leases#{part}"}, parse=_read, limit=limit, start=start)


def change(
    table: str, lease: Lease, fields: Mapping[str, object], *, unless_rotated: bool = False
) -> DynamoRequest[Lease | None]:
    """Set fields of a lease; None when it was released, or (if asked) rotated since it was read."""
    values = {f":{name}": value for name, value in fields.items()} | {":none": 0}
    condition = _STANDS
    if unless_rotated:
        condition += " AND rotated_at_ms = :rotated_before"
        values[":rotated_before"] = lease.rotated_at_ms
    expression = "SET " + ", ".join(f"#{name} = :{name}" for name in fields)
    names = {f"#{name}": name for name in fields}
    pk, sk = _pk(lease.lease_id), lease.lease_id
    return update(table, pk, sk, expression, values, parse=_read, condition=condition, names=names)
