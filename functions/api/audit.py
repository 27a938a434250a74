"""The net under the audit: a write that succeeded and left no event of its own gets one, so that none can be forgotten.

Routes with more to tell write their event themselves (`history.py`); this one names the route and whom it concerned.
Left out is the renewal of a device's token, which changes nothing that anybody decided and comes 24 times a day.
"""

from collections.abc import Callable
from typing import Final

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from functions.api.wiring import Wiring
from functions.http import answered, source_address, unavailable
from shared.guard.model import AuditEvent
from shared.guard.service import append_audit
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable

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


def event_of(request: Request) -> AuditEvent | None:
    """What this request is told as; None when it concerns nobody."""
    state = request.state
    stream = getattr(state, "audit_stream", "")
    if not stream:
        return None
    return AuditEvent(
        stream,
        f"{request.method} {_template(request)}",
        state.audit_actor,
        now_ms(),
        ip=source_address(request),
        user_agent=request.headers.get("user-agent", "")[:USER_AGENT_MAX_CHARS],
        request_id=state.request_id,
        auth_method=state.audit_method,
    )


def _template(request: Request) -> str:
    return str(getattr(request.scope.get("route"), "path", ""))


class EventForEach:
    """See the module's docstring."""

    def __init__(self, app: ASGIApp, wiring: Callable[[], Wiring]) -> None:
        self._app = app
        self._wiring = wiring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; a write's answer is held back until its event stands."""
        if scope["type"] != "http" or scope["method"] not in WRITES:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        response = await answered(self._app, scope, receive)
        if response.status_code < 400 and not hasattr(request.state, "audited"):
            event = None if _template(request) in RENEWALS else event_of(request)
            if event is not None:
                response = await self._written(request, event, response)
        await response(scope, receive, send)

    async def _written(self, request: Request, event: AuditEvent, response: Response) -> Response:
        w = self._wiring()
        try:
            await run_in_threadpool(append_audit, w.dynamo, w.settings.table("audit"), event)
        except StoreUnavailable:
            return unavailable(request)
        return response


def install_audit(app: FastAPI, wiring: Callable[[], Wiring]) -> None:
    """Install it before the first responses, which go around it: a replayed answer did nothing."""
    app.add_middleware(EventForEach, wiring=wiring)
