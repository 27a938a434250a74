"""`./psx restore STAGE TABLE --rows PREFIX`: bring back rows that are missing, from a restored copy of a table.

The copy is `psx-<stage>-<table>-restored`, made by point-in-time recovery (docs/operations/restore.md). A row that stands
is never overwritten, and which rows may come back at all is said by `MAY`: a deleted credential must not return because
somebody mends something else, so the operator names the rows by the beginning of their key. Without `--write` it only says
what it would do. Leaves out rows that were altered and not lost: that is a decision for each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import boto3
import botocore.exceptions

MAY: Final[Mapping[str, Callable[[Mapping[str, Any]], bool]]] = {
    "access": lambda row: True,
    "devices": lambda row: True,
    "grades": lambda row: True,
    "guard": lambda row: True,
    "sales": lambda row: row["pk"]["S"].startswith(("claim#", "payname#")),
    "usage": lambda row: "pending" in row,
}
"""Table -> which rows may be copied back where they are missing. Ledger and audit never: they are corrected."""


class RestoreRefused(Exception):
    """What was asked must not be done; the message says why."""


def missing_rows(client: Any, table: str, restored: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Rows of the restored table whose keys begin so and that are not in the table."""
    pages = client.get_paginator("scan").paginate(
        TableName=restored,
        FilterExpression="begins_with(pk, :prefix)",
        ExpressionAttributeValues={":prefix": {"S": prefix}},
    )
    for page in pages:
        for row in page["Items"]:
            found = client.get_item(
                TableName=table, Key={"pk": row["pk"], "sk": row["sk"]}, ConsistentRead=True
            )
            if "Item" not in found:
                yield row


def put_back(client: Any, table: str, row: Mapping[str, Any]) -> bool:
    """Write one row unless it stands by now; answers whether it was written."""
    try:
        client.put_item(TableName=table, Item=row, ConditionExpression="attribute_not_exists(pk)")
    except client.exceptions.ConditionalCheckFailedException:
        return False
    return True


def restore(stage: str, table: str, prefix: str, *, write: bool, client: Any = None) -> int:
    """Run the command; answers the exit status. Only keys are printed."""
    client = client or boto3.client("dynamodb")
    name = f"psx-{stage}-{table}"
    try:
        if table not in MAY:
            raise RestoreRefused(f"rows of {table} are never copied back: see docs/operations/restore.md")
        for row in missing_rows(client, name, f"{name}-restored", prefix):
            key = f"{row['pk']['S']} / {row['sk']['S']}"
            if not MAY[table](row):
                raise RestoreRefused(f"{key}: rows of this kind are never copied back")
            done = write and put_back(client, name, row)
            sys.stdout.write(f"{'written' if done else 'missing'} {key}\n")
    except RestoreRefused as refused:
        sys.stderr.write(f"psx: {refused}\n")
        return 2
    except botocore.exceptions.ClientError as error:
        sys.stderr.write(f"psx: {name}: {error.response['Error']['Code']}\n")
        return 2
    return 0
