"""The guard's rows: switch, loop counts, settings, incidents, and the append-only audit."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final, TypeVar

from shared.guard.model import AuditEntry, AuditEvent, Incident, Switch, Versions
from shared.runtime.dynamo import (
    DynamoRequest,
    Item,
    Page,
    TransactItem,
    get_item,
    marshal,
    marshal_value,
    put,
    put_if,
    put_new,
    query,
    transact,
    transact_put,
    update,
)

T = TypeVar("T")
LOOP_ROW_KEPT_S: Final = 7200
AUDIT_KEPT_S: Final = 90 * 86_400
INCIDENT_KEPT_S: Final = 90 * 86_400
INCIDENTS_PAGE: Final = 500
AUDIT_PAGE_MAX: Final = 100
AUDIT_EXPIRING: Final = ("pak#", "auth#", "dev#")
"""Streams whose events go after `AUDIT_KEPT_S`. What accounts, admins and loops did stays."""


def read_switch(table: str) -> DynamoRequest[Switch]:
    """The kill switch; off when it was never touched."""
    asked = get_item(
        table,
        "switch",
        parse=lambda r: Switch(r["stopped"], r.get("reason", ""), r.get("by", ""), r["at_ms"]),
    )
    return DynamoRequest(asked.operation, asked.params, lambda a: asked.parse(a) or Switch())


def set_switch(table: str, switch: Switch) -> DynamoRequest[None]:
    """Turn the kill switch. On its own: stopping waits for no other row, not even that of its event."""
    return put(table, {"pk": "switch", "sk": "-", **asdict(switch)})


def count_loop(table: str, loop: str, period: str, at_ms: int) -> DynamoRequest[int]:
    """Count a run of a loop in a period (`minute#…` or `hour#…`); answers the count, this run included."""
    asked = update(
        table,
        f"loop#{loop}",
        period,
        "ADD runs :one SET #ttl = :ttl",
        {":one": 1, ":ttl": at_ms // 1000 + LOOP_ROW_KEPT_S},
        parse=lambda r: int(r["runs"]),
        names={"#ttl": "ttl"},
    )
    return DynamoRequest(asked.operation, asked.params, lambda a: asked.parse(a) or 0)


def read_setting(table: str, name: str) -> DynamoRequest[dict[str, Any] | None]:
    """A live setting; None when nobody set it."""
    return get_item(table, f"setting#{name}", parse=lambda r: dict(r["value"]))


def write_setting(table: str, name: str, value: Mapping[str, Any], at_ms: int) -> DynamoRequest[None]:
    """Set a live setting."""
    return put(table, {"pk": f"setting#{name}", "sk": "-", "value": dict(value), "at_ms": at_ms})


def read_versions(table: str, name: str) -> DynamoRequest[Versions | None]:
    """A live setting with what it said before, for as long as that is to be honoured; None when nobody set it."""

    def parse(row: Item) -> Versions:
        before = tuple((dict(b["value"]), int(b["until_ms"])) for b in row.get("before", ()))
        return Versions(dict(row["value"]), int(row["at_ms"]), before)

    return get_item(table, f"setting#{name}", parse=parse)


def replace_setting(
    table: str, name: str, value: Mapping[str, Any], at_ms: int, known: Versions | None, until_ms: int
) -> TransactItem:
    """Another value for a setting that is still as it was read; what it said until now is honoured until `until_ms`."""
    was = known or Versions({}, 0)
    kept = [(v, until) for v, until in ((was.value, until_ms), *was.before) if until > at_ms]
    row: dict[str, object] = {
        "pk": f"setting#{name}",
        "sk": "-",
        "value": dict(value),
        "at_ms": max(at_ms, was.at_ms + 1),
        "before": [{"value": v, "until_ms": until} for v, until in kept],
    }
    if known is None:
        return transact_put(table, row)
    return {
        "Put": {
            "TableName": table,
            "Item": marshal(row),
            "ConditionExpression": "at_ms = :read",
            "ExpressionAttributeValues": {":read": marshal_value(known.at_ms)},
        }
    }


def set_entry(
    table: str, name: str, entry: str, value: Mapping[str, Any] | None, at_ms: int
) -> DynamoRequest[dict[str, Any] | None]:
    """Set one entry of a live setting, or remove it (None); None when the setting does not exist yet."""
    return update(
        table,
        f"setting#{name}",
        "-",
        "SET at_ms = :at" + (", #v.#e = :entry" if value is not None else " REMOVE #v.#e"),
        {":at": at_ms} | ({":entry": dict(value)} if value is not None else {}),
        parse=lambda r: dict(r["value"]),
        condition="attribute_exists(pk)",
        names={"#v": "value", "#e": entry},
    )


def begin_setting(table: str, name: str, at_ms: int) -> DynamoRequest[bool]:
    """An empty live setting, unless it exists."""
    return put_new(table, {"pk": f"setting#{name}", "sk": "-", "value": {}, "at_ms": at_ms})


def open_incident(table: str, incident: Incident) -> DynamoRequest[bool]:
    """Record that something is wrong; False when that stands already. One row for each name, with its latest time."""
    row = {"pk": "incident", "sk": incident.name, **asdict(incident)}
    return put_if(table, row, "attribute_not_exists(pk) OR attribute_exists(closed_at_ms)")


def close_incident(
    table: str, name: str, at_ms: int, opened_at_ms: int | None = None
) -> DynamoRequest[object]:
    """What was wrong is right again; None when it was closed before, or never opened, or not at that time."""
    same = "" if opened_at_ms is None else " AND opened_at_ms = :opened"
    values = {":at": at_ms, ":ttl": at_ms // 1000 + INCIDENT_KEPT_S}
    return update(
        table,
        "incident",
        name,
        "SET closed_at_ms = :at, #ttl = :ttl",
        values if opened_at_ms is None else values | {":opened": opened_at_ms},
        parse=lambda row: row["closed_at_ms"],
        condition="attribute_exists(pk) AND attribute_not_exists(closed_at_ms)" + same,
        names={"#ttl": "ttl"},
    )


def _read_incident(row: Item) -> Incident:
    return Incident(
        str(row.get("name") or row["sk"]),
        row["kind"],
        row["message"],
        row["opened_at_ms"],
        row.get("closed_at_ms"),
    )


def get_incident(table: str, name: str) -> DynamoRequest[Incident | None]:
    """The latest time that something was wrong."""
    return get_item(table, "incident", name, parse=_read_incident)


def incidents(table: str, start: Mapping[str, Any] | None = None) -> DynamoRequest[Page[Incident]]:
    """A page of all that stand and of those that were closed within 90 days, in no order of time."""
    values = {":pk": "incident"}
    return query(table, "pk = :pk", values, parse=_read_incident, limit=INCIDENTS_PAGE, start=start)


# Audit


def _read_entry(row: Item) -> AuditEntry:
    return AuditEntry(AuditEvent(**row["event"]), int(row["sk"]), row["previous"], row["digest"])


def entry_items(table: str, entry: AuditEntry, account: str = "") -> list[TransactItem]:
    """An entry, and its copy in an account's log; the first item fails when its place in the stream is taken."""
    ttl = entry.event.at_ms // 1000 + AUDIT_KEPT_S
    row = {
        "pk": entry.event.stream,
        "sk": f"{entry.sequence:012d}",
        "ttl": ttl if entry.event.stream.startswith(AUDIT_EXPIRING) else None,
        "event": {**asdict(entry.event), "metadata": dict(entry.event.metadata)},
        "previous": entry.previous,
        "digest": entry.digest,
    }
    if not account:
        return [transact_put(table, row)]
    place = f"{entry.event.at_ms:013d}#{entry.event.stream}#{entry.sequence:012d}"
    copy = {**row, "pk": f"log#{account}", "sk": place, "sequence": entry.sequence, "ttl": ttl}
    return [transact_put(table, row), transact_put(table, copy, new=False)]


