"""Grades in DynamoDB: one row per device. The prober writes results, the list job writes `listed`."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from shared.grading.model import Failure, Grade, ProbeResult
from shared.kernel.codes import IpType, SpeedTier
from shared.kernel.ids import Country, DeviceId
from shared.runtime.dynamo import DynamoRequest, Item, Page, get_item, marshal, scan, update


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
        reason=row.get("reason", "not_probed"),
        latest=None if latest is None else _read_result(latest),
        version=row["version"],
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


def all_grades(table: str, limit: int, start: Mapping[str, Any] | None) -> DynamoRequest[Page[Grade]]:
    """One page of all grades."""
    return scan(table, "grade#", parse=read_grade, limit=limit, start=start)


def put_result(table: str, grade: Grade) -> DynamoRequest[bool]:
    """Write a grade that a result was added to, unless somebody wrote it since it was read. `listed` is not touched."""
    latest = asdict(grade.latest) if grade.latest else None
    row = {
        "device_id": grade.device_id,
        "passes": grade.passes,
        "failures": grade.failures,
        "tier": grade.tier.value,
        "quarantined": grade.quarantined,
        "latest": latest,
        "version": grade.version + 1,
    }
    names = {f"#{n}": n for n in row}
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


def set_listed(table: str, device_id: DeviceId, *, listed: bool, reason: str) -> DynamoRequest[Grade | None]:
    """Record that a device went on or off sale, and why. None when it stood so already."""
    return update(
        table,
        _pk(device_id),
        "-",
        "SET listed = :listed, reason = :reason",
        {":listed": listed, ":reason": reason},
        parse=read_grade,
        condition="attribute_exists(pk) AND (attribute_not_exists(listed) OR listed <> :listed OR reason <> :reason)",
    )
