"""The guard in use: enter a loop or be told why not, append to the audit, read live settings for a few seconds."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from shared.guard import table as rows
from shared.guard.model import AuditEntry, AuditEvent, Incident, Refused, Versions
from shared.guard.rules import GENESIS, LOOP_LIMITS, chain, may_run
from shared.runtime.dynamo import (
    AsyncDynamo,
    Conflict,
    Contended,
    DynamoRequest,
    RunsDynamo,
    TransactItem,
    answered_by,
    as_items,
    refused_by,
    transact,
)

T = TypeVar("T")
APPEND_ATTEMPTS_MAX: Final = 32
"""Each attempt that fails is another writer's entry, so this many may write to one stream at once."""
INCIDENTS_MAX: Final = 20_000
SETTINGS_TTL_MS: Final = 5_000
_UNSET: Final = Versions({}, 0)


class AuditContended(Contended):
    """Too many writers appended to one stream at once; nothing was written."""


def enter_loop(dynamo: RunsDynamo, guard_table: str, loop: str, now_ms: int) -> Refused | None:
    """Count a run of an autonomous loop and say whether it may go on; None when it may."""
    switch = dynamo.run(rows.read_switch(guard_table))
    minute = dynamo.run(rows.count_loop(guard_table, loop, f"minute#{now_ms // 60_000}", now_ms))
    hour = dynamo.run(rows.count_loop(guard_table, loop, f"hour#{now_ms // 3_600_000}", now_ms))
    return may_run(switch, minute, hour, LOOP_LIMITS[loop])


def all_incidents(dynamo: RunsDynamo, guard_table: str) -> list[Incident]:
    """What is wrong, and behind that what was within the last 90 days; the newest first."""
    found: list[Incident] = []
    start: Any = None
    while len(found) < INCIDENTS_MAX:
        page = dynamo.run(rows.incidents(guard_table, start))
        found += page.rows
        start = page.next_key
        if start is None:
            break
    return sorted(found, key=lambda i: (i.closed_at_ms is not None, -i.opened_at_ms))


def standing_incidents(dynamo: RunsDynamo, guard_table: str) -> list[Incident]:
    """What is wrong now, the newest first."""
    return [i for i in all_incidents(dynamo, guard_table) if i.closed_at_ms is None]


def append_audit(dynamo: RunsDynamo, audit_table: str, event: AuditEvent, account: str = "") -> None:
    """Append to the event's stream, and to the log of the account that it concerns.

    Raises AuditContended when other writers keep taking the next place.
    """
    for _ in range(APPEND_ATTEMPTS_MAX):
        tail = dynamo.run(rows.newest_entry(audit_table, event.stream))
        entry = chain(event, tail.sequence + 1, tail.digest) if tail else chain(event, 0, GENESIS)
        if dynamo.run(rows.append_entry(audit_table, entry, account)):
            return
    raise AuditContended("audit: contended")


def write_audited(
    dynamo: RunsDynamo,
    audit_table: str,
    event: AuditEvent,
    items: Sequence[TransactItem],
    account: str = "",
    *,
    begins: bool = False,
    attempts: int = APPEND_ATTEMPTS_MAX,
) -> Conflict | None:
    """Write `items` and the event that tells of them in one transaction: neither stands without the other.

    None when it is written, else which of `items` failed. `begins`: the stream is new, so that nothing is read first.
    Raises AuditContended when other writers keep taking the next place or hold the items' rows, and StoreUnavailable.
    """
    for _ in range(attempts):
        tail = None if begins else dynamo.run(rows.newest_entry(audit_table, event.stream))
        begins = False
        with contextlib.suppress(Contended):
            conflict = dynamo.run(_with_event(audit_table, event, tail, items, account))
            if conflict is None or (failed := _of_items(conflict, items)):
                return None if conflict is None else Conflict(failed)
    raise AuditContended("audit: contended")


def run_audited(
    dynamo: RunsDynamo,
    audit_table: str,
    event: AuditEvent,
    write: DynamoRequest[T],
    beside: Sequence[TransactItem] = (),
) -> T:
    """Run one write as the executor would, in one transaction with its event and with what belongs `beside` it.

    Raises AuditContended and StoreUnavailable.
    """
    conflict = write_audited(dynamo, audit_table, event, [*as_items(write), *beside])
    return answered_by(dynamo.run, write) if conflict is None else refused_by(write, conflict)


async def write_audited_async(
    dynamo: AsyncDynamo,
    audit_table: str,
    event: AuditEvent,
    items: Sequence[TransactItem],
    account: str = "",
) -> Conflict | None:
    """`write_audited` for the nodes."""
    for _ in range(APPEND_ATTEMPTS_MAX):
        tail = await dynamo.run(rows.newest_entry(audit_table, event.stream))
        with contextlib.suppress(Contended):
            conflict = await dynamo.run(_with_event(audit_table, event, tail, items, account))
            if conflict is None or (failed := _of_items(conflict, items)):
                return None if conflict is None else Conflict(failed)
    raise AuditContended("audit: contended")


def _with_event(
    table: str, event: AuditEvent, tail: AuditEntry | None, items: Sequence[TransactItem], account: str
) -> DynamoRequest[Conflict | None]:
    return transact([*items, *event_items(table, event, tail, account)])


def event_items(
    table: str, event: AuditEvent, tail: AuditEntry | None, account: str = ""
) -> list[TransactItem]:
    """An event behind the last entry of its stream, for a transaction; the first item fails when there is a later one."""
    entry = chain(event, tail.sequence + 1, tail.digest) if tail else chain(event, 0, GENESIS)
    return rows.entry_items(table, entry, account)


def _of_items(conflict: Conflict, items: Sequence[TransactItem]) -> tuple[int, ...]:
    """Which of the caller's own items failed; none when only the event's place was taken."""
    return tuple(index for index in conflict.failed if index < len(items))


async def append_audit_async(
    dynamo: AsyncDynamo, audit_table: str, event: AuditEvent, account: str = ""
) -> None:
    """`append_audit` for the nodes."""
    for _ in range(APPEND_ATTEMPTS_MAX):
        tail = await dynamo.run(rows.newest_entry(audit_table, event.stream))
        entry = chain(event, tail.sequence + 1, tail.digest) if tail else chain(event, 0, GENESIS)
        if await dynamo.run(rows.append_entry(audit_table, entry, account)):
            return
    raise AuditContended("audit: contended")


class LiveSettings:
    """Settings rows, read at most every few seconds. A setting that nobody wrote is an empty dict."""

    def __init__(self, dynamo: RunsDynamo, guard_table: str, now_ms: Callable[[], int]) -> None:
        self._dynamo = dynamo
        self._table = guard_table
        self._now_ms = now_ms
        self._kept: dict[str, tuple[int, Versions]] = {}

    def get(self, name: str) -> dict[str, Any]:
        """The value of a setting, at most `SETTINGS_TTL_MS` old."""
        return self._read(name).value

    def versions(self, name: str) -> tuple[dict[str, Any], ...]:
        """The same, and after it what it said before to those who were promised that it would hold."""
        return self._read(name).in_force(self._now_ms())

    def _read(self, name: str) -> Versions:
        now = self._now_ms()
        kept = self._kept.get(name)
        if kept is not None and now - kept[0] < SETTINGS_TTL_MS:
            return kept[1]
        found = self._dynamo.run(rows.read_versions(self._table, name)) or _UNSET
        self._kept[name] = (now, found)
        return found
