"""The guard in use: enter a loop or be told why not, append to the audit, read live settings for a few seconds."""

from collections.abc import Callable
from typing import Any, Final

from shared.guard import table as rows
from shared.guard.model import AuditEvent, Refused
from shared.guard.rules import GENESIS, LOOP_LIMITS, chain, may_run
from shared.runtime.dynamo import AsyncDynamo, RunsDynamo, StoreUnavailable

APPEND_ATTEMPTS_MAX: Final = 8
SETTINGS_TTL_MS: Final = 5_000


class AuditContended(StoreUnavailable):
    """Too many writers appended to one stream at once."""


def enter_loop(dynamo: RunsDynamo, guard_table: str, loop: str, now_ms: int) -> Refused | None:
    """Count a run of an autonomous loop and say whether it may go on; None when it may."""
    switch = dynamo.run(rows.read_switch(guard_table))
    minute = dynamo.run(rows.count_loop(guard_table, loop, f"minute#{now_ms // 60_000}", now_ms))
    hour = dynamo.run(rows.count_loop(guard_table, loop, f"hour#{now_ms // 3_600_000}", now_ms))
    return may_run(switch, minute, hour, LOOP_LIMITS[loop])


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
        self._kept: dict[str, tuple[int, dict[str, Any]]] = {}

    def get(self, name: str) -> dict[str, Any]:
        """The value of a setting, at most `SETTINGS_TTL_MS` old."""
        now = self._now_ms()
        kept = self._kept.get(name)
        if kept is not None and now - kept[0] < SETTINGS_TTL_MS:
            return kept[1]
        value = self._dynamo.run(rows.read_setting(self._table, name)) or {}
        self._kept[name] = (now, value)
        return value
