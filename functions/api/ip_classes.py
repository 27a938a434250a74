"""Admin routes over the class of networks: what an operator says of an ASN or a network beats the table, on record."""

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import Request
from pydantic import BaseModel, Field

from functions.api.audit import told
from functions.api.auth import caller
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes, source_address
from shared.access.model import ApiKey, Scope
from shared.grading.live import EVERYTHING, mark_changed
from shared.guard.model import AuditEvent
from shared.guard.service import run_audited
from shared.guard.table import begin_setting, read_setting, set_entry
from shared.kernel.codes import IpType
from shared.runtime.clock import now_ms
from shared.supply.live import read_crowded
from shared.supply.rules import class_subject

SETTING: Final = "ip_classes"
OVERRIDES_MAX: Final = 1_000
"""All of them stand in one row and are looked through for each address that is classified."""


class ClassBody(BaseModel):
    """What an operator says, and why."""

    ipType: IpType
    reason: Annotated[str, Field(min_length=1, max_length=256)]


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of overrides."""
    routes = Routes()

    def crowded() -> list[str]:
        found: frozenset[str] = wiring().redis.run(read_crowded())
        return sorted(found)

    def stored() -> dict[str, Any]:
        w = wiring()
        return w.dynamo.run(read_setting(w.settings.table("guard"), SETTING)) or {}

    def subject_of(text: str) -> str:
        subject = class_subject(text)
        if subject is None:
            raise ProblemError(
                400, "INVALID_FIELD", "subject: AS and a number, or a network like 192.0.2.0/24"
            )
        return subject

    def write(request: Request, by: ApiKey, subject: str, entry: dict[str, Any] | None) -> None:
        w = wiring()
        table, now = w.settings.table("guard"), now_ms()
        event = AuditEvent(
            f"acct#{by.account_id}",
            "ip_class_change",
            by.person or by.account_id,
            now,
            ip=source_address(request),
            request_id=request.state.request_id,
            auth_method="password" if by.person else "api_key",
            metadata={"subject": subject, "entry": entry or {}},
        )
        write, audit = set_entry(table, SETTING, subject, entry, now), w.settings.table("audit")
        if run_audited(w.dynamo, audit, event, write) is None:
            w.dynamo.run(begin_setting(table, SETTING, now))
            run_audited(w.dynamo, audit, event, write)
        w.redis.run(mark_changed([EVERYTHING]))
        told(request)

    @routes.get("/v1/admin/ip-classes")
    def read(request: Request) -> dict[str, Any]:
        caller(wiring(), request, Scope.ADMIN)
        return {"overrides": stored(), "crowdedNetworks": crowded()}

    @routes.put("/v1/admin/ip-classes/{subject:path}")
    def put(request: Request, subject: str, body: ClassBody) -> dict[str, Any]:
        by, named = caller(wiring(), request, Scope.ADMIN), subject_of(subject)
        held = stored()
        if named not in held and len(held) >= OVERRIDES_MAX:
            raise ProblemError(409, "OVERRIDES_LIMIT", f"there are {OVERRIDES_MAX} overrides; remove some")
        entry = {
            "class": body.ipType.value,
            "reason": body.reason,
            "by": by.person or by.account_id,
            "at_ms": now_ms(),
        }
        write(request, by, named, entry)
        return {"subject": named, **entry}

    @routes.delete("/v1/admin/ip-classes/{subject:path}")
    def remove(request: Request, subject: str) -> dict[str, Any]:
        by, named = caller(wiring(), request, Scope.ADMIN), subject_of(subject)
        if named not in stored():
            raise ProblemError(404, "NOT_FOUND", "there is no such override")
        write(request, by, named, None)
        return {"subject": named, "removed": True}

    return routes
