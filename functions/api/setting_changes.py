"""Live settings as admins change them: on record, what was promised honoured a while, and where money goes by two persons.

Another recipient is proposed by one signed-in person and confirmed by another. API keys do neither: whoever holds one holds
as many as they like. A person who was added within a day does neither as well, because an API key can add persons.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from fastapi import Request

from functions.api.audit import told
from functions.api.auth import caller, fresh
from functions.api.history import write_of_account
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes
from shared.access.model import ApiKey, Scope
from shared.guard.approvals import Approvals
from shared.guard.model import Approval, ApprovalState
from shared.guard.service import SETTINGS_TTL_MS
from shared.guard.settings import PROMISE_S
from shared.guard.table import read_versions, replace_setting
from shared.runtime.clock import new_id, now_ms
from shared.runtime.dynamo import TransactItem

PROMISED: Final = frozenset({"prices", "wholesale", "recipients"})
"""What a 402 tells its reader, who may act on it until its quote is over."""
PROMISED_MS: Final = PROMISE_S * 1000 + 2 * SETTINGS_TTL_MS
PROMISES_MAX: Final = 8
SECOND_PERSON: Final = frozenset({"recipients"})
OPERATION: Final = "setting_change"
PROPOSAL_LIFE_MS: Final = 24 * 3_600_000
NEWCOMER_MS: Final = 24 * 3_600_000


def change_setting(
    w: Wiring,
    request: Request,
    by: ApiKey,
    name: str,
    value: dict[str, Any],
    action: str,
    items: Sequence[TransactItem],
    **facts: Any,
) -> None:
    """Write a setting, its event, and what else belongs to it, in one transaction; 409 when it changed meanwhile."""
    guard, now = w.settings.table("guard"), now_ms()
    known = w.dynamo.run(read_versions(guard, name))
    until = now + PROMISED_MS if name in PROMISED else 0
    if until and known is not None and len(known.in_force(now)) > PROMISES_MAX:
        message = f"{name}: at most {PROMISES_MAX} changes an hour, because each is honoured for as long"
        raise ProblemError(429, "RATE_LIMITED", message, {"Retry-After": "600"})
    written = replace_setting(guard, name, value, now, known, until)
    conflict = write_of_account(w, request, by, action, [written, *items], setting=name, value=value, **facts)
    if conflict is not None:
        raise ProblemError(409, "CHANGED_MEANWHILE", "the setting or its proposal changed in the same moment")


def person_of(w: Wiring, by: ApiKey) -> str:
    """The signed-in human who asks for what needs two; 403 for anybody else."""
    if not by.person:
        raise ProblemError(403, "HUMANS_ONLY", "two persons decide this: sign in instead of using an API key")
    if now_ms() - by.created_at_ms < NEWCOMER_MS:
        raise ProblemError(403, "TOO_NEW", "whoever was added within a day does not decide this")
    return by.person


def propose_setting(
    w: Wiring, request: Request, by: ApiKey, name: str, value: dict[str, Any]
) -> dict[str, Any]:
    """Ask another person for their yes; nothing changes before."""
    person = person_of(w, by)
    ident = str(getattr(request.state, "operation_id", ""))[:24] or new_id()
    asked = Approval(ident, OPERATION, {"setting": name, "value": value}, person, now_ms())
    item = Approvals(w.settings.table("guard")).propose_item(asked)
    facts = {"proposal": ident, "setting": name, "value": value}
    if write_of_account(w, request, by, "setting_propose", [item], **facts) is not None:
        told(request)  # an earlier try of the same operation asked
        asked = found_proposal(w, ident)
    return shown(asked)


def found_proposal(w: Wiring, ident: str) -> Approval:
    """A proposed setting, or 404."""
    asked = Approvals(w.settings.table("guard")).find(ident)
    if asked is None or asked.operation != OPERATION:
        raise ProblemError(404, "NOT_FOUND", "there is no such proposal")
    return asked


def decide(w: Wiring, request: Request, by: ApiKey, ident: str, state: ApprovalState) -> dict[str, Any]:
    """The other person's word; a repeated one does nothing more."""
    asked = found_proposal(w, ident)
    person = person_of(w, by)
    if asked.state is not ApprovalState.PROPOSED:
        if (asked.state, asked.decided_by) != (state, person):
            raise ProblemError(409, "DECIDED_ALREADY", f"this proposal is {asked.state.value}")
        told(request)
        return shown(asked)
    if asked.proposed_by == person:
        raise ProblemError(403, "SECOND_PERSON_NEEDED", "who proposed this cannot decide it")
    if now_ms() - asked.proposed_at_ms > PROPOSAL_LIFE_MS:
        raise ProblemError(409, "PROPOSAL_TOO_OLD", "this proposal is older than a day; propose it again")
    item = Approvals(w.settings.table("guard")).decide_item(asked, state, person)
    name, value = asked.arguments["setting"], dict(asked.arguments["value"])
    if state is ApprovalState.APPROVED:
        change_setting(w, request, by, name, value, "setting_change", [item], proposal=ident)
    elif write_of_account(w, request, by, "setting_reject", [item], proposal=ident, setting=name) is not None:
        raise ProblemError(409, "CHANGED_MEANWHILE", "the proposal was decided in the same moment")
    return shown(found_proposal(w, ident))


def shown(asked: Approval) -> dict[str, Any]:
    """A proposal as admins see it."""
    return {
        "proposalId": asked.approval_id,
        "setting": asked.arguments["setting"],
        "value": asked.arguments["value"],
        "state": asked.state.value,
        "proposedBy": asked.proposed_by,
        "proposedAt": asked.proposed_at_ms,
        "decidedBy": asked.decided_by or None,
    }


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of proposals."""
    routes = Routes(prefix="/v1/admin/proposals/{proposal_id}")

    @routes.get("")
    def one(request: Request, proposal_id: str) -> dict[str, Any]:
        caller(wiring(), request, Scope.ADMIN)
        return shown(found_proposal(wiring(), proposal_id))

    def decided(request: Request, proposal_id: str, state: ApprovalState) -> dict[str, Any]:
        w = wiring()
        by = fresh(w, request, caller(w, request, Scope.ADMIN))
        return decide(w, request, by, proposal_id, state)

    @routes.post("/approve")
    def approve(request: Request, proposal_id: str) -> dict[str, Any]:
        return decided(request, proposal_id, ApprovalState.APPROVED)

    @routes.post("/reject")
    def reject(request: Request, proposal_id: str) -> dict[str, Any]:
        return decided(request, proposal_id, ApprovalState.REJECTED)

    return routes
