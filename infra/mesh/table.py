"""The table `mesh`: one row per node, one per claimed address. Requests built and answers parsed purely.

`node#<role>` / `<node>` is the row; `address#<address>` / `-` says whose an address is: it is written once, in one
transaction with the row, so no two nodes ever have the same one. Peers are read with one query by role, never a scan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any, Final

from infra.mesh.config import endpoint, mesh_key
from infra.mesh.model import Node, Role
from infra.mesh.rules import MESH
from shared.runtime.dynamo import (
    Conflict,
    DynamoRequest,
    Item,
    Page,
    get_item,
    key,
    marshal_value,
    query,
    transact,
    transact_put,
    transact_update,
    update,
)

PAGE_ROWS: Final = 500
REMOVED_KEPT_S: Final = 3600
"""How long a row says that its node was removed: every peer has read it long before."""


def register(table: str, node: Node) -> DynamoRequest[Conflict | None]:
    """Claim the node's address and write its row; both or none. A conflict at 0 is the address, at 1 the row."""
    claim = {"pk": f"address#{node.address}", "sk": "-", "node": node.node_id}
    return transact([transact_put(table, claim), transact_put(table, to_row(node))])


def publish(table: str, node: Node) -> DynamoRequest[Node | None]:
    """Write what a node says of itself, its heartbeat too; None when the row is gone, removed or has another address."""
    row = to_row(node)
    fields = [name for name in row if name not in {"pk", "sk", "address", "removed"}]
    return update(
        table,
        row["pk"],
        row["sk"],
        "SET " + ", ".join(f"#{name} = :{name}" for name in fields),
        {f":{name}": row[name] for name in fields} | {":address": row["address"], ":no": False},
        parse=from_row,
        condition="#address = :address AND #removed = :no",
        names={f"#{name}": name for name in [*fields, "address", "removed"]},
    )


def read_node(table: str, role: Role, node_id: str) -> DynamoRequest[Node | None]:
    """One row. Parsing raises ValueError when it is not one of ours."""
    return get_item(table, f"node#{role}", node_id, parse=from_row)


def read_role(
    table: str, role: Role, start: Mapping[str, Any] | None = None
) -> DynamoRequest[Page[Node | None]]:
    """A page of a role's nodes. A row that cannot be understood is None: one bad row must not stop the mesh."""
    return query(table, "pk = :pk", {":pk": f"node#{role}"}, parse=_row_or_none, limit=PAGE_ROWS, start=start)


def remove(table: str, node: Node, now_ms: int) -> DynamoRequest[Conflict | None]:
    """Say that a node is removed, and free its address. Peers drop it at once; the row expires by itself."""
    said = transact_update(
        table,
        f"node#{node.role}",
        node.node_id,
        "SET #removed = :yes, #ttl = :ttl",
        {":yes": True, ":ttl": now_ms // 1000 + REMOVED_KEPT_S, ":address": str(node.address)},
        condition="#address = :address",
        names={"#removed": "removed", "#ttl": "ttl", "#address": "address"},
    )
    return transact([said, _free(table, node)])


def forget(table: str, node: Node) -> DynamoRequest[Conflict | None]:
    """Delete a dead node's row and free its address, unless it spoke meanwhile."""
    gone = {
        "TableName": table,
        "Key": key(f"node#{node.role}", node.node_id),
        "ConditionExpression": "heartbeat_ms = :seen",
        "ExpressionAttributeValues": {":seen": marshal_value(node.heartbeat_ms)},
    }
    return transact([{"Delete": gone}, _free(table, node)])


def _free(table: str, node: Node) -> Mapping[str, Any]:
    return {
        "Delete": {
            "TableName": table,
            "Key": key(f"address#{node.address}"),
            "ConditionExpression": "attribute_not_exists(pk) OR #node = :node",
            "ExpressionAttributeNames": {"#node": "node"},
            "ExpressionAttributeValues": {":node": marshal_value(node.node_id)},
        }
    }


def to_row(node: Node) -> dict[str, Any]:
    """A node as its row."""
    return {
        "pk": f"node#{node.role}",
        "sk": node.node_id,
        "region": node.region,
        "address": str(node.address),
        "endpoint": node.endpoint,
        "inner_endpoint": node.inner_endpoint or "",
        "key": node.key,
        "next_key": node.next_key or "",
        "awaits": sorted(node.awaits),
        "heartbeat_ms": node.heartbeat_ms,
        "removed": node.removed,
    }


def from_row(row: Item) -> Node:
    """A row as a node. Raises ValueError for whatever could not stand in a configuration."""
    try:
        found = Node(
            node_id=str(row["sk"]),
            role=Role(row["pk"].removeprefix("node#")),
            region=str(row["region"]),
            address=IPv4Address(row["address"]),
            endpoint=endpoint(row["endpoint"]),
            inner_endpoint=endpoint(row["inner_endpoint"]) if row["inner_endpoint"] else None,
            key=mesh_key(row["key"]),
            next_key=mesh_key(row["next_key"]) if row["next_key"] else None,
            awaits=frozenset(mesh_key(text) for text in row["awaits"]),
            heartbeat_ms=int(row["heartbeat_ms"]),
            removed=bool(row["removed"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a node's row: {type(error).__name__}") from None
    if found.address not in MESH:
        raise ValueError("a node's address is outside the mesh")
    return found if found.next_key != found.key else replace(found, next_key=None)


def _row_or_none(row: Item) -> Node | None:
    try:
        return from_row(row)
    except ValueError:
        return None
