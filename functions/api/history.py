"""What happened to keys: writing it down from a request, and reading it back, newest first, filtered and paged."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from fastapi import Request

from functions.api.audit import USER_AGENT_MAX_CHARS, told
from functions.api.wiring import Wiring
from functions.http import ProblemError, source_address
from shared.access.model import ApiKey, Pak
from shared.guard.model import AuditEntry, AuditEvent
from shared.guard.service import append_audit, write_audited
from shared.guard.table import AUDIT_KEPT_S, AUDIT_PAGE_MAX, account_log, entries
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import Conflict, TransactItem

PAGES_MAX: Final = 10
"""How far a filter looks in one request; an answer that is short says where to go on."""
ACTIONS: Final = frozenset(
    {
        "create",
        "update",
        "topup",
        "regenerate",
        "reveal",
        "delete",
        "gateway_auth_success",
        "gateway_auth_failure",
        "auto_suspended_cap_exceeded",
        "auto_suspended_expired",
    }
)


def _event(request: Request, key: ApiKey, stream: str, action: str, facts: dict[str, Any]) -> AuditEvent:
    return AuditEvent(
        stream,
        action,
        key.person or key.account_id,
        now_ms(),
        ip=source_address(request),
        user_agent=request.headers.get("user-agent", "")[:USER_AGENT_MAX_CHARS],
        request_id=request.state.request_id,
        auth_method="password" if key.person else "api_key",
        metadata=facts,
    )


def record_of_key(w: Wiring, request: Request, key: ApiKey, pak: Pak, action: str, **facts: Any) -> None:
    """Append to a key's history, and to its account's log: for what changes nothing, before it is answered."""
    event = _event(request, key, f"pak#{pak.pak_id}", action, facts)
    append_audit(w.dynamo, w.settings.table("audit"), event, account=pak.account_id)
    told(request)


def write_of_key(
    w: Wiring,
    request: Request,
    key: ApiKey,
    pak: Pak,
    action: str,
    items: Sequence[TransactItem],
    *,
    begins: bool = False,
    **facts: Any,
) -> Conflict | None:
    """Write a change of a key together with its event; None when both stand, else which items failed."""
    event = _event(request, key, f"pak#{pak.pak_id}", action, facts)
    table = w.settings.table("audit")
    conflict = write_audited(w.dynamo, table, event, items, pak.account_id, begins=begins)
    if conflict is None:
        told(request)
    return conflict


def record_of_account(w: Wiring, request: Request, by: ApiKey, action: str, **facts: Any) -> None:
    """Append to the history of the account that acts."""
    event = _event(request, by, f"acct#{by.account_id}", action, facts)
    append_audit(w.dynamo, w.settings.table("audit"), event)
    told(request)


def write_of_account(
    w: Wiring, request: Request, by: ApiKey, action: str, items: Sequence[TransactItem], **facts: Any
) -> Conflict | None:
    """Write what an account does together with its event; None when both stand, else which items failed."""
    event = _event(request, by, f"acct#{by.account_id}", action, facts)
    conflict = write_audited(w.dynamo, w.settings.table("audit"), event, items)
    if conflict is None:
        told(request)
    return conflict


def shown(entry: AuditEntry, ident: int | str) -> dict[str, Any]:
    """An event as the contract has it."""
    event = entry.event
    return {
        "id": ident,
        "pakId": event.stream.removeprefix("pak#") if event.stream.startswith("pak#") else None,
        "action": event.action,
        "ip": event.ip,
        "userAgent": event.user_agent,
        "requestId": event.request_id,
        "authMethod": event.auth_method,
        "metadata": dict(event.metadata),
        "createdAt": event.at_ms,
    }


def checked_action(action: str) -> str:
    """An action to filter by, or 400."""
    if action and action not in ACTIONS:
        raise ProblemError(400, "INVALID_FIELD", f"action: one of {', '.join(sorted(ACTIONS))}")
    return action


def _filtered(
    read: Callable[[Any], Iterable[tuple[Any, AuditEntry]]], before: Any, action: str, limit: int
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    oldest_ms = now_ms() - AUDIT_KEPT_S * 1000  # the store takes its time to delete what has expired
    for _ in range(PAGES_MAX if action else 1):
        rows = list(read(before))
        found += [
            shown(entry, ident)
            for ident, entry in rows
            if entry.event.at_ms > oldest_ms and (not action or entry.event.action == action)
        ]
        if len(rows) < AUDIT_PAGE_MAX or len(found) >= limit:
            break
        before = rows[-1][0]
    return found[:limit]


def of_key(w: Wiring, pak: Pak, action: str, before: int | None, limit: int) -> list[dict[str, Any]]:
    """A key's events; `before` is the id of the last one seen."""
    table, bound = w.settings.table("audit"), max(1, min(limit, AUDIT_PAGE_MAX))
    page = AUDIT_PAGE_MAX if action else bound

    def read(start: int | None) -> list[tuple[int, AuditEntry]]:
        rows = w.dynamo.run(entries(table, f"pak#{pak.pak_id}", page, before=start)).rows
        return [(entry.sequence, entry) for entry in rows]

    return _filtered(read, before, checked_action(action), bound)


def of_account(w: Wiring, key: ApiKey, action: str, before: str, limit: int) -> list[dict[str, Any]]:
    """Events of all keys of an account; `before` is the id of the last one seen, or a unix time in ms."""
    table, bound = w.settings.table("audit"), max(1, min(limit, AUDIT_PAGE_MAX))
    page = AUDIT_PAGE_MAX if action else bound
    start = f"{int(before):013d}" if re.fullmatch(r"[0-9]{1,13}", before) else before

    def read(place: str) -> tuple[tuple[str, AuditEntry], ...]:
        return w.dynamo.run(account_log(table, key.account_id, page, place)).rows

    return _filtered(read, start, checked_action(action), bound)
