"""Events that name a route and whom it concerned: in one transaction with the write, or before it where that is in Redis.

Routes with more to tell have events of their own (`history.py`). Below all of them is a net: a write that succeeded and
left no event gets one then, so that none can be forgotten.
Left out is the renewal of a device's token, which changes nothing that anybody decided and comes 24 times a day.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from functions.api.wiring import Wiring
from functions.http import answered, source_address, unavailable
from shared.guard.model import AuditEvent
from shared.guard.service import append_audit, run_audited
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import DynamoRequest, StoreUnavailable, TransactItem

T = TypeVar("T")
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


def event_of(request: Request) -> AuditEvent:
    """What this request does, for the record; it has said whom it `concerns`."""
    state, template = request.state, _template(request.scope)
    return AuditEvent(
        state.audit_stream,
        f"{request.method} {template}",
        state.audit_actor,
        now_ms(),
        ip=source_address(request),
        user_agent=request.headers.get("user-agent", "")[:USER_AGENT_MAX_CHARS],
        request_id=state.request_id,
        auth_method=state.audit_method,
    )


def run_told(w: Wiring, request: Request, write: DynamoRequest[T], *beside: TransactItem) -> T:
    """Run the write of this request, and what belongs beside it, in one transaction with its event."""
    answer = run_audited(w.dynamo, w.settings.table("audit"), event_of(request), write, beside)
    told(request)
    return answer


def tell_first(w: Wiring, request: Request) -> None:
    """Leave this request's event before it does something that no transaction can hold."""
    append_audit(w.dynamo, w.settings.table("audit"), event_of(request))
    told(request)


def _template(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", ""))


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
        state = request.state
        forgotten = hasattr(state, "audit_stream") and not hasattr(state, "audited")
        if response.status_code < 400 and forgotten and _template(scope) not in RENEWALS:
            response = self._written(request, event_of(request), response)
        await response(scope, receive, send)

    def _written(self, request: Request, event: AuditEvent, response: Response) -> Response:
        w = self._wiring()
        try:
            append_audit(w.dynamo, w.settings.table("audit"), event)
        except StoreUnavailable:
            return unavailable(request)
        return response


def install_audit(app: FastAPI, wiring: Callable[[], Wiring]) -> None:
    """Install it before the first responses, which go around it: a replayed answer did nothing."""
    app.add_middleware(EventForEach, wiring=wiring)
