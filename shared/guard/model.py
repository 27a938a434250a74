"""Safety records: the switch, a loop's budget, audit events, approvals, incidents."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class Switch:
    """The kill switch that every autonomous spender and sender reads before it works."""

    stopped: bool = False
    reason: str = ""
    by: str = ""
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Versions:
    """A live setting as it stands since `at_ms`. `before`: (what it said, honoured until unix ms), the newest first."""

    value: dict[str, Any]
    at_ms: int
    before: tuple[tuple[dict[str, Any], int], ...] = ()

    def in_force(self, now_ms: int) -> tuple[dict[str, Any], ...]:
        """What it says, and what it said to those who were promised that it would hold."""
        return (self.value, *(value for value, until_ms in self.before if until_ms > now_ms))


@dataclass(frozen=True, slots=True)
class LoopLimit:
    """How often a loop may run; beyond it the loop is refused until the minute or hour is over."""

    per_minute: int
    per_hour: int


class Refused(StrEnum):
    """Why a loop may not run now."""

    SWITCHED_OFF = "kill_switch_on"
    TOO_OFTEN = "loop_limit_reached"


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Something that was done, to what, by whom. Metadata holds no secret."""

    stream: str
    action: str
    actor: str
    at_ms: int
    ip: str = ""
    user_agent: str = ""
    request_id: str = ""
    auth_method: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An event in its chain: `digest` covers the event and the digest before it."""

    event: AuditEvent
    sequence: int
    previous: str
    digest: str


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that a human should look at. `name` is what is wrong: it stands once, however often it is told."""

    name: str
    kind: str
    message: str
    opened_at_ms: int
    closed_at_ms: int | None = None

    @property
    def incident_id(self) -> str:
        """This time of its being wrong."""
        return f"{self.opened_at_ms:013d}#{self.name}"


class ApprovalState(StrEnum):
    """Life of a request for a human's yes."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Approval:
    """A sensitive operation that waits for a human. Who proposed it can never decide it."""

    approval_id: str
    operation: str
    arguments: Mapping[str, Any]
    proposed_by: str
    proposed_at_ms: int
    state: ApprovalState = ApprovalState.PROPOSED
    decided_by: str = ""
