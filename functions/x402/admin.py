"""What an admin sees of the sale: payments that wait to be served, and those to give back. Looks are on record."""

from collections.abc import Callable
from typing import Any, Final, Literal

from fastapi import Request
from pydantic import BaseModel, Field

from functions.http import ProblemError, Routes, source_address
from functions.x402.wiring import Wiring
from shared.access.model import ApiKey, Scope
from shared.access.secrets import token_hash
from shared.access.table import find_api_key
from shared.guard.model import AuditEvent
from shared.guard.service import append_audit, write_audited
from shared.kernel.money import MicroUsdc, format_usdc
from shared.runtime.clock import now_ms
from shared.sale import owed_table
from shared.sale.owed_table import Owed, Refund, Unreadable

PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 100


class Decision(BaseModel):
    """What became of money that bought nothing."""

    state: Literal["refunded", "dismissed"]
    reference: str = Field(min_length=1, max_length=256)


def api_key_of(wiring: Wiring, request: Request, scope: Scope | None = None) -> ApiKey:
    """The calling API key, or 401; 403 when it lacks a scope."""
    text = request.headers.get("x-api-key", "")
    table = wiring.settings.table("access")
    found = wiring.dynamo.run(find_api_key(table, token_hash(text))) if text else None
    if found is None or found.has_ended(now_ms()):
        raise ProblemError(401, "API_KEY_INVALID", "send a valid API key in X-API-Key")
    if scope is not None and scope not in found.scopes:
        raise ProblemError(403, "SCOPE_MISSING", f"this API key lacks the scope {scope.value}")
    return found


def admins_event(w: Wiring, request: Request, action: str, **metadata: Any) -> AuditEvent:
    """What an admin does, for the record; 401 or 403 for anybody else."""
    by = api_key_of(w, request, Scope.ADMIN)
    return AuditEvent(
        f"acct#{by.account_id}",
        action,
        by.account_id,
        now_ms(),
        ip=source_address(request),
        request_id=request.state.request_id,
        auth_method="api_key",
        metadata=metadata,
    )


def recorded(w: Wiring, request: Request, action: str, **metadata: Any) -> None:
    """Put what an admin does on record; 401 or 403 for anybody else."""
    append_audit(w.dynamo, w.settings.table("audit"), admins_event(w, request, action, **metadata))


def router(wiring: Callable[[], Wiring]) -> Routes:
    """The routes."""
    routes = Routes(prefix="/v1/x402/admin")

    def record(request: Request, action: str, **metadata: Any) -> None:
        recorded(wiring(), request, action, **metadata)

    @routes.get("/owed")
    def owed(request: Request, limit: int = PAGE_DEFAULT, after: str = "") -> dict[str, Any]:
        record(request, "owed_list", after=after)
        w = wiring()
        page = w.dynamo.run(
            owed_table.all_owed(w.settings.table("sales"), _bounded(limit), _start("owed", after))
        )
        return {"owed": [_owed(row) for row in page.rows], "next": _next(page.next_key)}

    @routes.get("/refunds")
    def refunds(
        request: Request, limit: int = PAGE_DEFAULT, after: str = "", state: str = ""
    ) -> dict[str, Any]:
        """The list by pages; with `state` only those of a page that stand so, so a page may have fewer rows."""
        record(request, "refund_list", after=after)
        w = wiring()
        page = w.dynamo.run(
            owed_table.refunds(w.settings.table("sales"), _bounded(limit), _start("refund", after))
        )
        found = [_refund(row) for row in page.rows if state in {"", row.state}]
        return {"refunds": found, "next": _next(page.next_key)}

    @routes.post("/refunds/{network}/{key}")
    def decide(request: Request, network: str, key: str, body: Decision) -> dict[str, Any]:
        w = wiring()
        facts = {"network": network, "key": key, "reference": body.reference}
        event = admins_event(w, request, f"refund_{body.state}", **facts)
        table, words = w.settings.table("sales"), f"{body.reference} ({event.actor})"
        items = [owed_table.decide_item(table, network, key, body.state, words)]
        if write_audited(w.dynamo, w.settings.table("audit"), event, items) is not None:
            raise ProblemError(409, "NOT_OPEN", "there is no such refund, or it was decided or served")
        found = w.dynamo.run(owed_table.get_refund(table, network, key))
        if found is None:
            raise ProblemError(409, "NOT_OPEN", "there is no such refund, or it was decided or served")
        return _refund(found)

    return routes


def _bounded(limit: int) -> int:
    if not 0 < limit <= PAGE_MAX:
        raise ProblemError(400, "INVALID_FIELD", f"limit: 1 to {PAGE_MAX}")
    return limit


def _start(partition: str, after: str) -> dict[str, Any] | None:
    return {"pk": {"S": partition}, "sk": {"S": after}} if after else None


def _next(key: Any) -> str | None:
    return str(key["sk"]["S"]) if key else None


def _owed(row: Owed | Unreadable) -> dict[str, Any]:
    if isinstance(row, Unreadable):
        network, _, key = row.where.partition("#")
        return {"network": network, "key": key, "unreadable": row.fault}
    return {
        "network": row.network,
        "key": row.key,
        "txHash": row.tx_hash,
        "product": row.order.product.value,
        "dueUSDC": format_usdc(MicroUsdc(row.order.due_micro)),
        "since": row.seen_at_ms,
        "tries": row.tries,
    }


def _refund(row: Refund) -> dict[str, Any]:
    return {
        "network": row.network,
        "key": row.key,
        "txHash": row.tx_hash,
        "payer": row.payer,
        "amountUSDC": format_usdc(MicroUsdc(row.amount_micro)),
        "reason": row.reason,
        "at": row.at_ms,
        "state": row.state,
        "decided": row.decided,
    }
