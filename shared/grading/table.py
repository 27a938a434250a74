"""Grades in DynamoDB: one row per device. The prober writes results, the listing run writes `listed`.

A row on sale also carries `shelf` and `goods`: the sparse index `by_shelf` over them is the whole shop, small enough to put
a Redis that lost everything right within seconds.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Final

from shared.grading.model import Bar, Failure, Grade, ProbeResult, Stability
from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId
from shared.pool.model import Endpoint
from shared.runtime.dynamo import DynamoRequest, Item, Page, get_item, marshal, query, update

_GOODS: Final = tuple(sorted(field.name for field in fields(Endpoint)))
SHELVES: Final = 16
"""Parts of the index, so that one of them never holds all writes."""


def _pk(device_id: DeviceId) -> str:
    return f"grade#{device_id}"


def read_grade(row: Item) -> Grade:
    """A row as a grade."""
    latest = row.get("latest")
    return Grade(
        device_id=DeviceId(row["device_id"]),
        passes=row["passes"],
        failures=row["failures"],
        tier=SpeedTier(row["tier"]),
        listed=row.get("listed", False),
        quarantined=row["quarantined"],
        cut_short=row.get("cut_short", False),
        reason=row.get("reason", "not_probed"),
        latest=None if latest is None else _read_result(latest),
        version=row["version"],
        vantages=tuple(row.get("vantages", ())),
        listed_before=bool(row.get("listed_before", row.get("listed", False))),
        stability=Stability(**row["stability"]) if "stability" in row else Stability(),
        measured_ms=row.get("measured_ms", 0),
        plain_ms=row.get("plain_ms", 0),
        goods=row.get("goods", ""),
        bar=Bar(**row["bar"]) if "bar" in row else Bar(),
    )


def _read_result(row: Mapping[str, Any]) -> ProbeResult:
    return ProbeResult(
        **{
            **row,
            "failure": None if row.get("failure") is None else Failure(row["failure"]),
            "exit_country": Country(row["exit_country"]),
            "exit_ip_type": IpType(row["exit_ip_type"]),
        }
    )


def get_grade(table: str, device_id: DeviceId) -> DynamoRequest[Grade | None]:
    """The grade of one device."""
    return get_item(table, _pk(device_id), parse=read_grade)


def grade_key(device_id: DeviceId) -> tuple[str, str]:
    """Where a device's grade stands."""
    return _pk(device_id), "-"


def put_result(table: str, grade: Grade) -> DynamoRequest[bool]:
    """Write a grade that a result was added to, unless somebody wrote it since it was read. `listed` is not touched."""
    row = {
        "device_id": grade.device_id,
        "passes": grade.passes,
        "failures": grade.failures,
        "tier": grade.tier.value,
        "quarantined": grade.quarantined,
        "cut_short": grade.cut_short,
        "latest": asdict(grade.latest) if grade.latest else None,
        "version": grade.version + 1,
        "vantages": list(grade.vantages),
        "stability": asdict(grade.stability),
        "measured_ms": grade.measured_ms,
        "plain_ms": grade.plain_ms,
    }
    names = {f"#{n}": n for n, v in row.items() if v is not None} | {"#version": "version"}
    values = marshal({f":{n}": v for n, v in row.items() if v is not None} | {":before": grade.version})
    assignments = ", ".join(f"#{n} = :{n}" for n, v in row.items() if v is not None)
    return DynamoRequest(
        "update_item",
        {
            "TableName": table,
            "Key": {"pk": {"S": _pk(grade.device_id)}, "sk": {"S": "-"}},
            "UpdateExpression": f"SET {assignments}",
            "ConditionExpression": "attribute_not_exists(pk) OR #version = :before",
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
        },
        lambda _: True,
        lambda _: False,
    )


def set_bar(table: str, device_id: DeviceId, before: Bar, bar: Bar) -> DynamoRequest[Grade | None]:
    """Record that a device is off sale on customers' word. None when somebody else did since it was read."""
    return update(
        table,
        _pk(device_id),
        "-",
        "SET bar = :bar",
        {":bar": asdict(bar), ":before": asdict(before)},
        parse=read_grade,
        condition="attribute_exists(pk) AND (attribute_not_exists(bar) OR bar = :before)",
    )


# What is on sale


def goods_of(endpoint: Endpoint) -> str:
    """An endpoint as text, the same for equal ones."""
    return json.dumps({name: getattr(endpoint, name) for name in _GOODS}, separators=(",", ":"))


def read_goods(text: str) -> Endpoint:
    """The inverse of `goods_of`."""
    row = json.loads(text)
    return Endpoint(
        **{
            **row,
            "endpoint_id": EndpointId(row["endpoint_id"]),
            "account_id": AccountId(row["account_id"]),
            "country": Country(row["country"]),
            "pool": Pool(row["pool"]),
            "ip_type": IpType(row["ip_type"]),
            "tier": SpeedTier(row["tier"]),
        }
    )


def shelf_of(pool: Pool, device_id: str) -> str:
    """The part of the index that a device belongs to."""
    return _shelf(pool, hashlib.sha256(device_id.encode()).digest()[0] % SHELVES)


def _shelf(pool: Pool, number: int) -> str:
    return f"{pool.value}#{number:02d}"


def set_listed(table: str, endpoint: Endpoint) -> DynamoRequest[Grade | None]:
    """Record that a device is on sale as this endpoint. None when it stood so already."""
    device_id = DeviceId(endpoint.endpoint_id)
    return update(
        table,
        _pk(device_id),
        "-",
        "SET listed = :yes, listed_before = :yes, reason = :reason, shelf = :shelf, goods = :goods",
        {
            ":yes": True,
            ":reason": "listed",
            ":shelf": shelf_of(endpoint.pool, device_id),
            ":goods": goods_of(endpoint),
        },
        parse=read_grade,
        condition="attribute_exists(pk) AND (attribute_not_exists(listed) OR listed <> :yes OR goods <> :goods)",
    )


def set_unlisted(table: str, device_id: DeviceId, reason: str) -> DynamoRequest[Grade | None]:
    """Record that a device is not on sale, and why. None when it stood so already."""
    return update(
        table,
        _pk(device_id),
        "-",
        "SET listed = :no, reason = :reason REMOVE shelf, goods",
        {":no": False, ":reason": reason},
        parse=read_grade,
        condition="attribute_exists(pk) AND (attribute_not_exists(listed) OR listed <> :no OR reason <> :reason)",
    )


def on_shelf(
    table: str, pool: Pool, number: int, limit: int, start: Mapping[str, Any] | None
) -> DynamoRequest[Page[Endpoint]]:
    """One page of a part of the index: what is on sale there. It follows the rows within about a second."""
    return query(
        table,
        "shelf = :shelf",
        {":shelf": _shelf(pool, number)},
        parse=lambda row: read_goods(row["goods"]),
        limit=limit,
        index="by_shelf",
        start=start,
    )
