"""An operator closes an incident by hand. Whoever opened it opens it again if the thing is still wrong at the next look."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import Request
from pydantic import BaseModel, Field

from functions.api.auth import caller, fresh
from functions.api.history import write_of_account
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes
from shared.access.model import Scope
from shared.guard.table import close_incident, get_incident
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import as_items

REASON_MAX_CHARS: Final = 256
SORT_KEY_MAX_BYTES: Final = 1024


class CloseBody(BaseModel):
    """Why it is closed: it stands in the history of who did."""

    reason: str = Field(min_length=1, max_length=REASON_MAX_CHARS)


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of operators."""
    routes = Routes()

    @routes.post("/v1/admin/incidents/{incident_id}/close")
    def close(request: Request, incident_id: str, body: CloseBody) -> dict[str, Any]:
        """A repeat answers as the first time did. The id names one time of its being wrong, and never a later one."""
        w = wiring()
        by = fresh(w, request, caller(w, request, Scope.ADMIN))
        guard, name, now = w.settings.table("guard"), incident_id.partition("#")[2], now_ms()
        named = 0 < len(name.encode()) <= SORT_KEY_MAX_BYTES
        found = w.dynamo.run(get_incident(guard, name)) if named else None
        if found is None or found.incident_id != incident_id:
            raise ProblemError(404, "NOT_FOUND", "there is no such incident, or it was opened anew")
        closed_ms = found.closed_at_ms
        if closed_ms is None:
            closing = as_items(close_incident(guard, name, now, found.opened_at_ms))
            facts = {"incident": incident_id, "reason": body.reason}
            if write_of_account(w, request, by, "incident_close", closing, **facts) is not None:
                raise ProblemError(409, "CHANGED_MEANWHILE", "it was closed in this moment: look again")
            closed_ms = now
        return {"incidentId": incident_id, "closedAt": closed_ms}

    return routes
