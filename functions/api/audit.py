"""The net under the audit: a write that succeeded and left no event of its own gets one, so that none can be forgotten.

Routes with more to tell write their event themselves (`history.py`); this one names the route and whom it concerned.
Left out is the renewal of a device's token, which changes nothing that anybody decided and comes 24 times a day.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from functions.api.wiring import Wiring
from functions.http import source_address
from shared.guard.model import AuditEvent
from shared.guard.service import append_audit
from shared.runtime.clock import now_ms

WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
RENEWALS: Final = frozenset({"/v1/peer/agents/{device_id}/refresh", "/v1/peer/token/{device_id}/refresh"})
USER_AGENT_MAX_CHARS: Final = 256


def concerns(request: Request, stream: str, actor: str, method: str) -> None:
    """Say whose stream this request belongs to, and who acts by which credential."""
    request.state.audit_stream = stream
    request.state.audit_actor = actor
    request.state.audit_method = method


def told(request: Request) -> None:
    """This request has left its event."""
    request.state.audited = True


def _event(request: Request, template: str) -> AuditEvent | None:
    state = request.state
    stream = getattr(state, "audit_stream", "")
    if not stream:
        return None
    return AuditEvent(
        stream,
        f"{request.method} {template}",
        state.audit_actor,
        now_ms(),
        ip=source_address(request),
        user_agent=request.headers.get("user-agent", "")[:USER_AGENT_MAX_CHARS],
        request_id=state.request_id,
        auth_method=state.audit_method,
    )


def install_audit(app: FastAPI, wiring: Callable[[], Wiring]) -> None:
    """Install it before the first responses, which go around it: a replayed answer did nothing."""

    @app.middleware("http")
    async def with_event(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        if request.method not in WRITES or response.status_code >= 400 or hasattr(request.state, "audited"):
            return response
        template = str(getattr(request.scope.get("route"), "path", ""))
        event = None if template in RENEWALS else _event(request, template)
        if event is not None:
            w = wiring()
            await run_in_threadpool(append_audit, w.dynamo, w.settings.table("audit"), event)
        return response