def append_entry(table: str, entry: AuditEntry, account: str = "") -> DynamoRequest[bool]:
    """Append an entry on its own; False when its place in the stream is taken."""
    items = entry_items(table, entry, account)
    if len(items) == 1:
        return DynamoRequest("put_item", items[0]["Put"], lambda _: True, lambda _: False)
    asked = transact(items)
    return DynamoRequest(asked.operation, asked.params, lambda _: True, lambda _: False)


def account_log(
    table: str, account: str, limit: int, before: str = ""
) -> DynamoRequest[Page[tuple[str, AuditEntry]]]:
    """(place, entry) of all streams that belong to an account, newest first; `before` is a place to go on from."""

    def parse(row: Item) -> tuple[str, AuditEntry]:
        return row["sk"], AuditEntry(
            AuditEvent(**row["event"]), row["sequence"], row["previous"], row["digest"]
        )

    condition, values = "pk = :pk", {":pk": f"log#{account}"}
    if before:
        condition, values = "pk = :pk AND sk < :before", {**values, ":before": before}
    return query(table, condition, values, parse=parse, limit=min(limit, AUDIT_PAGE_MAX), forward=False)


def newest_entry(table: str, stream: str) -> DynamoRequest[AuditEntry | None]:
    """The last entry of a stream."""
    asked = query(table, "pk = :pk", {":pk": stream}, parse=_read_entry, limit=1, forward=False)
    return DynamoRequest(asked.operation, asked.params, lambda a: (*asked.parse(a).rows, None)[0])


def entries(
    table: str, stream: str, limit: int, *, before: int | None = None, forward: bool = False
) -> DynamoRequest[Page[AuditEntry]]:
    """Entries of a stream, newest first unless `forward`; `before` is the sequence to go on from."""
    limit = min(limit, AUDIT_PAGE_MAX)
    if before is None:
        return query(table, "pk = :pk", {":pk": stream}, parse=_read_entry, limit=limit, forward=forward)
    values = {":pk": stream, ":before": f"{before:012d}"}
    return query(table, "pk = :pk AND sk < :before", values, parse=_read_entry, limit=limit, forward=forward)
